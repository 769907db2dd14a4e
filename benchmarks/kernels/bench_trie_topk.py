"""The best children of beams, one level of a beam search: each beam has some of the next level's codes as children.

``all codes`` is the way of libraries that generate text: a mask of the codes that may follow, all beams times all codes
side by side, one topk. It needs the mask, which is made before the clock starts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from placerank.kernels.trie_topk import trie_topk, trie_topk_reference

from .harness import Case, Suite, Work


class Inputs(NamedTuple):
    """Arguments of trie_topk, and for the other way bool [B, beams, K]."""

    logits: Tensor
    totals: Tensor
    starts: Tensor
    stops: Tensor
    codes: Tensor
    offsets: Tensor
    k: int
    exists: Tensor


CASES = [Case("children_40", quick=B == 16, B=B, k=k, K=256, children=40) for B, k in ((1, 50), (16, 50), (64, 20))] + [
    Case("children_4", B=B, k=50, K=512, children=4) for B in (1, 16, 64)
]


def setup(case: Case, device: torch.device) -> Inputs:
    g = torch.Generator().manual_seed(0)
    n = case.B * case.k
    counts = torch.randint(1, 2 * case.children, (n,), generator=g)
    stops = counts.cumsum(0)
    order = torch.rand(n, case.K, generator=g).argsort(dim=1)
    exists = torch.zeros(n, case.K, dtype=torch.bool)
    exists.scatter_(1, order, torch.arange(case.K) < counts[:, None])
    parts = torch.randn(n, case.K, generator=g), torch.randn(n, generator=g), stops - counts, stops
    codes, offsets = exists.nonzero()[:, 1], torch.arange(0, n + 1, case.k)
    logits, totals, starts, stops, codes, offsets = (x.to(device) for x in (*parts, codes, offsets))
    exists = exists.view(case.B, case.k, case.K).to(device)
    return Inputs(logits, totals, starts, stops, codes, offsets, case.k, exists)


def work(case: Case) -> Work:
    """A sum and a comparison a child; children and their logits in, the best out."""
    children = case.B * case.k * case.children
    return Work(flops=2 * children, bytes=12 * children + 24 * case.B * case.k)


def placerank(inputs: Inputs) -> Callable[[], object]:
    return lambda: trie_topk(*inputs[:7])


def eager(inputs: Inputs) -> Callable[[], object]:
    return lambda: trie_topk_reference(*inputs[:7])


def all_codes(inputs: Inputs) -> Callable[[], object]:
    B, k, K = inputs.exists.shape

    def search() -> tuple[Tensor, Tensor]:
        totals = (inputs.totals[:, None] + inputs.logits).view(B, k, K)
        best = totals.masked_fill(~inputs.exists, -torch.inf).flatten(1).topk(inputs.k, dim=1)
        return best.values, best.indices

    return search


SUITE = Suite(
    kernel="trie_topk",
    cases=CASES,
    setup=setup,
    work=work,
    peers={"placerank": placerank, "eager PyTorch": eager, "all codes": all_codes},
    size="B",
)
