"""Cells and hours."""

import torch

from placerank.kernels.haversine import unit_vectors, unit_vectors_km
from placerank.rankers.towers.spacetime import CellEmbedding, HourEmbedding, hours_apart, nearness


def places(n: int, spread: float = 0.05) -> torch.Tensor:
    return unit_vectors(
        48 + spread * torch.rand(n, dtype=torch.float64), 10 + spread * torch.rand(n, dtype=torch.float64)
    ).float()


def test_cells_hold_places_that_are_near_and_no_others() -> None:
    torch.manual_seed(0)
    cells = CellEmbedding(4, sizes_km=(1.0, 5.0), rows=1 << 20)
    place = places(300)
    rows = cells.cells(place)
    km = unit_vectors_km(place[:, None], place[None])
    for size, same in zip((1.0, 5.0), (rows[:, None] == rows[None]).unbind(2), strict=True):
        assert km[same].max() <= size * 3**0.5 * 1.01, "a cell is a cube"
        assert same[km < size / 20].float().mean() > 0.8
    assert (rows[:, 0] != rows[:, 1]).all(), "sizes have rows of their own"


def test_unknown_places_are_zeros_and_learn_nothing() -> None:
    cells = CellEmbedding(4)
    place = places(6)
    place[::2] = torch.nan
    rows = cells.cells(place)
    assert not rows[::2].any() and rows[1::2].all() and int(rows.max()) < cells.rows
    embedded = cells(rows)
    assert embedded.shape == (6, 3, 4) and not embedded[::2].any()
    embedded.sum().backward()
    grad = cells.table.weight.grad
    assert grad is not None and not grad[0].any() and grad.any()


def test_poles_and_antimeridian_are_places_like_others() -> None:
    cells = CellEmbedding(4, sizes_km=(25.0,), rows=1 << 20)
    lat, lon = torch.tensor([90.0, 90.0, 10.001, 10.001]), torch.tensor([0.0, 123.0, 180.0, -180.0])
    north_a, north_b, east, west = cells.cells(unit_vectors(lat.double(), lon.double()).float()).tolist()
    assert north_a == north_b and east == west


def test_hours_near_on_the_clock_start_near() -> None:
    hours = HourEmbedding()
    torch.testing.assert_close(hours(torch.arange(168)).square().sum(1), torch.ones(168))
    at = lambda h: hours(torch.tensor([h]))[0]  # noqa: E731
    assert at(167) @ at(0) > 0.9 > at(12) @ at(0)
    assert at(24) @ at(0) > at(84) @ at(0), "the same hour of the next day, and of another"


def test_hours_apart_go_either_way_round_the_clock() -> None:
    a, b = torch.tensor([0, 23, 167, 30, 12]), torch.tensor([23, 0, 144, 6, 0])
    assert hours_apart(a, b).tolist() == [1, 1, 1, 0, 12] == hours_apart(b, a).tolist()


def test_nearness_tells_what_is_unknown() -> None:
    a, b = places(3), places(3)
    a[1] = torch.nan
    near = nearness(a, b)
    torch.testing.assert_close(near[0], torch.stack([unit_vectors_km(a[0], b[0]).log1p(), torch.tensor(1.0)]))
    assert near[1].tolist() == [0, 0]
