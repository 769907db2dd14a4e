"""Centres: fitted to what is there, kept over refreshes, equal on all ranks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from placerank.embeddings.centres import Centres, attribute_mean

K, D = 5, 3


def heaps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """K heaps far apart: their middles, and 200 vectors around them."""
    g = torch.Generator().manual_seed(seed)
    middles = 10 * torch.eye(K, D) + 10 * torch.arange(K)[:, None]
    return middles, (middles[:, None] + 0.1 * torch.randn(K, 40, D, generator=g)).flatten(0, 1)


def same_rows(a: Tensor, b: Tensor, atol: float) -> bool:
    return bool((torch.cdist(a, b) < atol).any(dim=1).all() and (torch.cdist(b, a) < atol).any(dim=1).all())


def test_each_heap_gets_its_mean() -> None:
    _, x = heaps()
    centres = Centres(K, D)
    centres.refresh(x)
    means = x.view(K, 40, D).mean(dim=1)
    assert same_rows(centres.centres, means, 1e-4) and centres.drift == 0
    torch.testing.assert_close(centres.nearest(x), means.repeat_interleave(40, dim=0))


def test_counts_are_repeated_vectors() -> None:
    torch.manual_seed(0)
    x, counts = torch.randn(60, D), torch.randint(0, 4, (60,))
    one, other = Centres(K, D), Centres(K, D)
    start = torch.randn(K, D)
    for c in (one, other):  # from equal centres: the first ones are drawn from rows, which differ here
        c.centres.copy_(start)
        c.refreshes += 1
    one.refresh(x, counts)
    other.refresh(x.repeat_interleave(counts, dim=0))
    torch.testing.assert_close(one.centres, other.centres)


def test_drift_is_how_far_vectors_moved_and_centres_keep_their_places() -> None:
    _, x = heaps()
    centres = Centres(K, D)
    centres.refresh(x)
    before = centres.centres.clone()
    centres.refresh(x)
    assert centres.drift < 1e-6
    centres.refresh(x + torch.tensor([0.3, 0.0, -0.4]))
    torch.testing.assert_close(centres.centres, before + torch.tensor([0.3, 0.0, -0.4]))
    torch.testing.assert_close(centres.drift, 0.5 / centres.centres.norm(dim=1).mean())


def test_a_centre_without_items_moves_to_where_it_is_missed() -> None:
    middles, x = heaps()
    centres = Centres(K, D)
    centres.centres.copy_(torch.cat([middles[:3], torch.full((2, D), 1e4)]))  # two heaps have none
    centres.refreshes += 1
    centres.refresh(x)
    assert same_rows(centres.centres, x.view(K, 40, D).mean(dim=1), 1e-4)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_fewer_vectors_than_centres(rows: int) -> None:
    x = torch.randn(rows, D)
    centres = Centres(K, D)
    for _ in range(2):
        centres.refresh(x)
    assert centres.centres.isfinite().all() and centres.drift == 0
    if rows:
        torch.testing.assert_close(centres.nearest(x), x)


def test_vectors_that_are_not_finite_or_stand_for_nothing_are_left_out() -> None:
    _, x = heaps()
    x[0, 1], counts = torch.nan, torch.ones(200)
    counts[1], x[1] = 0, 1e6
    centres = Centres(K, D)
    centres.refresh(x, counts)
    assert centres.centres.isfinite().all() and centres.centres.max() < 100


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    centres = Centres(K, D)
    x = torch.randn(100, D)
    centres.refresh(x)
    loaded = Centres(K, D)
    loaded.load_state_dict(copy.deepcopy(centres.state_dict()))
    for c in (centres, loaded):
        c.refresh(x + torch.randn(D, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(centres.centres, loaded.centres) and torch.equal(centres.drift, loaded.drift)
    assert centres.drift > 0


def refreshed() -> tuple[Tensor, Tensor]:
    """A rank whose vectors differ in the last bits, as those of another device might."""
    dist.init_process_group("gloo")
    centres, x = Centres(K, D), heaps(1)[1] * (1 + dist.get_rank() * 1e-6)
    centres.refresh(x)
    centres.refresh(x + 1)
    dist.destroy_process_group()
    return centres.centres, centres.drift


def test_all_ranks_have_the_first_ones_centres(ranks: Callable[..., list[Any]]) -> None:
    (a, drift), (b, other_drift) = ranks(2, refreshed)
    assert torch.equal(a, b) and torch.equal(drift, other_drift) and drift > 0


def test_mean_of_known_attributes() -> None:
    x = torch.tensor([[[1.0, 2], [3, 6]], [[1, 2], [3, 6]], [[torch.nan, 2], [3, 6]]])
    known = torch.tensor([[True, True], [False, False], [False, True]])
    torch.testing.assert_close(attribute_mean(x, known), torch.tensor([[2.0, 4], [0, 0], [3, 6]]))
    torch.testing.assert_close(attribute_mean(x[:1]), torch.tensor([[2.0, 4]]))
