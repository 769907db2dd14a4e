"""Where items are, as the language model reads it: distinct location texts, and lists of near and far ones.

Several items share a location text (a district's), so [content_i, location_j] is one prompt for all items j of a
district. Lists are therefore drawn over distinct texts: two candidates of a list never read the same, and none reads
as the item's own.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...kernels.earth import EARTH_RADIUS_KM, on_sphere
from ..text.prompts import Prompts

_BLOCK = 4_000_000  # distances that are held at a time


@dataclass(frozen=True)
class Lists:
    """Candidates of n items, the item itself first.

    Attributes:
        items: rows of the items whose places are the candidates, int64 [n, k + 1]; the first is the item.
        km: from the item to each, float64 [n, k + 1]; the first is 0.
    """

    items: NDArray[np.int64]
    km: NDArray[np.float64]

    @property
    def labels(self) -> NDArray[np.float64]:
        """Soft labels p = (K - rank + 1) / K by distance from near to far, [n, k + 1]: 1 for the own place to 0.

        The list holds the own place and K others, so ranks are 1 to K + 1 (LGSID, equation 3, divided by K so that
        labels are probabilities). Places at the same distance share the better rank.
        """
        k = self.km.shape[1] - 1
        rank = (self.km[:, :, None] > self.km[:, None, :]).sum(-1) + 1
        return (k - rank + 1) / k


class Locations:
    """The L distinct location texts of N items.

    Args:
        prompts: of the items.
        lat, lon: degrees [N]; NaN where unknown.

    Attributes:
        code: location of each item, int64 [N]; -1 where text or coordinates are unknown.
        known: rows of items with a location, int64.
        count: items of each location, int64 [L].

    Raises:
        ValueError: fewer than two different location texts, or all items at one point.
    """

    def __init__(self, prompts: Prompts, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> None:
        texts = np.asarray(pc.not_equal(prompts.location, "").to_numpy(zero_copy_only=False))
        usable = texts & np.isfinite(lat) & np.isfinite(lon)
        self.known = np.flatnonzero(usable)
        self.code = np.full(len(prompts), -1)
        _, codes = np.unique(prompts.location_codes[self.known], return_inverse=True)
        self.code[self.known] = codes
        self.count = np.bincount(codes)
        if len(self.count) < 2:
            raise ValueError(
                f"the {len(prompts):,} items have {len(self.count)} different location texts, expected at least 2 to "
                "tell near from far; give province, city or district, or derive districts with "
                "--districts.derive always and a smaller --districts.items-per-district"
            )
        self.points = on_sphere(lat, lon)
        if (np.ptp(self.points[self.known], axis=0) == 0).all():
            raise ValueError(
                f"all {len(self.known):,} items lie at one point ({lat[self.known[0]]}, {lon[self.known[0]]}): "
                "no distance can be learned; check lat and lon"
            )
        self.members = self.known[np.argsort(codes, kind="stable")]  # items by location
        self.first = np.cumsum(self.count) - self.count
        sums = np.add.reduceat(self.points[self.members], self.first)
        self.centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def __len__(self) -> int:
        return len(self.count)

    def km(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """Great-circle km between items, by the chord: exact at short range."""
        chord = np.linalg.norm(self.points[a] - self.points[b], axis=-1)
        return 2 * EARTH_RADIUS_KM * np.arcsin((chord / 2).clip(0, 1))

    def lists(self, items: NDArray[np.int64], k: int, density_aware: bool, rng: np.random.Generator) -> Lists:
        """K other places for each item: k, or as many as there are.

        Density-aware: by neighbour rank. A place takes up the ranks that its items have among the neighbours of
        the item, and is drawn with the share that those ranks have of a line of log ranks: each doubling of the
        rank is as likely as the next. A dense centre so yields places next door, a sparse suburb far ones, and
        every list holds near and far. Otherwise items are drawn at random, wherever they are.
        """
        k = min(k, len(self) - 1)
        others = np.empty((len(items), k), np.int64)
        block = max(1, _BLOCK // len(self))
        for start in range(0, len(items), block):
            rows = items[start : start + block]
            others[start : start + len(rows)] = self._draw(rows, k, density_aware, rng)
        # One item of each location stands for it.
        member = self.members[self.first[others] + rng.integers(0, self.count[others])]
        candidates = np.concatenate([items[:, None], member], axis=1)
        return Lists(candidates, self.km(items[:, None], candidates))

    def _draw(
        self, rows: NDArray[np.int64], k: int, density_aware: bool, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Codes of k distinct locations other than the own, [n, k]: the k largest log-weights plus Gumbel noise."""
        own = self.code[rows]
        if density_aware:
            nearness = self.points[rows] @ self.centres.T
            nearness[np.arange(len(rows)), own] = 2  # the own location takes up the first ranks
            order = np.argsort(-nearness, axis=1, kind="stable")
            last = np.cumsum(self.count[order], axis=1)
            weight = np.empty_like(nearness)
            np.put_along_axis(weight, order[:, 1:], np.log(last[:, 1:] / last[:, :-1]), axis=1)
        else:
            weight = np.repeat(self.count[None].astype(np.float64), len(rows), 0)
        weight[np.arange(len(rows)), own] = 0
        with np.errstate(divide="ignore"):
            keys = np.log(weight) + rng.gumbel(size=weight.shape)
        return np.argpartition(-keys, k - 1, axis=1)[:, :k]

    def elsewhere(self, *items: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """For each row a random item whose location is none of the given items' [n]; -1 where there is none."""
        n = len(items[0])
        drawn, open_rows = np.full(n, -1), np.arange(n)
        for _ in range(64):
            if not len(open_rows):
                break
            guess = self.known[rng.integers(0, len(self.known), len(open_rows))]
            fits = np.all([self.code[guess] != self.code[given[open_rows]] for given in items], axis=0)
            drawn[open_rows[fits]] = guess[fits]
            open_rows = open_rows[~fits]
        return drawn
