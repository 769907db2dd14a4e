"""Adapters: on key and value alone, found by architecture; saved as peft saves them."""

import json
from pathlib import Path

import peft
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModel, DistilBertConfig, DistilBertModel, GPT2Config, GPT2Model

from placerank.tokenization.alignment.lora import (
    LoraSettings,
    add_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    target_modules,
    train_adapter_only,
)
from placerank.tokenization.text.encoders import EncoderConfig, load_encoder

LEAVES = {
    "bert": {"key", "value"},
    "xlm-roberta": {"key", "value"},
    "qwen3": {"k_proj", "v_proj"},
    "llava": {"k_proj", "v_proj"},
}


@pytest.mark.parametrize("kind", LEAVES)
def test_adapter_is_on_keys_and_values_and_starts_as_nothing(tmp_path: Path, kind: str) -> None:
    encoder = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path / "model", kind))))
    found = target_modules(encoder.model)
    assert {name.rpartition(".")[2] for name in found} == LEAVES[kind]
    assert len(found) == 4 and not any("vision" in name for name in found)  # two layers, two projections
    before = encoder.encode(["ramen bar", "gym"])
    parameters = add_adapter(encoder, LoraSettings())
    assert torch.equal(encoder.encode(["ramen bar", "gym"]), before)
    assert len(parameters) == 8 and sum(p.numel() for p in parameters) < 0.2 * sum(
        p.numel() for p in encoder.model.parameters()
    )
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3)
    after = encoder.encode(["ramen bar", "gym"])
    assert (after - before).abs().max() > 1e-3
    save_adapter(encoder, tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_dropout"]) == (8, 0.05)

    again = load_encoder(EncoderConfig(model=str(tmp_path / "model")))
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again.encode(["ramen bar", "gym"]), after)
    assert not any(p.requires_grad for p in again.model.parameters())
    merge_adapter(again)
    assert type(again.model).__name__ == type(AutoModel.from_pretrained(tmp_path / "model")).__name__
    torch.testing.assert_close(again.encode(["ramen bar", "gym"]), after, rtol=1e-4, atol=1e-5)


def test_peft_alone_loads_it(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path / "model", "bert"))))
    for parameter in add_adapter(encoder, LoraSettings()):
        parameter.data.add_(0.3)
    save_adapter(encoder, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "model"), str(tmp_path / "adapter"))
    ids = torch.tensor(encoder.tokens(["ramen bar"]))
    with torch.no_grad():
        hidden = model.eval()(ids).last_hidden_state.mean(1)
    torch.testing.assert_close(torch.nn.functional.normalize(hidden), encoder.encode(["ramen bar"]))


def test_seed_decides_the_adapter_and_nothing_else_draws(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path, "bert"))
    state = torch.get_rng_state()
    weights = [
        add_adapter(load_encoder(EncoderConfig(model=model)), LoraSettings(), seed)[0].clone() for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_only_the_adapter_drops_out(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(model=str(tiny_model(tmp_path, "bert"))))
    add_adapter(encoder, LoraSettings(dropout=0.5))
    train_adapter_only(encoder)
    training = {
        n.rpartition(".")[2] for n, m in encoder.model.named_modules() if m.training and not len(list(m.children()))
    }
    assert training == {"default"}  # peft's name of the adapter: the dropout layers
    drops = [m for m in encoder.model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    assert {m.p for m in drops} == {0.5} and len(drops) == 4


def test_encoders_without_the_targets_are_told() -> None:
    gpt = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, n_positions=9))
    with pytest.raises(
        ValueError, match=r"GPT2Model has no pair of key and value .*its linear layers are named nothing"
    ):
        target_modules(gpt)
    distil = DistilBertModel(DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=9, vocab_size=9))
    assert len(target_modules(distil)) == 2
    assert target_modules(distil, ("q_lin",)) == ["transformer.layer.0.attention.q_lin"]
    with pytest.raises(ValueError, match=r"DistilBertModel has no layers named \['query'\]; .* k_lin, .*lora.targets"):
        target_modules(distil, ("q_lin", "query"))
    for bad, text in (({"rank": 0}, "lora.rank=0"), ({"dropout": 1.0}, "lora.dropout=1.0"), ({"alpha": 0}, "alpha=0")):
        with pytest.raises(ValueError, match=text):
            LoraSettings(**bad)  # type: ignore[arg-type]
