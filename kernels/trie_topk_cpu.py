"""CPU path of ``trie_topk`` and ``trie_logsumexp``: loops over the children that there are."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dice_cpu import exp
from .threads import inlined, jit, parallel_rows

_GRAIN = 16  # requests or nodes below which a second thread does not pay


@jit()
def _logsumexp(start: int, stop: int, logits: Any, starts: Any, stops: Any, codes: Any, out: Any) -> None:
    for i in range(start, stop):
        top = np.float32(-np.inf)
        for c in range(starts[i], stops[i]):
            x = logits[i, codes[c]]
            if x > top or np.isnan(x):
                top = x
        if np.isinf(top) or np.isnan(top):
            out[i] = top
            continue
        total = np.float32(0)
        for c in range(starts[i], stops[i]):
            x = logits[i, codes[c]]
            if np.isnan(x):
                total = x
                break
            if x > np.float32(-np.inf):  # exp gives a small number for it, not 0
                total += exp(x - top)
        out[i] = top + np.log(total)


@jit()
def _logsumexp_back(
    start: int, stop: int, grad: Any, logits: Any, starts: Any, stops: Any, codes: Any, total: Any, out: Any
) -> None:
    for i in range(start, stop):
        for k in range(out.shape[1]):
            out[i, k] = 0
        for c in range(starts[i], stops[i]):
            x = logits[i, codes[c]]
            if x > np.float32(-np.inf) or np.isnan(x):
                out[i, codes[c]] = grad[i] * exp(x - total[i])


@inlined()
def _worse(a: Any, number_a: int, b: Any, number_b: int) -> bool:
    """Whether a child comes after another: a lower total, or the same and a higher number."""
    return a < b or (a == b and number_a > number_b)


@inlined()
def _sink(totals: Any, numbers: Any, parents: Any, first: int, at: int, size: int) -> None:
    """Let an entry of the heap sink to where both below it are better; the worst is on top."""
    while 2 * at + 1 < size:
        low = 2 * at + 1
        if low + 1 < size and _worse(
            totals[first + low + 1], numbers[first + low + 1], totals[first + low], numbers[first + low]
        ):
            low += 1
        i, j = first + at, first + low
        if not _worse(totals[j], numbers[j], totals[i], numbers[i]):
            return
        totals[i], totals[j] = totals[j], totals[i]
        numbers[i], numbers[j] = numbers[j], numbers[i]
        parents[i], parents[j] = parents[j], parents[i]
        at = low


@jit()
def _topk(
    start: int, stop: int, k: int, logits: Any, sums: Any, starts: Any, stops: Any, codes: Any, offsets: Any,
    places: Any, parents: Any, numbers: Any, totals: Any, found: Any,
) -> None:  # fmt: skip
    """Request b's into rows places[b] on; found[b]: how many."""
    for b in range(start, stop):
        first, size = places[b], 0
        room = places[b + 1] - first
        for i in range(offsets[b], offsets[b + 1]):
            for c in range(starts[i], stops[i]):
                total = sums[i] + logits[i, codes[c]]
                if np.isnan(total):
                    continue
                if size < room:
                    totals[first + size], numbers[first + size], parents[first + size] = total, c, i
                    size += 1
                    if size == room:  # full: from here on a heap
                        for at in range(size // 2 - 1, -1, -1):
                            _sink(totals, numbers, parents, first, at, size)
                elif _worse(totals[first], numbers[first], total, c):
                    totals[first], numbers[first], parents[first] = total, c, i
                    _sink(totals, numbers, parents, first, 0, size)
        found[b] = size
        if size < room:
            for at in range(size // 2 - 1, -1, -1):
                _sink(totals, numbers, parents, first, at, size)
        for last in range(size - 1, 0, -1):  # the worst goes to the end, one after the other
            i, j = first, first + last
            totals[i], totals[j] = totals[j], totals[i]
            numbers[i], numbers[j] = numbers[j], numbers[i]
            parents[i], parents[j] = parents[j], parents[i]
            _sink(totals, numbers, parents, first, 0, last)


def _numpy(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def trie_logsumexp_cpu(logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor) -> Tensor:
    """``trie_logsumexp`` for float32 on the CPU."""
    out = torch.empty(logits.shape[0])
    arrays = (_numpy(x) for x in (logits, starts, stops, codes, out))
    parallel_rows(_logsumexp, logits.shape[0], *arrays, grain=_GRAIN)
    return out


def trie_logsumexp_backward_cpu(
    grad: Tensor, logits: Tensor, starts: Tensor, stops: Tensor, codes: Tensor, total: Tensor
) -> Tensor:
    """Its gradient of the logits."""
    out = torch.empty(logits.shape)
    arrays = (_numpy(x) for x in (grad, logits, starts, stops, codes, total, out))
    parallel_rows(_logsumexp_back, logits.shape[0], *arrays, grain=_GRAIN)
    return out


def trie_topk_cpu(
    logits: Tensor, totals: Tensor, starts: Tensor, stops: Tensor, codes: Tensor, offsets: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``trie_topk`` for float32 on the CPU."""
    B = offsets.shape[0] - 1
    upto = np.concatenate([[0], np.cumsum(_numpy(stops).astype(np.int64) - _numpy(starts))])
    children = np.diff(upto[_numpy(offsets)])
    places = np.concatenate([[0], np.cumsum(np.minimum(children, k))])
    M = int(places[-1])
    parents, numbers = torch.empty(M, dtype=torch.int64), torch.empty(M, dtype=torch.int64)
    best, found = torch.empty(M), np.zeros(B, np.int64)
    arrays = [_numpy(x) for x in (logits, totals, starts, stops, codes, offsets)]
    outputs = parents.numpy(), numbers.numpy(), best.numpy()
    parallel_rows(_topk, B, k, *arrays, places, *outputs, found, grain=_GRAIN)
    if int(found.sum()) < M:  # some were NaN
        kept = torch.from_numpy(np.concatenate([np.arange(a, a + n) for a, n in zip(places, found, strict=False)]))
        parents, numbers, best = parents[kept], numbers[kept], best[kept]
        places = np.concatenate([[0], np.cumsum(found)])
    return parents, numbers, best, torch.from_numpy(places)
