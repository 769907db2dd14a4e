"""Pairs within a radius: every path finds the same ones, to the last bit of the rim."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from torch import Tensor

from placerank.kernels import pairwise_within_cpu as cpu
from placerank.kernels.haversine import haversine_km, unit_vectors
from placerank.kernels.pairwise_within import _limits, pairwise_within, pairwise_within_reference, within_mask

NAN, INF = math.nan, math.inf
Path = Callable[[Tensor, Tensor | None, float | Tensor], tuple[Tensor, Tensor]]


def on_cpu(plan: Callable[..., object]) -> Path:
    """The CPU path with one of its plans, whatever the size."""

    def path(queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> tuple[Tensor, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "SMALL", -1 if plan is cpu._near else 1 << 60)
            limits = _limits(queries, queries if candidates is None else candidates, km)
            return cpu.pairwise_within_cpu(queries, candidates, limits)

    return path


def interpreted(queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> tuple[Tensor, Tensor]:
    """The Triton path on CPU tensors."""
    from placerank.kernels.pairwise_within_triton import pairwise_within_triton

    return pairwise_within_triton(
        queries, candidates, _limits(queries, queries if candidates is None else candidates, km)
    )


PATHS: dict[str, Path] = {"all": on_cpu(cpu._all), "near": on_cpu(cpu._near)}
if not torch.cuda.is_available():  # where there is a device, the last test compares with it
    PATHS["triton"] = interpreted


def places(n: int, degrees: float, seed: int, dtype: torch.dtype = torch.float32, lat0: float = 52.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    lat = (lat0 + degrees * torch.randn(n, generator=g, dtype=torch.float64)).clamp(-90, 90)
    lon = 180 + degrees * torch.randn(n, generator=g, dtype=torch.float64)  # across the antimeridian
    return unit_vectors(lat, lon).to(dtype)


def same(path: str, queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> None:
    offsets, indices = PATHS[path](queries, candidates, km)
    expected = pairwise_within_reference(queries, candidates, km)
    assert offsets.dtype == indices.dtype == torch.int64
    assert torch.equal(offsets, expected[0]) and torch.equal(indices, expected[1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("b", "m"), [(0, 0), (0, 5), (5, 0), (1, 1), (63, None), (65, 129), (130, None), (211, 307)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paths_agree_on_sizes(path: str, b: int, m: int | None, dtype: torch.dtype) -> None:
    queries = places(b, 0.1, 0, dtype)
    candidates = None if m is None else places(m, 0.1, 1, dtype)
    same(path, queries, candidates, 5.0)
    same(path, queries, candidates, torch.linspace(0, 20, b, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS)
def test_paths_agree_on_ugly_places(path: str) -> None:
    block = places(1, 0.0, 0).repeat(150, 1)  # everyone at one point
    same(path, block, None, 0.0)
    assert PATHS[path](block, None, 0.0)[1].numel() == 150**2
    poles = torch.cat([places(70, 0.01, 1, lat0=90.0), places(70, 0.01, 2, lat0=-90.0)])
    for km in (0.5, 20014.5, 20015.1, INF):
        same(path, poles, None, km)
    grid = unit_vectors(*torch.meshgrid(torch.linspace(0, 1, 13), torch.linspace(179, 181, 13), indexing="ij"))
    same(path, grid.reshape(-1, 3), None, 9.27)  # rows of neighbours on the rim


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_place_has_no_neighbours(path: str) -> None:
    queries = places(140, 0.1, 0)
    queries[3, 1], queries[77], queries[100, 0] = NAN, NAN, INF
    for km in (5.0, INF):
        same(path, queries, None, km)
        offsets, indices = PATHS[path](queries, None, km)
        for none in (3, 77, 100):
            assert offsets[none] == offsets[none + 1] and not bool((indices == none).any())
    same(path, queries, torch.full((70, 3), NAN), 5.0)
    radii = torch.full((140,), 5.0)
    radii[:4] = torch.tensor([NAN, -1.0, 0.0, INF])
    same(path, queries, queries.flip(0), radii)
    assert PATHS[path](queries, None, radii)[0][:4].tolist() == [0, 0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(
    path=st.sampled_from(sorted(PATHS)),
    b=st.integers(0, 90),
    m=st.none() | st.integers(0, 90),
    degrees=st.sampled_from([0.0, 1e-5, 0.003, 0.1, 30.0]),
    km=st.sampled_from([0.0, 1e-3, 0.7, 25.0, 8000.0, 20015.0, 30000.0]),
    double=st.booleans(),
    seed=st.integers(0, 999),
)
def test_paths_agree_everywhere(
    path: str, b: int, m: int | None, degrees: float, km: float, double: bool, seed: int
) -> None:
    dtype = torch.float64 if double else torch.float32
    same(path, places(b, degrees, seed, dtype), None if m is None else places(m, degrees, seed + 1, dtype), km)


@pytest.mark.skipif("triton" not in PATHS, reason="not interpreted where there is a device")
@pytest.mark.parametrize(("pairs", "at_once"), [(1, 1), (7, 40), (1 << 24, 300)])
def test_lists_and_sorting_in_parts(pairs: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA with millions of places: lists of some tiles at a time, some rows sorted at a time."""
    monkeypatch.setattr("placerank.kernels.tiles_triton.PAIRS", pairs)
    monkeypatch.setattr("placerank.kernels.pairwise_within_triton.SORTED", at_once)
    queries, radii = places(140, 0.1, 0), torch.linspace(-1, 30, 140)
    queries[::9] = NAN
    same("triton", queries, None, radii)
    same("triton", queries, places(333, 0.2, 1), radii)


def test_two_threads_give_the_same() -> None:
    queries, radii = places(1500, 0.1, 0), torch.rand(1500) * 5
    one = pairwise_within(queries, None, radii)
    torch.set_num_threads(2)
    try:
        two = pairwise_within(queries, None, radii)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_the_radius_is_a_great_circle() -> None:
    lat = torch.tensor([31.2, 31.2, 31.0, -30.2, 89.999], dtype=torch.float64)
    lon = torch.tensor([121.4, 121.40001, 121.4, -58.6, -58.6], dtype=torch.float64)
    points = unit_vectors(lat, lon)
    km = haversine_km(lat[:, None], lon[:, None], lat, lon)
    for i in range(5):
        for j in range(i):
            for scale, within in ((1 + 1e-9, True), (1 - 1e-9, False)):
                assert bool(within_mask(points, None, float(km[i, j]) * scale)[i, j]) is within
    one_metre = unit_vectors(
        torch.tensor([52.0, 52.0 + 1 / 111195], dtype=torch.float64), torch.full((2,), 4.9).double()
    )
    assert within_mask(one_metre.float(), None, 1.3e-3).all() and not within_mask(one_metre.float(), None, 0.7e-3)[0, 1]


def test_same_pairs_as_a_k_d_tree() -> None:
    points = places(3000, 0.1, 0, torch.float64)
    offsets, indices = pairwise_within(points, None, 1.0)
    tree = cKDTree(points.numpy())
    found = tree.query_ball_point(points.numpy(), 2 * math.sin(1 / (2 * 6371.0088)), return_sorted=True)
    assert np.array_equal(np.concatenate(found), indices.numpy())
    assert np.array_equal([len(row) for row in found], offsets.diff().numpy())


def test_bad_input_is_told() -> None:
    points = places(4, 1.0, 0)
    with pytest.raises(ValueError, match=r"queries: got \[4, 2\] torch.float32, expected unit vectors \[N, 3\]"):
        pairwise_within(points[:, :2], None, 1.0)
    with pytest.raises(ValueError, match=r"candidates: got \[4, 3\] torch.float16"):
        pairwise_within(points, points.half(), 1.0)
    with pytest.raises(ValueError, match=r"candidates: got torch.float64 on cpu, expected torch.float32 on cpu"):
        within_mask(points, points.double(), 1.0)
    with pytest.raises(ValueError, match=r"km: got shape \[3\], expected a number or one radius a query, \[4\]"):
        pairwise_within(points, None, torch.ones(3))
    for km in (-1.0, NAN):
        with pytest.raises(ValueError, match="expected a radius of at least 0"):
            pairwise_within(points, None, km)


def test_strided_inputs() -> None:
    points = places(300, 0.1, 0)
    turned = points.T.contiguous().T  # column by column in memory
    assert torch.equal(pairwise_within(turned, turned[::2], 5.0)[1], pairwise_within(points, points[::2], 5.0)[1])


def test_custom_op() -> None:
    points, more = places(70, 0.1, 0), places(50, 0.1, 1)
    for candidates in (None, more):
        limits = _limits(points, points if candidates is None else candidates, 5.0)
        torch.library.opcheck(torch.ops.placerank.pairwise_within.default, (points, candidates, limits))


class _Neighbours(torch.nn.Module):
    """How many neighbours each place has, and the sum of their numbers."""

    def forward(self, points: Tensor, km: Tensor) -> tuple[Tensor, Tensor]:
        offsets, indices = pairwise_within(points, None, km)
        return offsets.diff(), indices.sum()


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_and_exports() -> None:
    points, km = places(70, 0.1, 0), torch.full((70,), 5.0)
    expected = _Neighbours()(points, km)
    compiled = torch.compile(_Neighbours(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(_Neighbours(), (points, km)).module()
    for module in (compiled, exported):
        got = module(points, km)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("b", "m", "km"), [(1, 1, 1.0), (300, None, 5.0), (9000, 257, 3.0), (5000, None, INF)])
def test_the_same_on_a_gpu(b: int, m: int | None, km: float, dtype: torch.dtype) -> None:
    queries, candidates = places(b, 0.1, 0, dtype), None if m is None else places(m, 0.1, 1, dtype)
    queries[b // 2] = NAN
    expected = pairwise_within(queries, candidates, km)
    got = pairwise_within(queries.cuda(), None if candidates is None else candidates.cuda(), km)
    assert torch.equal(got[0].cpu(), expected[0]) and torch.equal(got[1].cpu(), expected[1])
