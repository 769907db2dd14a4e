"""Low-rank adapters on the key and value projections, through peft (LGSID, section 5.4).

An adapter saves and loads as any peft adapter: ``peft.PeftModel.from_pretrained(base, folder)`` takes it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..text.encoders import Encoder
from .settings import LoraSettings

# Names of the two projections, by architecture: BERT, RoBERTa, XLM-R, ELECTRA; Qwen, Llama, Mistral, Gemma;
# DeBERTa-v2; DistilBERT; T5, MPNet.
_NAMES = (("key", "value"), ("k_proj", "v_proj"), ("key_proj", "value_proj"), ("k_lin", "v_lin"), ("k", "v"))
_EYES = ("vision", "visual", "image")  # parts of a vision-language model that do not read


def target_modules(model: nn.Module, targets: tuple[str, ...] = (), eyes: bool = False) -> list[str]:
    """Full names of the linear layers to adapt.

    Args:
        targets: endings of names; none: key and value projections, which must be there as a pair.
        eyes: those of the part that sees, too. A vision-language model reads what that part says, and learns there; of
            two towers the one that sees would learn nothing.

    Raises:
        ValueError: the model has none such; the message lists the linear layers that it has.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    blind = [name for name in linear if not any(eye in part for part in name.split(".") for eye in _EYES)]
    reads = linear if eyes else blind
    if targets:
        found = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets)]
        absent = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
        wanted = f"layers named {absent}"
    else:
        names, absent = set(reads), []
        found = []
        for key, value in _NAMES:
            for name in reads:
                parent, _, leaf = name.rpartition(".")
                partner = {key: value, value: key}.get(leaf)
                if partner and (f"{parent}.{partner}" if parent else partner) in names:
                    found.append(name)
        wanted = f"pair of key and value projections ({', '.join('/'.join(pair) for pair in _NAMES)})"
    if not found or absent:
        leaves = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"{type(model).__name__} has no {wanted}; its linear layers are named {', '.join(leaves) or 'nothing'}: "
            "name those to adapt in lora.targets, or choose an encoder with separate key and value projections"
        )
    return found


def targets_of(encoder: Encoder, settings: LoraSettings) -> list[str]:
    """The same, of an encoder: both towers where it has two and is shown pictures."""
    return target_modules(encoder.model, settings.targets, eyes=encoder.two_towers and encoder.processor is not None)


def add_adapter(encoder: Encoder, settings: LoraSettings, seed: int = 0) -> list[nn.Parameter]:
    """Put a fresh adapter on the encoder's model; returns its parameters, the only ones that train.

    The adapter starts as zero: the encoder gives the same vectors as before. ``seed`` decides its random half.

    Raises:
        ValueError: the model has no such layers, see ``target_modules``.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=settings.dropout,
        target_modules=targets_of(encoder, settings),
        bias="none",
    )
    device = encoder.device
    with _quiet(), torch.random.fork_rng(devices=[]):  # peft draws on the CPU
        torch.manual_seed(seed)
        encoder.model = get_peft_model(encoder.model.cpu(), config).to(device)
    return [p for p in encoder.model.parameters() if p.requires_grad]


@contextmanager
def _quiet() -> Iterator[None]:
    """peft asks transformers for a name that transformers has changed, which warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def train_adapter_only(encoder: Encoder) -> None:
    """Modes for a training step: dropout in the adapters and nowhere else.

    The encoder's own dropout would move each vector away from its frozen reference, and the similarity loss would
    then pull against noise.
    """
    encoder.model.eval()
    for name, module in encoder.model.named_modules():
        if "lora_dropout" in name:
            module.train()


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write the adapter as peft does (adapter_config.json, adapter_model.safetensors)."""
    encoder.model.save_pretrained(folder)  # type: ignore[operator]


def load_adapter(encoder: Encoder, folder: Path) -> None:
    """Put a saved adapter on an encoder's model, frozen.

    Raises:
        FileNotFoundError: no adapter there.
    """
    from peft import PeftModel

    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter (adapter_config.json); check the path")
    with _quiet():
        encoder.model = PeftModel.from_pretrained(encoder.model, str(folder)).eval()


def merge_adapter(encoder: Encoder) -> None:
    """Add the adapter to the model's weights, and drop it: the model is a plain one again."""
    encoder.model = encoder.model.merge_and_unload()  # type: ignore[operator]
