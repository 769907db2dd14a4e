"""What ranks tell each other, and errors that one of them has. ``sum_`` is tested with the tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from placerank.data.ranks import Ranks, joined


def told(fails: int | None) -> list[Any]:
    """What each rank and the first one say; with an error in rank ``fails``."""

    def mine() -> str:
        if ranks.rank == fails:
            raise FileNotFoundError(f"{Path('x')} of {ranks.rank} not found")
        return f"rank {ranks.rank}"

    with joined() as ranks:
        found: list[Any] = []
        for ask in (lambda: ranks.each(mine), lambda: ranks.first(mine)):
            try:
                found.append(ask())
            except FileNotFoundError as error:
                found.append(str(error))
        most = torch.tensor([ranks.rank, -ranks.rank])
        ranks.max_(most)
        return [*found, most.tolist()]


def test_all_ranks_know_what_each_said(ranks: Callable[..., list[Any]]) -> None:
    assert ranks(3, told, None) == [[["rank 0", "rank 1", "rank 2"], "rank 0", [2, 0]]] * 3


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_is_that_of_all(ranks: Callable[..., list[Any]], fails: int) -> None:
    error = f"x of {fails} not found"
    assert ranks(2, told, fails) == [[error, error if fails == 0 else "rank 0", [1, 0]]] * 2


def test_one_process() -> None:
    alone, x = Ranks(), torch.ones(2)
    alone.max_(x)
    assert alone.each(lambda: 7) == [7] and alone.first(lambda: 7) == 7 and x.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="a bug"):
        alone.each(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
