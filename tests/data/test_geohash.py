"""GeoHash against known codes and against the algorithm as it is usually written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placerank.data.geohash import ALPHABET, geohash_decode, geohash_encode

KNOWN = [
    (42.6, -5.6, "ezs42"),  # Wikipedia
    (57.64911, 10.40744, "u4pruydqqvj"),  # Wikipedia, geohash.org
    (-25.382708, -49.265506, "6gkzwgjzn820"),  # python-geohash
    (37.8324, 112.5584, "ww8p1r4t8"),  # ngeohash
    (0.0, 0.0, "s00000000000"),
    (90.0, 180.0, "zzzzzzzzzzzz"),
    (-90.0, -180.0, "000000000000"),
    (90.0, -180.0, "bpbpbpbpbpbp"),
    (-90.0, 180.0, "pbpbpbpbpbpb"),
    (-0.0001, -179.9999, "2pbpbp"),
]

latitudes = st.floats(-90, 90) | st.sampled_from([-90.0, -45.0, -5e-324, 0.0, 45.0, 90.0])
longitudes = st.floats(-180, 180) | st.sampled_from([-180.0, -1e-20, 0.0, 90.0, 180.0])


def halving(lat: float, lon: float, precision: int) -> str:
    """The textbook loop."""
    low, high, bits = [-180.0, -90.0], [180.0, 90.0], []
    for turn in range(5 * precision):
        axis, value = turn % 2, (lon, lat)[turn % 2]
        middle = (low[axis] + high[axis]) / 2
        bits.append(value >= middle)
        (low if value >= middle else high)[axis] = middle
    fives = [bits[i : i + 5] for i in range(0, len(bits), 5)]
    return "".join(ALPHABET[sum(bit << (4 - i) for i, bit in enumerate(five))] for five in fives)


@pytest.mark.parametrize(("lat", "lon", "code"), KNOWN)
def test_known_codes(lat: float, lon: float, code: str) -> None:
    for precision in range(1, len(code) + 1):
        assert geohash_encode(lat, lon, precision) == code[:precision]
    cell = geohash_decode(code)
    assert abs(cell.lat - lat) <= cell.lat_error and abs(cell.lon - lon) <= cell.lon_error


@given(latitudes, longitudes, st.integers(1, 12))
def test_encode_is_repeated_halving_and_decode_is_the_way_back(lat: float, lon: float, precision: int) -> None:
    code = geohash_encode(lat, lon, precision)
    assert code == halving(lat, lon, precision)
    cell = geohash_decode(code)
    assert abs(cell.lat - lat) <= cell.lat_error and abs(cell.lon - lon) <= cell.lon_error
    assert cell.lon_error == 180 / 2 ** ((5 * precision + 1) // 2) and cell.lat_error == 90 / 2 ** (5 * precision // 2)
    assert geohash_encode(cell.lat, cell.lon, precision) == code


@given(st.lists(st.text(ALPHABET, min_size=1, max_size=12), min_size=1, max_size=9))
def test_decode_takes_codes_of_different_lengths(codes: list[str]) -> None:
    cells = geohash_decode(codes)
    for i, code in enumerate(codes):
        assert tuple(x[i] for x in cells) == tuple(geohash_decode(code))
        assert geohash_encode(cells.lat[i], cells.lon[i], len(code)) == code


def test_shapes() -> None:
    lat = np.linspace(-90, 90, 6).reshape(2, 3)
    codes = geohash_encode(lat, lat, 7)
    assert codes.shape == (2, 3) and codes.dtype == np.dtype("<U7") and geohash_decode(codes).lat.shape == (2, 3)
    assert geohash_encode([], []).shape == (0,) and geohash_decode([]).lat.shape == (0,)
    assert geohash_decode(np.array(["u4", "ezs42"], dtype="S")).lat_error.tolist() == [90 / 2**5, 90 / 2**12]


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"lat: got 91\.0 at 1, expected degrees from -90 to 90"):
        geohash_encode([0, 91], [0, 0])
    with pytest.raises(ValueError, match="lon: got nan at 0"):
        geohash_encode([0, 1], [np.nan, 0])
    with pytest.raises(ValueError, match="precision: got 13, expected 1 to 12"):
        geohash_encode(0, 0, 13)
    with pytest.raises(ValueError, match="expected one shape"):
        geohash_encode([0, 1], [0])
    for bad in ("", "u4a", "U4", "u4pruydqqvjzz", "u4ï"):
        with pytest.raises(ValueError, match=f"GeoHash '{bad}' at 1: expected 1 to 12 characters"):
            geohash_decode(["u4", bad])
    with pytest.raises(ValueError, match="got int64, expected GeoHash strings"):
        geohash_decode([42])
