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
    CLIPConfig,
    CLIPProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3Processor,
    GPT2Config,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    SiglipConfig,
    SiglipProcessor,
    XLMRobertaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

WORDS = ["bar", "ramen", "museum", "gym", "shop", "north", "south", "east", "west", "ulm", "york", "oslo"]
WORDS += [",", "|", ">", "?", "1", "2", "3"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>")
SEEING = (*SPECIAL, "<start>", "<end>", "<video>")  # of models that see
QWEN = (*SPECIAL[:4], "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")  # names that its code has
IMAGE, START, END = 4, 5, 6  # numbers of three of them
SEES = ("llava", "qwen2-vl", "gemma3", "clip", "siglip")
# As chat templates are: each part of each turn in its place, then where an answer begins.
TEMPLATE = """{% for turn in messages %}[CLS] {% for part in turn.content %}\
{% if part.type == "image" %}PICTURE{% else %}{{ part.text }}{% endif %} {% endfor %}{% endfor %}\
{% if add_generation_prompt %}[CLS]{% endif %}"""


def tiny_tokenizer(
    template: str, padding_side: str = "right", special: tuple[str, ...] = SPECIAL
) -> PreTrainedTokenizerFast:
    """Words to ids; ``template`` as in tokenizers, for example "[CLS] $A [SEP]"."""
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(word, vocab[word]) for word in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side=padding_side,
        additional_special_tokens=list(special[4:]),
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_model(folder: Path, kind: str, padding_side: str = "right", template: bool = True, **changes: Any) -> Path:
    """Save a tiny model and its tokenizer in ``folder``: bert, xlm-roberta, gpt2, qwen3 or one of ``SEES``.

    ``template``: whether the processor of a vision-language model has a chat template.
    """
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = QWEN if kind == "qwen2-vl" else SEEING if kind in SEES else SPECIAL
    small |= {"vocab_size": len(special) + len(WORDS), "max_position_embeddings": 66, "pad_token_id": 0}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    decoder = {**small, **ends, "num_key_value_heads": 2}
    eyes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    eyes |= {"image_size": 8, "patch_size": 4}
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
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**eyes), text_config=Qwen2Config(**decoder), image_token_id=IMAGE, **changes
        )
    elif kind == "qwen2-vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
        seeing = {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4, "mlp_ratio": 2}
        config = Qwen2VLConfig(
            text_config=decoder | {"rope_parameters": rope}, vision_config=seeing, image_token_id=IMAGE,
            vision_start_token_id=START, vision_end_token_id=END, video_token_id=7, **changes,
        )  # fmt: skip
    elif kind == "gemma3":
        config = Gemma3Config(
            text_config=decoder | {"head_dim": 8, "sliding_window": 32}, vision_config=eyes, image_token_id=IMAGE,
            boi_token_index=START, eoi_token_index=END, mm_tokens_per_image=4, **changes,
        )  # fmt: skip
    elif kind in ("clip", "siglip"):
        width = {"projection_dim": 24} if kind == "clip" else {}
        words, seeing = small | ends, eyes | ({} if kind == "clip" else {"hidden_size": 32})
        config = (CLIPConfig if kind == "clip" else SiglipConfig)(
            text_config=words | width, vision_config=seeing | width, **width, **changes
        )
    else:
        raise ValueError(kind)
    torch.manual_seed(0)
    model = MODEL_MAPPING[type(config)](config).eval()
    if kind == "gemma3":  # what maps pictures to tokens starts as zeros
        torch.nn.init.normal_(model.multi_modal_projector.mm_input_projection_weight)
    model.save_pretrained(folder)
    last = kind in ("gpt2", "qwen3", *SEES)
    tokenizer = tiny_tokenizer("$A [SEP]" if last else "[CLS] $A [SEP]", padding_side, special)
    if kind in SEES:
        save_processor(folder, kind, tokenizer, template)
    else:
        tokenizer.save_pretrained(folder)
    return folder


def save_processor(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast, template: bool) -> None:
    """A processor of a tiny model as the hub has it. Pictures are 8 x 8, Qwen2-VL's from 8 x 8 to 16 x 16."""
    if kind != "qwen2-vl":
        tokenizer.image_token, tokenizer.image_token_id = "<image>", IMAGE
    square = {"height": 8, "width": 8}
    picture = {"llava": "<image>", "gemma3": "<start>", "qwen2-vl": "<|vision_start|><|image_pad|><|vision_end|>"}.get(
        kind, ""
    )
    chat = {"chat_template": TEMPLATE.replace("PICTURE", picture)} if template else {}
    if kind == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=square)
        LlavaProcessor(
            images, tokenizer, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
            **chat,
        ).save_pretrained(folder)  # fmt: skip
    elif kind == "gemma3":
        tokenizer.boi_token, tokenizer.boi_token_id = "<start>", START
        tokenizer.eoi_token, tokenizer.eoi_token_id = "<end>", END
        tokenizer.init_kwargs |= {"boi_token": "<start>", "eoi_token": "<end>", "image_token": "<image>"}
        Gemma3Processor(
            Gemma3ImageProcessorPil(size=square), tokenizer, image_seq_length=4, **chat
        ).save_pretrained(folder)  # fmt: skip
    elif kind == "qwen2-vl":  # its processor has a part for films, which needs torchvision: saved in parts
        Qwen2VLImageProcessorPil(min_pixels=64, max_pixels=256, patch_size=4).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if template:
            (folder / "chat_template.jinja").write_text(chat["chat_template"])
    elif kind == "clip":
        CLIPProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=square), tokenizer
        ).save_pretrained(folder)  # fmt: skip
    else:
        SiglipProcessor(SiglipImageProcessorPil(size=square), tokenizer).save_pretrained(folder)
