"""Cross-attention, aggregator, counts and heads against slow readable references, with gaps and empty histories."""

import math
from pathlib import Path

import pytest
import torch
from adapters import catalog, requests, small_adapter
from tiny_models import tiny_model
from torch import Tensor

from placerank.rankers.adapter.inputs import FAR_KM, FEATURES, ItemTexts, Places, features
from placerank.rankers.adapter.losses import sampled_softmax, sentence_rows, to_teacher
from placerank.rankers.adapter.model import CrossAttention

PLACES = Places.of_catalog(catalog())


def test_cross_attention_is_that_of_loops_with_gaps() -> None:
    g = torch.Generator().manual_seed(0)
    layer = CrossAttention(12, 8, 2)
    torch.nn.init.normal_(layer.out.weight, generator=g)
    x, rows = torch.randn(3, 5, 12, generator=g), torch.randn(3, 7, 8, generator=g)
    seen = torch.tensor([[1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    found = layer(x, rows, seen)
    wk, wv = layer.keys.weight.chunk(2)
    for b in range(3):
        for t in range(5):
            q = layer.query.weight @ layer.norm(x[b, t])
            parts = []
            for head in (slice(0, 4), slice(4, 8)):
                at = seen[b].nonzero().squeeze(1)
                logits = torch.stack([(wk[head] @ rows[b, m]) @ q[head] / 2 for m in at])
                parts.append(sum(w * (wv[head] @ rows[b, m]) for w, m in zip(logits.softmax(0), at, strict=True)))
            torch.testing.assert_close(found[b, t], x[b, t] + layer.out.weight @ torch.cat(parts), rtol=1e-4, atol=1e-5)
    poisoned = rows.masked_fill(~seen[:, :, None], 1e6)
    torch.testing.assert_close(layer(x, poisoned, seen), found)


@torch.no_grad()
def test_padding_gaps_and_company_change_nothing() -> None:
    model = small_adapter()
    ids = [model.tokens(t) for t in ("Where to next?\n", "Monday 10:00. Find me a very long question.\n", "?")]
    q = requests([[1, 2, 5, 2], [], [3]])
    candidates = torch.tensor([[1, 2, 3, 6]]).expand(3, -1)
    whole = model.score(q, ids, candidates)
    assert whole.isfinite().all()
    for i in range(3):
        alone = model.score(q.some(torch.tensor([i])).trimmed(), ids[i : i + 1], candidates[:1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)
    rows = model.visits(q)
    gaps = torch.tensor([[True, False, True, False]] * 3)
    spoiled = rows.masked_fill(~gaps[:, :, None], 1e4)
    torch.testing.assert_close(model.read(ids, rows, gaps), model.read(ids, spoiled, gaps))
    nobody = model.read(ids, rows[:, :0], gaps[:, :0])
    torch.testing.assert_close(nobody, model.read(ids, rows, torch.zeros_like(gaps)))
    assert not torch.allclose(nobody, model.read(ids, rows, gaps))


@torch.no_grad()
def test_a_language_model_is_itself_until_the_adapter_has_learned(tmp_path: Path) -> None:
    for kind in ("gpt2", "qwen3"):
        folder = causal(tmp_path / kind, kind)
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        model = small_adapter(model=folder)
        assert not any(p.requires_grad for p in model.language.parameters())
        assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("language."))
        for cross in model.cross.values():
            torch.nn.init.zeros_(cross.out.weight)  # type: ignore[union-attr]
        q, ids = requests([[1, 2], [3]]), [[7, 8, 9], [10, 11, 12]]
        found = model.write(ids, model.visits(q), q.seen)
        torch.testing.assert_close(found, plain(torch.tensor(ids)).logits)
        for cross in model.cross.values():
            torch.nn.init.normal_(cross.out.weight)  # type: ignore[union-attr]
        assert not torch.allclose(model.write(ids, model.visits(q), q.seen), found)
        assert model.score(q, ids, torch.tensor([[1, 2]] * 2)).isfinite().all()


def causal(folder: Path, kind: str) -> Path:
    """A tiny causal language model with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tiny_model(folder, kind)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_without_cross_attention_the_question_alone_is_read() -> None:
    model = small_adapter(cross_attention=False)
    q, ids = requests([[1, 2], [3]]), [model.tokens("Why?")] * 2
    assert not model.cross
    states = model.read(ids, model.visits(q), q.seen)
    torch.testing.assert_close(states[0], states[1])
    assert len(small_adapter(every=2).cross) == 1


def test_every_block_and_table_gets_a_gradient() -> None:
    model = small_adapter()
    q, ids = requests([[1, 2], [3, 5]]), [model.tokens("Why?")] * 2
    loss = model.score(q, ids, torch.tensor([[1, 2], [3, 4]])).square().sum() + model.route(ids).square().sum()
    rows, seen = model.told_of(q, torch.tensor([1, 2]))
    (loss + model.write(ids, rows, seen).square().sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_aggregators_weights_are_a_distribution_over_what_is_seen() -> None:
    model = small_adapter()
    seen = torch.tensor([[True, False, True], [False, False, False]])
    weights = model.aggregate(torch.randn(2, 8), torch.randn(2, 3, 8), seen)
    assert weights[0].sum().item() == pytest.approx(1) and weights[0, 1] == 0 and (weights[0, [0, 2]] > 0).all()
    assert weights[1].tolist() == [0, 0, 0]
    assert model.aggregate(torch.randn(2, 8), torch.randn(2, 0, 8), seen[:, :0]).shape == (2, 0)


def test_features_are_those_of_counting() -> None:
    histories = [[1, 2, 2, 5, 2, 6, 1], [], [4]]
    q, candidates = requests(histories), torch.tensor([[2, 1, 4, 0]] * 3)
    weights = torch.rand(3, 7) * q.seen
    found = features(q, PLACES, weights, candidates)
    assert found.shape == (3, 4, FEATURES)
    for b, visited in enumerate(histories):
        for c, row in enumerate(candidates[b].tolist()):
            share = visited.count(row) / max(len(visited), 1)
            recent = visited[-5:].count(row) / max(len(visited[-5:]), 1)
            mass = sum(float(weights[b, m]) for m, v in enumerate(visited) if v == row)
            cos = float(q.point[b] @ PLACES.point[row])
            km = FAR_KM if math.isnan(cos) else 6371.0088 * math.acos(max(-1, min(1, cos)))
            want = [*(math.log(x + 0.01) + 4 for x in (share, recent, mass)), -math.log1p(km)]
            want += [float(PLACES.popularity[row]) / 4 + 2, float(share > 0)]
            torch.testing.assert_close(found[b, c], torch.tensor(want), rtol=1e-4, atol=1e-4)


def test_texts_of_items_are_their_own_mean() -> None:
    model = small_adapter()
    rows = torch.tensor([[3, 1], [1, 0]])
    found = model.vectors(rows)
    table: Tensor = model.language.get_input_embeddings().weight
    for at, row in enumerate(rows.flatten().tolist()):
        ids = model.tokenizer(PLACES.texts[row] or " ")["input_ids"][:24]
        torch.testing.assert_close(found.flatten(0, 1)[at], model.item.weight[row] + model.text(table[ids].mean(0)))
    texts = ItemTexts.of(["", "a b"], model.tokenizer)
    assert texts.offsets.tolist()[0] == 0 and (texts.offsets.diff() > 0).all()


def test_what_does_not_fit_is_told() -> None:
    model = small_adapter()
    q = requests([[1]])
    for ids, rows in (([[1], [2]], model.visits(q)), ([[1]], model.visits(q)[:, :0])):
        with pytest.raises(ValueError, match="expected as many"):
            model.read(ids, rows, q.seen)
    for ids in ([[]], [[1] * 129]):
        with pytest.raises(ValueError, match="expected 1 to 128"):
            model.read(ids, model.visits(q), q.seen)
    assert len(model.tokens("why " * 500)) == 64 and model.tokens("") == [model.end]


def test_losses() -> None:
    scores = torch.tensor([[1.0, 2.0, -1.0, 9.0], [0.5, 0.0, 0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.5, 2.0, torch.inf], [1.0, 1.0, 0.25]])
    sums = math.exp(1) + math.exp(2) / 0.5 + math.exp(-1) / 2, math.exp(0.5) + 1 + 1 + 4
    lost = sampled_softmax(scores, q.log())
    assert lost.item() == pytest.approx((math.log(sums[0]) - 1 + math.log(sums[1]) - 0.5) / 2)
    lost.backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad[0, 3] == 0
    assert sampled_softmax(scores, torch.full((2, 3), torch.inf)).item() == 0
    own, teacher = torch.randn(4, 6), torch.randn(4, 6)
    own[1, 2] = teacher[1, 2] = -torch.inf
    kl = [
        sum(
            p * math.log(p / o)
            for p, o in zip((t / 2).softmax(0).tolist(), (s / 2).softmax(0).tolist(), strict=True)
            if p
        )
        for t, s in zip(teacher, own, strict=True)
    ]
    assert to_teacher(own, teacher, 2.0).item() == pytest.approx(4 * sum(kl) / 4, rel=1e-4)
    assert to_teacher(own, own, 2.0).item() == pytest.approx(0, abs=1e-6)
    logits = torch.randn(2, 6, 9)
    said, tokens = sentence_rows(logits, [2, 3], [[5, 6], [7, 8, 1]])
    assert tokens.tolist() == [5, 6, 7, 8, 1]
    torch.testing.assert_close(
        said, torch.stack([logits[0, 1], logits[0, 2], logits[1, 2], logits[1, 3], logits[1, 4]])
    )
