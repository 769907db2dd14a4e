"""Sums over ranks, and what one process does without a group."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from placerank.tokenization.ranks import Ranks, joined, rank_device


def sums() -> tuple[int, list[Any]]:
    with joined() as ranks:
        a, b = torch.full((2, 3), float(ranks.rank + 1)), torch.tensor([ranks.rank], dtype=torch.int64)
        c = torch.arange(6.0).reshape(2, 3).T * (ranks.rank + 1)  # not contiguous
        ranks.sum_(a, b, c)
        return ranks.world, [a, b, c]


def test_every_rank_has_the_sum(ranks: Callable[..., list[Any]]) -> None:
    for world, (a, b, c) in ranks(3, sums):
        assert world == 3 and (a == 6).all() and b.item() == 3
        assert torch.equal(c, torch.arange(6.0).reshape(2, 3).T * 6)


def test_one_process_is_a_group_of_one() -> None:
    x = torch.ones(2)
    with joined() as ranks:
        ranks.sum_(x)
        ranks.barrier()
        assert ranks == Ranks(0, 1) and ranks.is_first and (x == 1).all()


def test_devices() -> None:
    assert rank_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert rank_device("auto").type == "cpu"
        with pytest.raises(ValueError, match=r"device='cuda:0': torch sees no CUDA here; use auto or cpu"):
            rank_device("cuda:0")
