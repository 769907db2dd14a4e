"""The sampler: every path equals the reference, on random and on ugly batches."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_waits import host_waits
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.kernels import tiles_triton
from placerank.kernels.hard_negatives import (
    HardNegatives,
    arguments,
    hard_negatives,
    hard_negatives_reference,
    random_keys,
    random_scores,
    solve,
)
from placerank.kernels.hard_negatives_triton import hard_negatives_triton
from placerank.kernels.haversine import haversine_km, unit_vectors
from placerank.kernels.places import TILE, Places, gather_places, sort_places
from placerank.kernels.places_triton import put_in_order
from placerank.kernels.tiles import tile_bounds

DEFAULTS: dict[str, Any] = {
    "k": 9,
    "negative_km": 10.0,
    "positive_km": 30.0,
    "different_category": True,
    "negatives": "hardest",
    "positives": "hardest",
    "seed": 0,
}


def triton_path(queries: Places, candidates: Places | None = None, **options: Any) -> HardNegatives:
    options = DEFAULTS | options
    return HardNegatives(*solve(hard_negatives_triton, *arguments(queries, candidates, **options)))


PATHS = {"cpu": hard_negatives, "triton": triton_path}
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def make_places(
    rows: int,
    dim: int = 16,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    around: tuple[float, float] = (48.2, 16.4),
    degrees: float = 0.3,
    ugly: bool = True,
) -> Places:
    """Items around a point: some twice, some without place, category or brand.

    Embeddings are +-1 and D is 4^n in most tests: every path's cosines are exact then, and many are equal.
    """
    g = torch.Generator().manual_seed(seed)
    lat, lon = (torch.rand(2, rows, generator=g, dtype=torch.float64) - 0.5) * 2 * degrees + torch.tensor(
        around, dtype=torch.float64
    ).unsqueeze(1)
    positions = unit_vectors(lat.clamp(-90, 90), lon).float()
    if ugly:
        positions[torch.rand(rows, generator=g) < 0.05] = torch.nan
    items = torch.randint(-(2**62), 2**62, (rows + 1,), generator=g)[torch.randint(0, rows + 1, (rows,), generator=g)]
    return Places(
        items,
        positions,
        (torch.randint(0, 2, (rows, dim), generator=g) * 2 - 1).to(dtype),
        torch.randint(-1 if ugly else 0, 6, (rows,), generator=g),
        torch.randint(-3 if ugly else 0, 9, (rows,), generator=g).int(),
    )


def assert_same(found: HardNegatives, expected: HardNegatives) -> None:
    for name, a, b in zip(HardNegatives._fields, found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        wrong = (a != b).nonzero()
        assert not len(wrong), f"{name}: {len(wrong)} of {a.numel()} differ, first at {wrong[0].tolist()}"


@paths
@pytest.mark.parametrize("rows", [0, 1, 2, 63, 64, 65, 131])
def test_equals_the_reference(path: Callable[..., HardNegatives], rows: int) -> None:
    places = make_places(rows, seed=rows)
    assert_same(path(places, k=5), hard_negatives_reference(places, k=5))


@paths
@pytest.mark.parametrize(("rows", "others"), [(0, 5), (5, 0), (1, 70), (70, 1), (67, 130)])
def test_other_candidates(path: Callable[..., HardNegatives], rows: int, others: int) -> None:
    queries, candidates = make_places(rows, seed=1), make_places(others, seed=2)
    shared = min(rows, others) // 2
    candidates.items[:shared] = queries.items[:shared]
    assert_same(path(queries, candidates, k=3), hard_negatives_reference(queries, candidates, k=3))


OPTIONS: dict[str, dict[str, Any]] = {
    "no distance limit": {"negative_km": math.inf},
    "no limits at all": {"negative_km": math.inf, "positive_km": math.inf},
    "no category filter": {"different_category": False},
    "nothing near": {"negative_km": 0.0, "positive_km": 0.0},
    "random negatives": {"negatives": "random", "seed": 3},
    "random positives": {"positives": "random", "seed": -1},
    "random": {"negatives": "random", "positives": "random", "different_category": False, "seed": 2**40 + 7},
    "one": {"k": 1},
    "more than there are": {"k": 100},
    "positives nearer than negatives": {"negative_km": 30.0, "positive_km": 5.0},
}


@paths
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(path: Callable[..., HardNegatives], options: dict[str, Any]) -> None:
    places = make_places(90, seed=4)
    expected = hard_negatives_reference(places, **options)
    assert_same(path(places, **options), expected)
    if "nothing near" not in str(options) and options.get("negative_km") != 0:
        assert expected.negatives_valid.any() and expected.positives_valid.any()


@paths
def test_under_autocast(path: Callable[..., HardNegatives]) -> None:
    """PyTorch refuses float16 in some of its functions while it casts to bfloat16."""
    places = make_places(70, seed=6)
    with torch.autocast("cpu", torch.bfloat16):
        found = path(places)
    assert_same(found, hard_negatives_reference(places))


@paths
def test_a_radius_for_each_query(path: Callable[..., HardNegatives]) -> None:
    places = make_places(80, seed=5)
    g = torch.Generator().manual_seed(0)
    negative_km, positive_km = torch.rand(2, 80, generator=g) * 30
    negative_km[:9], positive_km[3:12] = torch.nan, -1
    found = path(places, negative_km=negative_km, positive_km=positive_km)
    assert_same(found, hard_negatives_reference(places, negative_km=negative_km, positive_km=positive_km))
    assert not found.negatives_valid[:9].any() and not found.positives_valid[3:12].any()
    assert found.negatives_valid[9:].any() and found.positives_valid[12:].any()


@paths
@pytest.mark.parametrize(
    ("around", "degrees"),
    [((90.0, 0.0), 0.5), ((-90.0, 0.0), 0.5), ((0.0, 180.0), 0.3), ((35.0, 20.0), 40.0), ((10.0, 10.0), 0.0)],
    ids=["north pole", "south pole", "antimeridian", "a continent", "one point"],
)
def test_places(path: Callable[..., HardNegatives], around: tuple[float, float], degrees: float) -> None:
    places = make_places(130, seed=6, around=around, degrees=degrees)
    options = {"negative_km": 10.0, "positive_km": 30.0} if degrees < 40 else {"negative_km": 2e3, "positive_km": 4e3}
    expected = hard_negatives_reference(places, k=4, **options)
    assert expected.negatives_valid.any() and expected.positives_valid.any()
    assert_same(path(places, k=4, **options), expected)


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 20, 100])
def test_embeddings_of_any_width(path: Callable[..., HardNegatives], dim: int, dtype: torch.dtype) -> None:
    """Not exact: another choice is right where its cosine is within rounding of the reference's."""
    places = make_places(70, dim, seed=dim, ugly=False)
    g = torch.Generator().manual_seed(1)
    places = places._replace(embeddings=torch.randn(70, dim, generator=g).to(dtype) * 3)
    found, expected = path(places, k=4), hard_negatives_reference(places, k=4)
    assert torch.equal(found.negatives_valid, expected.negatives_valid)
    assert torch.equal(found.positives_valid, expected.positives_valid)
    unit = torch.nn.functional.normalize(places.embeddings.double())
    cosines = unit @ unit.t()
    for name in ("negatives", "positives"):
        ours, theirs = getattr(found, name).view(70, -1), getattr(expected, name).view(70, -1)
        torch.testing.assert_close(cosines.gather(1, ours), cosines.gather(1, theirs), atol=2e-6, rtol=0)
    assert (found.negatives == expected.negatives).float().mean() > (0.9 if dim > 1 else 0.1)


@paths
def test_ties_go_to_the_lowest_row(path: Callable[..., HardNegatives]) -> None:
    """The same embedding everywhere: the first rows that are eligible, whatever their place on the curve."""
    places = make_places(140, seed=8, degrees=0.02, ugly=False)
    places = places._replace(embeddings=torch.ones(140, 16), items=torch.arange(140))
    found = path(places, k=3)
    for i in (0, 50, 139):
        different = (places.categories != places.categories[i]).nonzero()[:3, 0]
        alike = (places.categories == places.categories[i]) | (places.brands == places.brands[i])
        alike[i] = False
        assert torch.equal(found.negatives[i], different)
        assert found.positives[i] == alike.nonzero()[0, 0]


@paths
@pytest.mark.parametrize("field", ["positions", "embeddings"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_known_is_never_selected(path: Callable[..., HardNegatives], field: str, value: float) -> None:
    places = make_places(100, seed=9, ugly=False)
    getattr(places, field)[::3, 1] = value
    found = path(places, negative_km=math.inf, positive_km=math.inf)
    assert not found.negatives_valid[::3].any() and not found.positives_valid[::3].any()
    assert found.negatives_valid[1::3].all() and found.positives_valid[1::3].all()
    assert (found.negatives[found.negatives_valid] % 3 != 0).all()
    assert (found.positives[found.positives_valid] % 3 != 0).all()


@paths
@pytest.mark.parametrize("different_category", [True, False])
def test_rows_that_are_neither_anchor_nor_candidate(
    path: Callable[..., HardNegatives], different_category: bool
) -> None:
    """As if they were not there; without the category's test they are negatives like others."""
    places = make_places(150, seed=14, ugly=False)
    none = torch.zeros(150, dtype=torch.bool).index_fill_(0, torch.randperm(150)[:60], True)
    places = places._replace(
        categories=places.categories.masked_fill(none, -1), brands=places.brands.masked_fill(none, -2)
    )
    options = {"different_category": different_category, "k": 4}
    found = path(places, **options)
    assert_same(found, hard_negatives_reference(places, **options))
    if different_category:
        rows = (~none).nonzero().flatten()
        alone = path(Places(*(field[rows] for field in places)), **options)
        assert torch.equal(found.negatives_valid[rows], alone.negatives_valid) and alone.negatives_valid.any()
        assert torch.equal(found.negatives[rows][alone.negatives_valid], rows[alone.negatives][alone.negatives_valid])
        assert torch.equal(found.positives[rows][alone.positives_valid], rows[alone.positives][alone.positives_valid])


def test_rows_that_are_neither_lie_in_tiles_that_nothing_reaches() -> None:
    """So they cost no more than being sorted: of 20 tiles two have others."""
    places = make_places(20 * TILE, seed=15, ugly=False)
    names = torch.full((20 * TILE,), -1).index_fill_(0, torch.randperm(20 * TILE)[: 2 * TILE], 3)
    places = places._replace(categories=names, brands=torch.full_like(names, -1))
    for by_category, tiles in ((True, 2), (False, 20)):
        positions = sort_places(places, None, by_category)[0].positions
        assert tile_bounds(positions.t(), TILE)[1].isfinite().sum() == tiles


@pytest.mark.parametrize("pairs", [1, 100])
def test_lists_of_some_tiles_at_a_time(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are so many tiles that lists with room for all would be large."""
    monkeypatch.setattr(tiles_triton, "PAIRS", pairs)
    queries, candidates = make_places(200, seed=16), make_places(330, seed=17)
    for others in (None, candidates):
        assert_same(triton_path(queries, others), hard_negatives_reference(queries, others))


@paths
def test_unknown_categories_and_brands(path: Callable[..., HardNegatives]) -> None:
    places = Places(
        torch.arange(4),
        unit_vectors(torch.zeros(4), torch.zeros(4)),
        torch.eye(4),
        torch.tensor([-1, -1, 5, 6]),
        torch.tensor([-7, -7, -7, 0]),
    )
    found = path(places, k=3)
    assert found.negatives_valid.sum(1).tolist() == [0, 0, 1, 1]
    assert found.negatives[2:, 0].tolist() == [3, 2]
    assert not found.positives_valid.any()
    without = path(places, k=3, different_category=False)
    assert without.negatives.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@paths
def test_duplicates_are_neither_negative_nor_positive(path: Callable[..., HardNegatives]) -> None:
    """One item in many rows, even with other attributes in each."""
    places = make_places(80, seed=10, degrees=0.01, ugly=False)
    places = places._replace(items=torch.full((80,), 2**40))
    found = path(places, different_category=False)
    assert not found.negatives_valid.any() and not found.positives_valid.any()
    assert not found.negatives.any() and not found.positives.any(), "rows that are not valid must be safe to look up"


@paths
def test_hardest(path: Callable[..., HardNegatives]) -> None:
    """ReST's choice, by hand: negatives most similar first, the positive least similar, both by kilometres."""
    lat, lon = torch.tensor([0, 0.05, 0.08, 0.085, 0.095, 0.2, 0.25, 0.3]), torch.zeros(8)
    angles = torch.tensor([0.0, 0.9, 0.4, 0.1, 0.0, 0.5, 1.2, 1.5])
    places = Places(
        torch.arange(8),
        unit_vectors(lat, lon),
        torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 9)[:, None],
        torch.tensor([0, 1, 2, 1, 1, 0, 3, 0]),
        torch.tensor([0, 1, 1, 1, 1, 1, 0, 2]),
    )
    kilometres = haversine_km(lat[0], lon[0], lat, lon)
    assert kilometres[3] < 10 < kilometres[4] and kilometres[6] < 30 < kilometres[7]
    found = path(places, k=2)
    assert found.negatives[0].tolist() == [3, 2], "4 is nearer in angle, but more than 10 km away"
    assert found.positives[0] == 6, "of the same brand; 7 is less similar, but more than 30 km away"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 6))
def test_order_of_the_batch_does_not_matter(seed: int, rows: int, k: int) -> None:
    """Rows shuffled: the same items are chosen, if no two cosines are equal."""
    places = make_places(rows, 8, seed, degrees=0.1)
    g = torch.Generator().manual_seed(seed)
    places = places._replace(items=torch.arange(rows), embeddings=torch.randn(rows, 8, generator=g))
    order = torch.randperm(rows, generator=g)
    found, shuffled = hard_negatives(places, k=k), hard_negatives(Places(*(field[order] for field in places)), k=k)
    assert torch.equal(found.negatives_valid[order], shuffled.negatives_valid)
    assert torch.equal(found.positives_valid[order], shuffled.positives_valid)
    at = shuffled.negatives_valid
    assert torch.equal(found.negatives[order][at], order[shuffled.negatives][at])
    at = shuffled.positives_valid
    assert torch.equal(found.positives[order][at], order[shuffled.positives][at])


def test_random_choices_are_even() -> None:
    """60 queries that may each take any of 40 candidates: no candidate is preferred, no seed repeats another."""
    queries, candidates = (
        make_places(60, seed=11, degrees=0, ugly=False),
        make_places(40, seed=12, degrees=0, ugly=False),
    )
    queries = queries._replace(categories=torch.zeros(60, dtype=torch.int64))
    candidates = candidates._replace(categories=torch.ones(40, dtype=torch.int64))
    counts = torch.zeros(40)
    draws = []
    for seed in range(50):
        found = hard_negatives(queries, candidates, k=5, negatives="random", seed=seed).negatives
        assert all(len(set(row)) == 5 for row in found.tolist()), "without replacement"
        counts += torch.bincount(found.flatten(), minlength=40)
        draws.append(found)
    expected = 50 * 60 * 5 / 40
    chi2 = ((counts - expected) ** 2 / expected).sum() / (1 - 5 / 40)
    assert 13 < chi2 < 78, "outside of all but 1 in 10,000 of a chi-squared of 39 degrees"
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 50


def test_random_scores_by_hand() -> None:
    """MurmurHash3's finalizer is a bijection with known values; streams and rows draw differently."""
    keys = random_keys(0, 1000, 0, torch.device("cpu"))
    assert len(set(keys.tolist())) == 1000 and not set(keys.tolist()) & set(
        random_keys(0, 1000, 1, keys.device).tolist()
    )
    scores = random_scores(keys[:, None], torch.arange(50))
    assert scores.min() >= 0 and scores.max() < 1 and abs(scores.mean() - 0.5) < 0.01
    x = int(keys[7]) ^ (3 * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    assert scores[7, 3].item() == ((x ^ x >> 16) >> 8) / 2**24


def test_threads_do_not_change_the_answer() -> None:
    places = make_places(1500, seed=13)
    alone = hard_negatives(places)
    try:
        torch.set_num_threads(3)
        together = hard_negatives(places)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert_same(together, alone)
    assert_same(alone, hard_negatives_reference(places))


def test_a_scattered_batch_in_chunks() -> None:
    """Cities far apart and more tiles in reach of a run than a chunk holds, with gaps between."""
    parts = [make_places(700, seed=i, around=(40.0 + i, 5.0 * i), degrees=0.1 + 0.1 * i) for i in range(4)]
    places = Places(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    assert_same(hard_negatives(places), hard_negatives_reference(places))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"k": 0}, "k: got 0, expected at least 1"),
        ({}, {"negatives": "easiest"}, "negatives: got 'easiest', expected 'hardest' or 'random'"),
        ({}, {"negative_km": -1.0}, "negative_km: got -1.0, expected km >= 0; math.inf for no limit"),
        ({}, {"positive_km": torch.ones(3)}, r"positive_km: got a tensor \[3\], .* one for each query, \[7\]"),
        ({"items": torch.ones(7)}, {}, r"queries.items: got torch.float32 \[7\], expected int64 \[7\]"),
        ({"brands": torch.ones(6).long()}, {}, r"queries.brands: .* \[6\], expected int32 or int64 \[7\]"),
        ({"positions": torch.ones(7, 2)}, {}, r"queries.positions: .* expected float32 \[7, 3\]: haversine.unit_vec"),
        ({"embeddings": torch.ones(7, 2).double()}, {}, r"embeddings: .*, expected float32 or float16 or bfloat16"),
    ],
)
def test_bad_input(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hard_negatives(make_places(7)._replace(**change), **options)
    with pytest.raises(ValueError, match=r"candidates.embeddings: got D = 4, expected that of the queries, 16"):
        hard_negatives(make_places(7), make_places(7, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Triton's kernels are compiled, not interpreted")
@pytest.mark.parametrize(
    ("rows", "dim", "dtype"), [(0, 8, torch.float32), (70, 5, torch.float32), (64, 70, torch.bfloat16)]
)
def test_places_are_put_in_order(rows: int, dim: int, dtype: torch.dtype) -> None:
    places = make_places(rows, dim=dim)._replace()
    embeddings = places.embeddings.to(dtype)
    embeddings[: rows // 9] = 0
    embeddings[rows // 9 : rows // 8] = torch.nan
    places = places._replace(embeddings=embeddings)
    want = sort_places(places, None, False)[0]
    order, numbers = want.rows[:rows].long(), torch.empty(3, rows, dtype=torch.int32)
    numbers[:, order] = want.numbers[1:, :rows]
    positions = places.positions.masked_fill(~places.known()[:, None], torch.nan)
    for got, wanted in zip(put_in_order(order, numbers, positions, embeddings), want, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


def test_too_many_negatives_for_a_gpu() -> None:
    with pytest.raises(ValueError, match="k: got 129, expected at most 128 on CUDA; the CPU takes any number"):
        triton_path(make_places(5), k=129)
    places = make_places(200, 4, seed=3)
    assert_same(hard_negatives(places, k=150), hard_negatives_reference(places, k=150))


def test_custom_op() -> None:
    queries, candidates = make_places(9, seed=1), make_places(12, seed=2)
    for others in (None, candidates):
        given_ = arguments(queries, others, **DEFAULTS)
        torch.library.opcheck(torch.ops.placerank.hard_negatives.default, given_)


def test_compile_and_export() -> None:
    queries, candidates = make_places(9, seed=1), make_places(12, seed=2)
    queries.embeddings.requires_grad_()

    def sample(queries: Places, candidates: Places) -> HardNegatives:
        return hard_negatives(queries, candidates, k=3)

    expected = sample(queries, candidates)
    assert_same(torch.compile(sample, fullgraph=True, backend="aot_eager")(queries, candidates), expected)

    class Module(torch.nn.Module):
        def forward(self, *fields: torch.Tensor) -> HardNegatives:
            return sample(Places(*fields[:5]), Places(*fields[5:]))

    exported = torch.export.export(Module(), (*queries, *candidates))
    assert_same(HardNegatives(*exported.module()(*queries, *candidates)), expected)


def gather(rows: list[int], dtype: torch.dtype, filled: int) -> tuple[Places, Places, HardNegatives, int]:
    """On each rank: its places, everyone's, negatives from everyone's, and the waits for it all."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    places = make_places(rows[rank], 4, seed=rank, dtype=dtype)
    with host_waits() as waits:
        everyone = gather_places(places, filled)
    return places, everyone, hard_negatives(places, everyone, k=3), len(waits)


@pytest.mark.parametrize(
    ("rows", "dtype", "filled"),
    [
        ([5, 9], torch.float32, 9),
        ([0, 4], torch.bfloat16, 7),
        ([3, 1, 6], torch.float32, 6),
        ([0, 0], torch.float32, 0),
    ],
)
def test_gather_places(ranks: Callable[..., list[Any]], rows: list[int], dtype: torch.dtype, filled: int) -> None:
    made = ranks(len(rows), gather, rows, dtype, filled)
    whole = Places(*(torch.cat(fields) for fields in zip(*(places for places, *_ in made), strict=True)))
    at = torch.cat([rank * filled + torch.arange(count) for rank, count in enumerate(rows)])
    for places, everyone, found, waits in made:
        assert waits == 0
        for ours, theirs in zip(everyone, whole, strict=True):
            assert len(ours) == filled * len(rows)
            torch.testing.assert_close(ours[at], theirs, rtol=0, atol=0, equal_nan=True)
        want = hard_negatives_reference(Places(*places), whole, k=3)
        of_whole = [at[x].where(valid, 0) if len(at) else x for x, valid in zip(want[::2], want[1::2], strict=True)]
        assert_same(HardNegatives(*found), HardNegatives(of_whole[0], want[1], of_whole[1], want[3]))


def test_more_places_than_are_gathered_are_told() -> None:
    with pytest.raises(ValueError, match="places: got 5, expected at most rows=4; the same number on all ranks"):
        gather_places(make_places(5, 4, seed=0), 4)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 1000, 5000])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_on_a_gpu(rows: int, options: dict[str, Any]) -> None:
    places = make_places(rows, 64, seed=rows)
    on_gpu = Places(*(field.cuda() for field in places))
    assert_same(
        HardNegatives(*(field.cpu() for field in hard_negatives(on_gpu, **options))), hard_negatives(places, **options)
    )
