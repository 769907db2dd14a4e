"""Preference pairs for G-DPO: which location goes better with a content (LGSID, section 4.2.2).

A pair is two prompts with the same content: [content, preferred location] and [content, rejected location].

* Geographic (D_gc): preferred is the item's own place, rejected a random place outside of it.
* Collaborative (D_dc): for items a and b that many users both visit, preferred is [content_a, location_b], since users
  carry a's content to b's place; rejected is a random place that is neither's. One random negative a pair, as in the
  paper's settings. The paper leaves open how a pair of items that are both liked becomes preferred and rejected; this
  reading keeps the reward model's question (does this content go with that location) the only one that is asked.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .locations import Locations

GEOGRAPHIC, COLLABORATIVE = 0, 1


@dataclass(frozen=True)
class PreferencePairs:
    """P pairs of prompts, as rows of items.

    Attributes:
        content: whose content both prompts have, int64 [P].
        preferred, rejected: whose locations, int64 [P].
        kind: GEOGRAPHIC or COLLABORATIVE, int8 [P].
    """

    content: NDArray[np.int64]
    preferred: NDArray[np.int64]
    rejected: NDArray[np.int64]
    kind: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.content)

    def take(self, rows: NDArray[np.int64]) -> "PreferencePairs":
        """Some pairs."""
        return PreferencePairs(self.content[rows], self.preferred[rows], self.rejected[rows], self.kind[rows])

    @staticmethod
    def join(*parts: "PreferencePairs") -> "PreferencePairs":
        """Pairs of several kinds, one after the other."""
        names = ("content", "preferred", "rejected", "kind")
        return PreferencePairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def geographic_pairs(locations: Locations, count: int, rng: np.random.Generator) -> PreferencePairs:
    """``count`` pairs of the same content at the item's own place and at another; items in turn, shuffled."""
    turns = -(-count // len(locations.known))
    items = np.concatenate([rng.permutation(locations.known) for _ in range(turns)])[:count]
    return _with_rejected(items, items, GEOGRAPHIC, locations, rng)


def collaborative_pairs(
    a: NDArray[np.int64], b: NDArray[np.int64], locations: Locations, count: int, rng: np.random.Generator
) -> PreferencePairs:
    """At most ``count`` pairs from items visited together, each of the two equally likely to give the content."""
    both = np.flatnonzero((locations.code[a] >= 0) & (locations.code[b] >= 0))
    drawn = rng.permutation(both)[:count]
    turned = rng.random(len(drawn)) < 0.5
    content, place = np.where(turned, b[drawn], a[drawn]), np.where(turned, a[drawn], b[drawn])
    return _with_rejected(content, place, COLLABORATIVE, locations, rng)


def _with_rejected(
    content: NDArray[np.int64], place: NDArray[np.int64], kind: int, locations: Locations, rng: np.random.Generator
) -> PreferencePairs:
    """Draw the rejected places; pairs for which there is none (all items are at one of the two) are left out."""
    rejected = locations.elsewhere(content, place, rng=rng)
    kept = rejected >= 0
    return PreferencePairs(content[kept], place[kept], rejected[kept], np.full(int(kept.sum()), kind, np.int8))
