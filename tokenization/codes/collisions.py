"""Suffix tokens: items that share all codes are told apart by 0, 1, 2, ... in the order in which they arrived.

The suffix of an item is decided when it arrives and depends only on those that were there before, so adding items
changes nobody's ID.
"""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]
_DENSE = 4  # so many possible values an item are counted in a table; more are sorted


def id_numbers(codes: Codes) -> NDArray[np.int64]:
    """A number for each different row of codes [N, L]: int64 [N], equal where all L codes are; ordered as the rows are.

    One level is joined after the other, so that K^L may be beyond 64 bits. Takes 16 to 32 bytes an item.
    """
    number, values = np.zeros(len(codes), np.int64), 1
    if len(codes) == 0:
        return number
    for level in codes.T:
        least = int(level.min())
        wide = int(level.max()) - least + 1
        if values * wide > _DENSE * len(codes):  # of so many that could be, few are
            number, values = _numbered(number, values)
        number *= wide
        number += level
        number -= least
        values *= wide
    return _numbered(number, values)[0]


def _numbered(key: NDArray[np.int64], values: int) -> tuple[NDArray[np.int64], int]:
    """Keys of [0, values) numbered as they are ordered, without gaps, and how many different ones there are."""
    if values <= _DENSE * len(key):
        used = np.zeros(values, bool)
        used[key] = True
        rank = np.cumsum(used, dtype=np.int32)
        return rank[key].astype(np.int64) - 1, int(rank[-1])
    unique = np.unique(key)
    return np.searchsorted(unique, key), len(unique)


def assign_suffixes(
    codes: Codes, known_codes: Codes | None = None, known_suffixes: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """The suffix of each item, int64 [N]: how many of its codes were there before it, in the order of the rows.

    Args:
        codes: of the items that arrive, [N, L].
        known_codes, known_suffixes: [M, L] and [M] of the items that are there. Where some of them have left, their
            suffixes are not given again: new ones go on after the largest.

    Raises:
        ValueError: codes of another number of levels, or suffixes that don't belong to the codes.
    """
    if known_codes is None or known_suffixes is None:
        known_codes, known_suffixes = codes[:0], np.zeros(0, np.int64)
    if known_codes.shape[1] != codes.shape[1] or len(known_codes) != len(known_suffixes):
        raise ValueError(
            f"got known codes {known_codes.shape} and {len(known_suffixes)} suffixes for codes {codes.shape}, "
            "expected the same number of levels and one suffix each"
        )
    number = id_numbers(np.concatenate([known_codes, codes]) if len(known_codes) else codes)
    before, mine = number[: len(known_codes)], number[len(known_codes) :]
    next_free = np.zeros(int(number.max(initial=-1)) + 1, np.int64)
    np.maximum.at(next_free, before, known_suffixes.astype(np.int64) + 1)
    order = np.argsort(mine, kind="stable")
    ordered = mine[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    within = np.arange(len(ordered))
    within -= np.repeat(starts, np.diff(starts, append=len(ordered)))
    within += next_free[ordered]
    suffixes = np.empty(len(codes), np.int64)
    suffixes[order] = within
    return suffixes


def collisions(codes: Codes) -> dict[str, float | int]:
    """How far codes [N, L] are from naming items: as they come, without a suffix or with it as the last column.

    Returns:
        ``items``; ``ids`` that differ; ``collision_rate``, the share of items that share all codes with another one;
        ``repeat_rate``, 1 - ids / items, the share of items beyond the first of each ID; ``largest``, the most
        items with one ID.
    """
    counts = np.bincount(id_numbers(codes)) if len(codes) else np.zeros(0, np.int64)
    items = len(codes)
    return {
        "items": items,
        "ids": len(counts),
        "collision_rate": float(counts[counts > 1].sum() / max(items, 1)),
        "repeat_rate": 1 - len(counts) / max(items, 1),
        "largest": int(counts.max(initial=0)),
    }
