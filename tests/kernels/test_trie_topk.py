"""Children of prefix trees: loops from the definition, the reference, the compiled loops."""

from collections.abc import Callable
from itertools import pairwise
from math import exp, inf, isnan, log, nan

import pytest
import torch
from torch import Tensor

from placerank.kernels.trie_topk import (
    trie_logsumexp,
    trie_logsumexp_reference,
    trie_topk,
    trie_topk_reference,
)

Found = list[list[tuple[int, int, float]]]


def make(seed: int, beams: list[int], codes: int = 7, coarse: bool = False) -> dict[str, Tensor]:
    """Beams of some requests, with 0 to ``codes`` children each; ``coarse``: numbers that are often equal."""
    g = torch.Generator().manual_seed(seed)
    n = sum(beams)
    counts = torch.randint(0, codes + 1, (n,), generator=g)
    stops = counts.cumsum(0)
    children = [torch.randperm(codes, generator=g)[:count].sort().values for count in counts.tolist()]
    logits, totals = torch.randn(n, codes, generator=g), torch.randn(n, generator=g)
    return {
        "logits": logits.round() if coarse else logits,
        "totals": totals.round() if coarse else totals,
        "starts": stops - counts,
        "stops": stops,
        "codes": torch.cat([torch.zeros(0, dtype=torch.int64), *children]),
        "offsets": torch.tensor([0, *beams]).cumsum(0),
    }


def by_hand(x: dict[str, Tensor], k: int) -> Found:
    found: Found = []
    for b in range(len(x["offsets"]) - 1):
        every = []
        for i in range(int(x["offsets"][b]), int(x["offsets"][b + 1])):
            for c in range(int(x["starts"][i]), int(x["stops"][i])):
                total = float(x["totals"][i] + x["logits"][i, x["codes"][c]])
                if not isnan(total):
                    every.append((-total, c, i))
        found.append([(i, c, -total) for total, c, i in sorted(every)[:k]])
    return found


def as_lists(answer: tuple[Tensor, Tensor, Tensor, Tensor]) -> Found:
    parents, children, totals, offsets = (x.tolist() for x in answer)
    rows = list(zip(parents, children, totals, strict=True))
    assert offsets[-1] == len(rows)
    return [rows[a:b] for a, b in pairwise(offsets)]


@pytest.mark.parametrize("search", [trie_topk, trie_topk_reference])
@pytest.mark.parametrize("integers", [torch.int64, torch.int32])
@pytest.mark.parametrize("beams", [[], [0], [1], [3, 0, 2], [20, 1, 0, 0, 40]], ids=str)
def test_best_children(search: Callable[..., tuple[Tensor, ...]], beams: list[int], integers: torch.dtype) -> None:
    for seed in range(20):
        x = make(seed, beams, coarse=seed % 2 == 1)
        x |= {name: x[name].to(integers) for name in ("starts", "stops", "codes")}
        for k in (1, 2, 5, 1000):
            assert as_lists(search(**x, k=k)) == by_hand(x, k)


@pytest.mark.parametrize("search", [trie_topk, trie_topk_reference])
def test_ties_no_numbers_and_the_impossible(search: Callable[..., tuple[Tensor, ...]]) -> None:
    """Of equal totals the lower child, whichever beam it is of; NaN never; -inf exists, and comes last."""
    x = make(0, [2, 1])
    x |= {
        "starts": torch.tensor([0, 3, 4]),
        "stops": torch.tensor([3, 4, 6]),
        "codes": torch.tensor([0, 2, 5, 1, 3, 4]),
    }
    x["totals"] = torch.zeros(3)
    x["logits"] = torch.tensor([[1.0, nan, 2, nan, nan, nan, 9], [9, 2, 9, 9, 9, 9, 9], [9, 9, 9, nan, -inf, 9, 9]])
    assert as_lists(search(**x, k=3)) == [[(0, 1, 2.0), (1, 3, 2.0), (0, 0, 1.0)], [(2, 5, -inf)]]
    assert as_lists(search(**x, k=1)) == [[(0, 1, 2.0)], [(2, 5, -inf)]]


@pytest.mark.parametrize("total", [trie_logsumexp, trie_logsumexp_reference])
def test_logsumexp(total: Callable[..., Tensor]) -> None:
    for seed in range(20):
        x = make(seed, [9])
        logits, starts, stops, codes = x["logits"], x["starts"], x["stops"], x["codes"]
        logits[0, 0], logits[1] = -inf, -inf
        for i, got in enumerate(total(logits, starts, stops, codes).tolist()):
            found = sum(exp(logits[i, codes[c]]) for c in range(int(starts[i]), int(stops[i])))
            assert got == pytest.approx(log(found) if found else -inf, abs=1e-6)
    large = torch.full((1, 7), 1e4)
    four = total(large, torch.tensor([0]), torch.tensor([4]), torch.tensor([0, 2, 3, 6]))
    torch.testing.assert_close(four, torch.tensor([1e4 + log(4)]))
    large[0, 2] = nan
    assert total(large, torch.tensor([0]), torch.tensor([4]), torch.tensor([0, 2, 3, 6])).isnan().all()


def test_gradients_are_those_of_the_reference() -> None:
    x = make(3, [9])
    children = x["starts"], x["stops"], x["codes"]
    kept = x["starts"] < x["stops"]  # without children there is nothing that a gradient could be of
    logits = x["logits"].requires_grad_()
    logits.data[kept.nonzero()[0, 0], 0] = -inf
    up = torch.randn(9)
    found = torch.autograd.grad(trie_logsumexp(logits, *children)[kept], logits, up[kept])
    want = torch.autograd.grad(trie_logsumexp_reference(logits, *children)[kept], logits, up[kept])
    torch.testing.assert_close(found, want)
    exact = x["logits"].detach().double().clamp(min=-5).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: trie_logsumexp(y, *children)[kept], (exact,))


def test_children_that_are_not_there_are_told() -> None:
    x = make(1, [2, 1])
    x |= {
        "starts": torch.tensor([0, 3, 4]),
        "stops": torch.tensor([3, 4, 6]),
        "codes": torch.tensor([0, 2, 5, 1, 3, 4]),
    }
    with pytest.raises(IndexError, match="stops: expected rows 0 to 6, got 3 to 7"):
        trie_topk(**x | {"stops": torch.tensor([3, 4, 7])}, k=2)
    with pytest.raises(IndexError, match="codes: expected rows 0 to 6"):
        trie_topk(**x | {"codes": torch.full((6,), 7)}, k=2)
    with pytest.raises(ValueError, match="starts: got some after their stops"):
        trie_topk(**x | {"starts": torch.tensor([0, 5, 4])}, k=2)
    with pytest.raises(ValueError, match="k: got 0"):
        trie_topk(**x, k=0)
