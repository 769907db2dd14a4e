"""The causal language model that an adapter is put into, and its tokenizer.

Any ``AutoModelForCausalLM`` will do that keeps its blocks in one ``ModuleList`` and returns hidden states first, as
those of transformers do. Where none is named, a small one is made of Llama's blocks, and a byte-level BPE tokenizer is
trained on the places' texts: no hub is asked, and any text can be spelt.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.extras import require
from .config import LanguageConfig

PAD, END = "<pad>", "<end>"
VOCABULARY = 2000
"""Tokens of a tokenizer that is trained here, at most."""
LONGEST = 128
"""Tokens that a question or a sentence with its question may have in a model that is made here."""


def trained_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE of these texts, as a tokenizer of transformers; decoding gives any text back to the letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def make_language(config: LanguageConfig, own: Callable[[], Any]) -> tuple[nn.Module, Any]:
    """A language model and its tokenizer: the one that is named, frozen, or a small one with random weights.

    Args:
        config: which.
        own: gives the tokenizer of a small one, see ``trained_tokenizer``.

    Raises:
        FileNotFoundError: no such model.
        ValueError: transformers is not installed, the model is no decoder, or its tokenizer knows no end.
    """
    require("align", "transformers", "tokenizers", what="adapt: a language model")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if config.model is None:
        tokenizer = own()
        sizes = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.columns,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.hidden,
            max_position_embeddings=LONGEST,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(sizes), tokenizer
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"language.model={config.model!r} cannot be loaded: {error}; give a folder with a causal language model of "
            "Hugging Face and its tokenizer, or the name of one on the hub (and a network, or a filled cache)"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"language.model={config.model!r}: its tokenizer has no end-of-text token, give one that has")
    blocks_of(model)
    return model.requires_grad_(False), tokenizer


def load_language(folder: Path) -> tuple[nn.Module, Any]:
    """A model of the folder's config with random weights, which the caller fills, and the tokenizer."""
    require("align", "transformers", "tokenizers", what="an advisor")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(config), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no config of a language model and its tokenizer: {error}") from error


def save_language(folder: Path, language: Any, tokenizer: Any) -> None:
    """Config and tokenizer, as Hugging Face has them; weights are the adapter's to keep."""
    language.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def blocks_of(language: Any) -> nn.ModuleList:
    """The model's blocks, first to last.

    Raises:
        ValueError: there is not one list of them.
    """
    layers = language.config.get_text_config().num_hidden_layers
    lists = [m for m in language.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not lists:
        raise ValueError(
            f"{type(language).__name__}: expected a ModuleList of its {layers} blocks, as decoders of transformers have"
        )
    return lists[0]


def longest(language: Any) -> int:
    """Tokens that fit it."""
    return int(getattr(language.config.get_text_config(), "max_position_embeddings", None) or 1 << 20)
