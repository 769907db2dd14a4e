"""What an encoder can tell apart: texts that become the same tokens have the same vector, whatever the model knows.

A tokenizer turns what it has no piece for into one unknown token. The default's has none for most of Thai, Chinese and
Japanese: a whole name is one such token, and hundreds of places read alike.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoders import Encoder
from .pictures import Input, Shown, text_of

log = logging.getLogger(__name__)
MANY = 0.03  # share of texts from which it is a warning
_MOST = 500_000  # texts that are looked at: about a minute
_BLOCK = 16_384  # texts tokenized at a time
MULTILINGUAL = "intfloat/multilingual-e5-small, BAAI/bge-m3 or Qwen/Qwen3-Embedding-0.6B"


def read_measures(
    encoder: Encoder, texts: Callable[[NDArray[np.int64]], Sequence[Input]], count: int
) -> dict[str, Any]:
    """How many of ``count`` texts the encoder tells apart; logged, as a warning if too many are alike or unknown.

    Texts are tokenized a block at a time, 17 bytes of each are held; past half a million, that many random ones.

    Args:
        texts: the texts of some rows, with or without pictures.

    Returns:
        ``texts``: different ones; ``tokens``: different rows of tokens that they become; ``same_tokens``: share of
        the different texts with tokens that another one has too; ``unknown_tokens``: share of them that hold an
        unknown token; ``warning``: a sentence, or None.
    """
    rows = np.arange(count) if count <= _MOST else np.sort(np.random.default_rng(0).permutation(count)[:_MOST])
    text, tokens, unknown = (np.empty(len(rows), kind) for kind in (np.int64, np.int64, bool))
    strange = _unknown_token(encoder.tokenizer)
    for start in range(0, len(rows), _BLOCK):
        some = texts(rows[start : start + _BLOCK])
        for row, (one, ids) in enumerate(zip(some, encoder.tokens([text_of(x) for x in some]), strict=True), start):
            picture = one.image if isinstance(one, Shown) else None  # of two texts alike, it tells which is which
            text[row], tokens[row], unknown[row] = hash(one), hash((tuple(ids), picture)), strange in ids
    _, first = np.unique(text, return_index=True)
    _, sharing = np.unique(tokens[first], return_counts=True)
    found: dict[str, Any] = {
        "texts": len(first),
        "tokens": len(sharing),
        "same_tokens": float(sharing[sharing > 1].sum() / len(first)),
        "unknown_tokens": float(unknown[first].mean()),
    }
    said = (
        f"{found['same_tokens']:.1%} of {len(first):,} different texts become the same tokens as another one, and "
        f"{found['unknown_tokens']:.1%} hold tokens that the encoder does not know"
    )
    found["warning"] = None
    if max(found["same_tokens"], found["unknown_tokens"]) > MANY:
        found["warning"] = (
            f"{said}: it cannot tell such items apart, nor can their semantic IDs. Take an encoder that knows their "
            f"script, for example encoder.model {MULTILINGUAL} (or a folder that holds one)"
        )
        log.warning(found["warning"])
    else:
        log.info(said)
    return found


def _unknown_token(tokenizer: Any) -> int | None:
    """Id of the unknown token; None where there is none of its own (byte-level tokenizers know every text)."""
    others = ("eos", "bos", "pad", "sep", "cls", "mask")
    number: int | None = tokenizer.unk_token_id
    return None if number in [getattr(tokenizer, f"{name}_token_id") for name in others] else number
