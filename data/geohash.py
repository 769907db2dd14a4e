"""GeoHash (Niemeyer, 2008): a place as a short string whose prefixes are the larger cells around it.

Each character is five halvings of the cell, longitude and latitude in turn, so the characters at even positions take
three bits of longitude and two of latitude, those at odd positions the other way round. A cell of 5 characters is about
5 km across, one of 6 about 1 km, one of 8 about 30 m.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"
LONGEST = 12  # characters: 30 bits an axis, 2 cm by 4 cm

_LETTERS = np.frombuffer(ALPHABET.encode(), np.uint8)
_VALUES = np.full(128, -1)
_VALUES[_LETTERS] = np.arange(32)
# A character's five bits are a2 b1 a1 b0 a0 of the axis that has three, a, and the one that has two, b.
_OF_THREE = np.array([(v >> 4 & 1) << 2 | (v >> 2 & 1) << 1 | v & 1 for v in range(32)])
_OF_TWO = np.array([(v >> 3 & 1) << 1 | v >> 1 & 1 for v in range(32)])
_CHARACTER = np.empty((8, 4), np.uint8)
_CHARACTER[_OF_THREE, _OF_TWO] = _LETTERS


class Cells(NamedTuple):
    """Centres of cells in degrees, and half their height and width: the cell is lat ± lat_error, lon ± lon_error."""

    lat: np.ndarray
    lon: np.ndarray
    lat_error: np.ndarray
    lon_error: np.ndarray


def geohash_encode(lat: ArrayLike, lon: ArrayLike, precision: int = 9) -> np.ndarray:
    """GeoHash of each place.

    Args:
        lat, lon: degrees, -90 to 90 and -180 to 180, same shape; numbers or arrays.
        precision: characters, 1 to 12.

    Returns:
        strings, shape of ``lat``, dtype ``<U{precision}``. The edge between two cells belongs to the northern and to
        the eastern one, but for latitude 90 and longitude 180, where there is no other.

    Raises:
        ValueError: shapes or precision that do not fit; NaN or a number out of range, with the first one's index.
    """
    if not 1 <= precision <= LONGEST:
        raise ValueError(f"precision: got {precision}, expected 1 to {LONGEST} characters")
    lat, lon = np.asarray(lat, np.float64), np.asarray(lon, np.float64)
    if lat.shape != lon.shape:
        raise ValueError(f"got lat of shape {lat.shape} and lon of shape {lon.shape}, expected one shape")
    bits = 5 * precision
    places = {0: _cells("lon", lon.ravel(), 180, (bits + 1) // 2), 1: _cells("lat", lat.ravel(), 90, bits // 2)}
    letters = np.empty((lat.size, precision), np.uint8)
    for position in reversed(range(precision)):
        three, two = position % 2, 1 - position % 2
        letters[:, position] = _CHARACTER[places[three] & 7, places[two] & 3]
        places[three] >>= 3
        places[two] >>= 2
    return letters.view(f"S{precision}")[:, 0].astype(f"U{precision}").reshape(lat.shape)


def geohash_decode(codes: ArrayLike) -> Cells:
    """Cells of GeoHashes: strings of 1 to 12 characters, not all of one length, any shape; lower case.

    Raises:
        ValueError: an empty or too long string, or a character that GeoHash does not have, with the first one's index.
    """
    codes = np.asarray(codes)
    if codes.size and codes.dtype.kind not in "US":
        raise ValueError(f"got {codes.dtype}, expected GeoHash strings")
    flat = codes.astype("U").ravel()
    letters = flat.view(np.uint32).reshape(flat.size, -1) if flat.size else np.zeros((0, 1), np.uint32)
    ends = letters == 0
    values = np.where(letters < 128, _VALUES[np.minimum(letters, 127)], -1)
    bad = ((values < 0) & ~ends).any(1) | ends[:, 0] | (~ends[:, LONGEST:]).any(1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"GeoHash {str(flat[row])!r} at {row}: expected 1 to {LONGEST} characters of {ALPHABET} (no a, i, l, o)"
        )
    cells = {axis: np.zeros(flat.size, np.int64) for axis in (0, 1)}
    bits = {axis: np.zeros(flat.size, np.int64) for axis in (0, 1)}
    for position in range(min(letters.shape[1], LONGEST)):
        more = ~ends[:, position]
        for axis, part, width in ((position % 2, _OF_THREE, 3), (1 - position % 2, _OF_TWO, 2)):
            cells[axis] = np.where(more, cells[axis] << width | part[values[:, position]], cells[axis])
            bits[axis] += width * more
    lon_error, lat_error = (half / 2.0 ** bits[axis] for axis, half in ((0, 180), (1, 90)))
    lon, lat = ((2 * cells[axis] + 1) * error - half for axis, error, half in ((0, lon_error, 180), (1, lat_error, 90)))
    return Cells(*(x.reshape(codes.shape) for x in (lat, lon, lat_error, lon_error)))


def _cells(name: str, degrees: np.ndarray, half: int, bits: int) -> np.ndarray:
    """Number of the cell, of 2^bits between -half and half, that each place is in: exactly that of repeated halving."""
    bad = ~(np.abs(degrees) <= half)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}: got {degrees[row]} at {row}, expected degrees from -{half} to {half}")
    width = 2.0 * half / 2**bits  # 45 times a power of two: the edges below are exact
    cell = np.floor((degrees + half) / width).astype(np.int64)
    cell -= degrees < cell * width - half
    cell += degrees >= (cell + 1) * width - half
    return np.minimum(cell, 2**bits - 1)
