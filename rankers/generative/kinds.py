"""The generative rankers by the name that ``ranker.kind`` has; their settings are in ``config.py``."""

from typing import Any

from torch import Tensor

from .decoding import Lists, best
from .index import Index
from .model import Generator, PlaceFacts, Questions
from .onerec import OneRec
from .reach import Allowed
from .tiger import Tiger

AnyGenerator = Generator | Tiger
KINDS: dict[str, type[Generator] | type[Tiger]] = {"generative": Generator, "tiger": Tiger, "onerec": OneRec}


def make(kind: str, config: Any, facts: PlaceFacts, index: Index, item_columns: int, user_columns: int) -> AnyGenerator:
    """A generative ranker without its tables; see ``Generator``."""
    return KINDS[kind](config, facts, index, item_columns, user_columns)


def lists_of(
    generator: AnyGenerator,
    q: Questions,
    rows: Tensor,
    users: Tensor,
    allowed: Allowed,
    k: int,
    seen: Tensor | None = None,
    new: int = 0,
    beams: int = 0,
) -> Lists:
    """Up to k items a request, best first: see ``decoding.best``.

    OneRec writes lists for a session, each item given those before it, and p is that of an item there; with ``new`` it
    lists as the others do.

    Args:
        generator, q, rows, users: as for its ``score``.
        allowed, k, seen, new: as for ``decoding.best``.
        beams: look for the items with so many beams, k at least; 0: score all that is allowed.

    Raises:
        ValueError: beams with some new items: what beams find may have too few of them.
    """
    if new and new == k and seen is not None:
        allowed, new, seen = allowed.keep(~seen), 0, None
    if beams and new:
        raise ValueError(
            f"new: got {new} with beams, expected 0 or k = {k}; score all places (beams 0) for some new ones"
        )
    if isinstance(generator, OneRec) and not new:
        return generator.lists(q, rows, users, allowed, k=k, beams=beams)
    if beams:
        return generator.beam(q, rows, users, allowed=allowed, beams=beams, k=k)
    return best(generator.score(q, rows, users, allowed=allowed), allowed, k, seen, new)
