"""Gaps of pairs beside their reference: shared visits, none, unknown places, the same place and the antipode."""

import pytest
import torch
from torch import Tensor

from placerank.kernels.haversine import unit_vectors
from placerank.kernels.visit_gaps import visit_gaps_reference, visit_gaps_unchecked


def places(count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    lat, lon = (torch.rand(count, generator=g, dtype=torch.float64) for _ in range(2))
    return unit_vectors(40 + lat, 179.5 + lon).float()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("candidates", [0, 1, 600])
def test_gaps_are_those_of_the_reference(candidates: int, threads: int) -> None:
    visited, place = places(53, 1), places(candidates, 2)
    visited[7] = torch.nan
    if candidates > 1:
        place[:50], place[63], place[61] = visited[:50], -visited[10], torch.nan
    hours = torch.rand(53) * 1e4
    hours[0] = 0
    lengths = torch.arange(candidates) % 4 * 13  # 0 to 39 visits
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    starts = torch.arange(candidates) % 14  # most visits are shared
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = visit_gaps_unchecked(hours, visited, place, starts, offsets)
    finally:
        torch.set_num_threads(before)
    want = visit_gaps_reference(hours, visited, place, starts, offsets)
    assert got.shape == (int(lengths.sum()), 2) and got.isfinite().all()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=2e-6)
    if candidates > 1:
        assert (got[:, 1] == 0).sum() > 5 and got[:, 1].max() > 9.9, "at the place itself, and at its antipode"


def test_nothing_to_look_back_on() -> None:
    nothing = torch.zeros(0)
    got = visit_gaps_unchecked(nothing, nothing.view(0, 3), places(4, 0), torch.zeros(4).long(), torch.zeros(5).long())
    assert got.shape == (0, 2)
