"""Negatives within reach: uniform draws among the items at most some kilometres from a place."""

import numpy as np
from numpy.typing import NDArray

from ...kernels.earth import EARTH_RADIUS_KM, on_sphere
from ..arrays import ranges

_BANDS_PER_REACH = 3  # finer bands fit the disc better, and cost more look-ups a place
_DRAWS = 2_000_000  # candidates looked at together: what bounds the memory
_SMALLEST_BAND = 1e-3  # degrees

Floats = NDArray[np.floating]


class Reach:
    """Items ordered so that those near any place lie in a few contiguous runs, to draw from without listing them.

    Items are sorted by (latitude band, longitude). The disc of radius ``km`` around a place cuts each band in at
    most one interval of longitudes, so about eight binary searches give runs that cover the disc. A uniform
    draw from the runs that is kept when it lies in the disc is a uniform draw from the disc. The cost of a place
    does not grow with the number of items near it, and no neighbour lists are stored.

    Args:
        lat, lon: places of the items in degrees, [I].
        km: the reach, greater than 0.
    """

    def __init__(self, lat: Floats, lon: Floats, km: float) -> None:
        self.radius = min(km / EARTH_RADIUS_KM, np.pi)
        self.band = max(np.rad2deg(self.radius) / _BANDS_PER_REACH, _SMALLEST_BAND)
        band, lon = self._band_of(lat), np.asarray(lon, np.float64)
        self.order = np.lexsort((lon, band))
        self.key = self._key(band, lon)[self.order]
        self.unit = on_sphere(lat, lon)

    def _band_of(self, lat: Floats) -> NDArray[np.float64]:
        return np.floor((np.asarray(lat, np.float64) + 90) / self.band)

    @staticmethod
    def _key(band: Floats, lon: Floats) -> NDArray[np.float64]:
        return band * 1024 + lon

    def within(self, lat: Floats, lon: Floats, item: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Is the item within reach of the place? lat, lon [...] and item rows [...], bool [...]; NaN: no."""
        return self._near(on_sphere(lat, lon), item)

    def _near(self, unit: NDArray[np.float64], item: NDArray[np.integer]) -> NDArray[np.bool_]:
        chord = ((unit - self.unit[item]) ** 2).sum(-1)
        return chord <= 4 * np.sin(self.radius / 2) ** 2

    def _runs(self, lat: Floats, lon: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First position in ``order`` and length of the runs that cover each disc, int64 [n, runs] each."""
        lat, lon = np.asarray(lat, np.float64)[:, None], np.asarray(lon, np.float64)[:, None]
        reach = np.rad2deg(self.radius)
        bands = self._band_of(lat - reach) + np.arange(int(2 * reach / self.band) + 2)
        low, high = bands * self.band - 90, (bands + 1) * self.band - 90
        nearest = np.deg2rad(np.clip(lat, low, high) - lat)
        cosine = np.maximum(np.minimum(np.cos(np.deg2rad(low)), np.cos(np.deg2rad(high))), 1e-12)
        chord = np.sin(self.radius / 2) ** 2 - np.sin(nearest / 2) ** 2 + 1e-14  # a metre wider: a cover, not the disc
        ratio = np.clip(chord / (cosine * np.maximum(np.cos(np.deg2rad(lat)), 1e-12)), 0, 1)
        width = np.minimum(np.rad2deg(2 * np.arcsin(np.sqrt(ratio))) + 1e-7, 180)
        width = np.where(chord > 0, width, -1)  # the band lies outside of the disc
        west, east = lon - width, lon + width
        pieces = [(np.maximum(west, -180), np.minimum(east, 180), bands)]
        wraps = (west < -180) | (east > 180)
        if wraps.any():  # the disc crosses the antimeridian: the rest lies at the other end of the band
            pieces.append((np.where(west < -180, west + 360, -180), np.where(east > 180, east - 360, 180), bands))
        starts, lengths = [], []
        for i, (left, right, band) in enumerate(pieces):
            start = np.searchsorted(self.key, self._key(band, left), "left")
            length = np.searchsorted(self.key, self._key(band, right), "right") - start
            inside = (width >= 0) & (wraps if i else True)
            starts.append(start)
            lengths.append(np.where(inside, np.maximum(length, 0), 0))
        return np.concatenate(starts, 1), np.concatenate(lengths, 1)

    def every(self, lat: Floats, lon: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All items within reach of each place, in the order of their rows.

        Args:
            lat, lon: places in degrees, [n]; NaN has none.

        Returns:
            Offsets, int64 [n+1], and item rows, int64 [offsets[n]].
        """
        lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
        known = np.isfinite(lat) & np.isfinite(lon)
        lat, lon = np.where(known, lat, 0), np.where(known, lon, 0)
        unit, (start, length) = on_sphere(lat, lon), self._runs(lat, lon)
        length[~known] = 0
        counts, parts = np.zeros(len(lat), np.int64), [np.empty(0, np.int64)]
        cuts = np.flatnonzero(np.diff(np.cumsum(length.sum(1)) // _DRAWS)) + 1
        for rows in np.split(np.arange(len(lat)), cuts):
            place = np.repeat(rows, length[rows].sum(1))
            item = self.order[ranges(start[rows].ravel(), length[rows].ravel())]
            keep = self._near(unit[place], item)
            place, item = place[keep], item[keep]
            order = np.lexsort((item, place))
            place, item = place[order], item[order]
            again = (place[1:] == place[:-1]) & (
                item[1:] == item[:-1]
            )  # where two runs meet, on the other side of a pole
            place, item = (np.delete(x, 1 + np.flatnonzero(again)) for x in (place, item))
            parts.append(item)
            counts += np.bincount(place, minlength=len(lat))
        return np.concatenate([[0], np.cumsum(counts)]), np.concatenate(parts)

    def draw(
        self, lat: Floats, lon: Floats, exclude: NDArray[np.integer], k: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Draw ``k`` different items within reach of each place, uniformly, without the excluded one.

        Args:
            lat, lon: places in degrees, [n].
            exclude: one item row a place that is never drawn, [n].
            k: items a place.
            rng: decides the draws.

        Returns:
            Item rows, int64 [n, k]; -1 at the end of a row where fewer than ``k`` are within reach.
        """
        out = np.full((len(lat), k), -1, np.int64)
        attempts = 2 * k + 16
        block = max(_DRAWS // attempts, 1)
        for at in range(0, len(lat) if k else 0, block):
            rows = slice(at, at + block)
            unit = on_sphere(lat[rows], lon[rows])
            start, length = self._runs(lat[rows], lon[rows])
            many = length.sum(1) > 4 * (k + 1)
            done = np.zeros(len(unit), bool)
            if many.any():
                drawn, enough = self._try(start[many], length[many], unit[many], exclude[rows][many], k, attempts, rng)
                done[many] = enough
                out[rows][done] = drawn[enough]
            left = np.flatnonzero(~done)
            cuts = np.flatnonzero(np.diff(np.cumsum(length[left].sum(1)) // _DRAWS)) + 1
            for part in np.split(left, cuts):
                out[np.arange(len(lat))[rows][part]] = self._list(
                    start[part], length[part], unit[part], exclude[rows][part], k, rng
                )
        return out

    def _try(
        self,
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        unit: NDArray[np.float64],
        exclude: NDArray[np.integer],
        k: int,
        attempts: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Draw, keep what is in the disc and new; also says for which places that gave ``k``."""
        upto = np.cumsum(length, 1)
        ticket = (rng.random((len(unit), attempts)) * upto[:, -1:]).astype(np.int64)
        run = np.zeros_like(ticket)
        for end in upto.T:
            run += ticket >= end[:, None]
        offset = np.take_along_axis(start - (upto - length), run, 1)
        item = self.order[ticket + offset]
        keep = self._near(unit[:, None, :], item) & (item != exclude[:, None])
        by_item = np.argsort(item, axis=1, kind="stable")
        ordered = np.take_along_axis(item, by_item, 1)
        again = np.zeros_like(keep)
        np.put_along_axis(again, by_item[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
        keep &= ~again
        first = np.argsort(~keep, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(item, first, 1), keep.sum(1) >= k

    def _list(
        self,
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        unit: NDArray[np.float64],
        exclude: NDArray[np.integer],
        k: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """List all items within reach, and take ``k`` of them in random order."""
        place = np.repeat(np.arange(len(unit)), length.sum(1))
        item = self.order[ranges(start.ravel(), length.ravel())]
        keep = self._near(unit[place], item) & (item != exclude[place])
        place, item = place[keep], item[keep]
        by_place = np.lexsort((rng.random(len(item)), place))
        place, item = place[by_place], item[by_place]
        rank = np.arange(len(item)) - np.searchsorted(place, place)
        out = np.full((len(unit), k), -1, np.int64)
        out[place[rank < k], rank[rank < k]] = item[rank < k]
        return out
