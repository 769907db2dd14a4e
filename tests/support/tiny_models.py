"""Tiny language models with random weights, saved as Hugging Face saves real ones, with a tokenizer of whole words."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    GPT2Config,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    XLMRobertaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = ["bar", "ramen", "museum", "gym", "shop", "north", "south", "east", "west", "ulm", "york", "oslo"]
WORDS += [",", "|", ">", "?", "1", "2", "3"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]


def tiny_tokenizer(template: str, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Words to ids; ``template`` as in tokenizers, for example "[CLS] $A [SEP]"."""
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = [(word, vocab[word]) for word in SPECIAL]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side=padding_side,
        additional_special_tokens=["<image>"],
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_model(folder: Path, kind: str, padding_side: str = "right", **changes: Any) -> Path:
    """Save a tiny model and its tokenizer in ``folder``: bert, xlm-roberta, gpt2, qwen3 or llava."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    small |= {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 66, "pad_token_id": 0}
    decoder = {**small, "num_key_value_heads": 2}
    config: Any
    if kind == "bert":
        config = BertConfig(**(small | changes))
    elif kind == "xlm-roberta":
        config = XLMRobertaConfig(**(small | {"type_vocab_size": 1} | changes))
    elif kind == "gpt2":  # a decoder with absolute positions
        config = GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=small["vocab_size"], n_positions=66, pad_token_id=0, **changes
        )
    elif kind == "qwen3":
        config = Qwen3Config(**(decoder | {"head_dim": 8} | changes))
    elif kind == "llava":
        eyes = CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        )
        config = LlavaConfig(vision_config=eyes, text_config=Qwen2Config(**decoder), image_token_id=4, **changes)
    else:
        raise ValueError(kind)
    torch.manual_seed(0)
    MODEL_MAPPING[type(config)](config).eval().save_pretrained(folder)
    last = kind in ("gpt2", "qwen3", "llava")
    tokenizer = tiny_tokenizer("$A [SEP]" if last else "[CLS] $A [SEP]", padding_side)
    if kind == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        tokenizer.image_token, tokenizer.image_token_id = "<image>", 4
        LlavaProcessor(
            images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
        ).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)
    return folder
