"""Tiles of near points: the order is a Hilbert curve, and no pair within the chord is in tiles that are skipped."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels import tiles_triton
from placerank.kernels.haversine import EARTH_RADIUS_KM, unit_vectors
from placerank.kernels.tiles import (
    _hilbert,
    _interleave,
    _keys_cpu,
    chord_of_km,
    curve_keys,
    curve_order,
    curve_table,
    reachable_tiles,
    tile_bounds,
)

NAN = math.nan


def spread(n: int, degrees: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    lat = 52.37 + degrees * torch.randn(n, generator=g, dtype=torch.float64)
    lon = 4.9 + degrees * torch.randn(n, generator=g, dtype=torch.float64)
    return unit_vectors(lat, lon).to(dtype)


def test_hilbert_visits_every_cell_once_and_only_moves_to_neighbours() -> None:
    side = 16
    cells = torch.cartesian_prod(*[torch.arange(side)] * 3)
    index = _hilbert(_interleave(cells.T))
    walk = cells[index.argsort()]
    # The lowest side of a cube is the start of the curve in it, whatever its number of bits.
    assert torch.equal(index.sort().values, torch.arange(side**3))
    assert torch.equal((walk[1:] - walk[:-1]).abs().sum(1), torch.ones(side**3 - 1, dtype=torch.int64))


def test_interleave_uses_every_bit() -> None:
    g = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 1 << 21, (50, 3), generator=g)
    for key, row in zip(_interleave(cells.T).tolist(), cells.tolist(), strict=True):
        assert key == sum(((c >> b) & 1) << (3 * b + a) for a, c in enumerate(row) for b in range(21))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [30.0, 0.1, 0.003])
def test_order_is_spatial_at_every_scale(degrees: float, dtype: torch.dtype) -> None:
    places = spread(4096, degrees, 0, dtype)
    order = curve_order(places)
    assert torch.equal(order.sort().values, torch.arange(4096))
    step = (places[order][1:] - places[order][:-1]).norm(dim=1).mean()
    random_step = (places[1:] - places[:-1]).norm(dim=1).mean()
    assert step < random_step / 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [80.0, 0.1, 1e-6, 0.0])
def test_compiled_keys_are_the_same(degrees: float, dtype: torch.dtype) -> None:
    places = spread(999, degrees, 0, dtype)
    places[5, 0], places[77], places[100, 2] = NAN, NAN, -math.inf
    for some in (places, places[:1], places[77:78]):
        assert torch.equal(
            curve_keys(some), torch.from_numpy(_keys_cpu(some.numpy(), curve_table(some.device).numpy()))
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Triton's kernels are compiled, not interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [80.0, 0.1, 1e-6, 0.0])
def test_triton_gives_the_same_keys_and_bounds(
    degrees: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles_triton, "BLOCK", 64)
    places = spread(199, degrees, 0, dtype)
    places[5, 0], places[77], places[100, 2] = NAN, NAN, -math.inf
    for some in (places, places[:1], places[77:78]):
        got, want = tiles_triton.curve_keys_triton(some), curve_keys(some)
        assert torch.equal(got, want)
        for tile in (3, 64):
            for own, reference in zip(
                tiles_triton.tile_bounds_triton(some.T.contiguous().T, tile), tile_bounds(some, tile), strict=True
            ):
                torch.testing.assert_close(own, reference, rtol=1e-6, atol=1e-12)


def test_order_is_stable_and_puts_what_is_no_place_last() -> None:
    a, b = unit_vectors(torch.tensor([10.0, 20.0]), torch.tensor([0.0, 0.0]))
    nan = torch.full((3,), NAN)
    half = torch.tensor([NAN, 0.0, 0.0])
    order = curve_order(torch.stack([nan, b, a, half, b, a, b])).tolist()
    assert order in ([2, 5, 1, 4, 6, 0, 3], [1, 4, 6, 2, 5, 0, 3])
    assert curve_order(torch.full((4, 3), NAN)).tolist() == [0, 1, 2, 3]
    assert curve_order(a.expand(5, 3)).tolist() == [0, 1, 2, 3, 4]
    assert curve_order(torch.zeros(0, 3)).shape == (0,)
    with pytest.raises(ValueError, match=r"got \[4, 2\] torch.float32, expected unit vectors \[N, 3\]"):
        curve_order(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="tile: got 0"):
        tile_bounds(a.expand(5, 3), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "tile"), [(1, 4), (13, 4), (64, 64), (1000, 7)])
def test_bounds_hold_their_points(n: int, tile: int, dtype: torch.dtype) -> None:
    places = spread(n, 0.1, n, dtype)
    places = places[curve_order(places)]
    centres, radii = tile_bounds(places, tile)
    assert centres.shape == (-(-n // tile), 3) and radii.shape == (-(-n // tile),)
    for i, run in enumerate(places.split(tile)):
        exact = (run.double() - centres[i].double()).norm(dim=1).max()
        assert exact <= radii[i] and radii[i] <= exact * 1.001 + 1e-15


def test_tiles_without_a_place_are_never_reached() -> None:
    places = torch.cat([spread(3, 0.1, 0), torch.full((5, 3), NAN)])
    centres, radii = tile_bounds(places, 2)
    assert radii.isinf().tolist() == [False, False, True, True] and bool((radii[2:] < 0).all())
    for chord in (chord_of_km(1.0), math.inf):
        offsets, tiles = reachable_tiles(centres, radii, centres, radii, chord)
        assert offsets.tolist()[2:] == [len(tiles)] * 3 and bool((tiles < 2).all())
    assert reachable_tiles(centres, radii, centres, radii, math.inf)[1].tolist() == [0, 1, 0, 1]
    assert reachable_tiles(centres, radii, centres, radii, NAN)[1].tolist() == []
    empty = tile_bounds(places[:0], 2)
    assert reachable_tiles(*empty, *empty, 1.0)[0].tolist() == [0]
    assert reachable_tiles(centres, radii, *empty, 1.0)[0].tolist() == [0] * 5


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 120),
    tile=st.integers(1, 9),
    degrees=st.sampled_from([0.0, 1e-6, 0.002, 0.5, 80.0]),
    km=st.sampled_from([0.0, 1e-4, 0.3, 40.0, 9000.0, 20015.0, 30000.0]),
    single=st.booleans(),
    seed=st.integers(0, 999),
)
def test_no_pair_within_reach_is_skipped(n: int, tile: int, degrees: float, km: float, single: bool, seed: int) -> None:
    places = spread(n, degrees, seed, torch.float32 if single else torch.float64)
    places = places[curve_order(places)]
    chord = chord_of_km(torch.full((-(-n // tile),), km, dtype=torch.float64))
    within = (places[:, None] - places).pow(2).sum(2) <= chord.pow(2).to(places.dtype)[0]
    a, b = torch.nonzero(within, as_tuple=True)
    bounds = tile_bounds(places, tile)
    offsets, tiles = reachable_tiles(*bounds, *bounds, chord)
    reached = torch.zeros(len(chord), len(chord), dtype=torch.bool)
    for i in range(len(chord)):
        row = tiles[offsets[i] : offsets[i + 1]]
        assert bool((row.diff() > 0).all())
        reached[i, row] = True
    assert bool(reached[a // tile, b // tile].all())


def test_far_tiles_are_skipped() -> None:
    places = spread(8192, 0.1, 1)
    places = places[curve_order(places)]
    bounds = tile_bounds(places, 64)
    _, tiles = reachable_tiles(*bounds, *bounds, chord_of_km(1.0))
    assert len(tiles) < 0.25 * 128**2


@pytest.mark.parametrize(("pairs", "dtype"), [(1, torch.float64), (1 << 24, torch.float32)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (600, 3), (70, 600), (600, 70), (5, 0), (0, 5)])
def test_lists_without_a_wait_are_the_same(
    n: int, m: int, dtype: torch.dtype, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Triton's interpreter; a tile of nothing reaches nothing, nor does one whose chord is no number."""
    monkeypatch.setattr(tiles_triton, "PAIRS", pairs)
    places, others = spread(n, 0.1, 0, dtype), spread(m, 0.1, 1, dtype)
    places[n // 2 :: 7] = NAN
    bounds = *tile_bounds(places[curve_order(places)], 2), *tile_bounds(others[curve_order(others)], 2)
    chord = torch.linspace(-0.0001, 0.003, -(-n // 2), dtype=dtype)
    chord[::5], chord[1::5] = NAN, math.inf
    offsets, tiles = reachable_tiles(*bounds, chord)
    counts, listed = [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int32)]
    for first, own, theirs in tiles_triton.reachable_tiles_triton(*bounds, chord):
        assert first == sum(len(x) for x in counts)
        counts.append(own)
        listed += [row[:count] for row, count in zip(theirs, own.tolist(), strict=True)]
    assert torch.equal(torch.cat(counts).long(), offsets.diff())
    assert torch.equal(torch.cat(listed).long(), tiles)


def test_chord_of_km() -> None:
    kilometres = [0.0, 1e-5, 10.0, 10007.5, 20015.2, 20015.0, 20015.0868, 1e9, math.inf]
    tensor = chord_of_km(torch.tensor(kilometres, dtype=torch.float64))
    assert tensor.tolist() == pytest.approx([chord_of_km(km) for km in kilometres], rel=1e-15)
    assert chord_of_km(10007.5571) == pytest.approx(math.sqrt(2), rel=1e-7)
    assert chord_of_km(1e-5) == pytest.approx(1e-5 / EARTH_RADIUS_KM, rel=1e-12)
    assert chord_of_km(20015.0) < 2 and chord_of_km(20015.2) == math.inf
    assert all(math.isnan(chord_of_km(km)) for km in (-1.0, NAN))
    single = chord_of_km(torch.tensor([-1.0, NAN, 5.0]))
    assert (
        isinstance(single, Tensor) and single.dtype == torch.float32 and single.isnan().tolist() == [True, True, False]
    )
