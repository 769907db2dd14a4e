"""Items for requests from a model of semantic IDs: exact log p of every allowed item, and the best by beams.

    log p(item) = sum over levels of log p(code | codes before it) + log p(item | code)

Both walk the prefix tree of what each request is allowed (``index.Tries``), a level at a time, all requests together;
a prefix is computed once, however many items share it. A prefix below which only one semantic ID is left needs no model
where the softmax is over what exists: its items have log p = 0 from there on.

``score`` takes so many nodes at a time, depth first, so its memory does not grow with the number of items. ``beam``
keeps the best nodes of a level; with at least as many beams as allowed IDs it finds what ``score`` finds.

Nothing is added for length. Ties go to the lower code, then to the lower item row.

Index and allowed sets lie on the host, where trees are made; a tree goes to the model's device and is walked there.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.checks import check_number
from ...kernels.jagged import segment_rows_unchecked
from ...kernels.trie_topk import trie_logsumexp_unchecked, trie_topk_unchecked
from .index import Index, Tries
from .layers import Memory, Transformer, TreeState
from .reach import Allowed, everything

CHUNK, DEVICE_CHUNK = 1024, 16_384
"""Nodes of a level that are computed together: on a CPU, where a level of them fits its caches, and elsewhere."""
MOST = 50_000
"""Items of a catalog, at most, that are scored for several requests together; on a CPU one request keeps it busy."""
REQUESTS, TOKENS = 64, 4096
"""Requests, and rows of their memories, that are decoded together; one request at least."""

Softmax = Literal["own", "existing", "allowed"]
LastMile = Callable[[Tensor, Tensor], Tensor]
"""Requests and item rows, int64 [T] each, to logits [T], of which each semantic ID's items get a softmax."""


class Model(Protocol):
    """What is decoded.

    Attributes:
        decoder: causal, with a memory.
        softmax: over what the codes' probabilities add up to 1. "own": the model's ``logits`` are log-probabilities
            already, as TIGER's over all codes: items get less than 1 together. "existing": over the codes that lead to
            an item of the catalog: all items get 1, the allowed ones what the model thinks they have. "allowed": over
            the codes that lead to an item that the request is allowed: those get 1.
    """

    decoder: Transformer
    softmax: Softmax

    def embed(self, level: int, codes: Tensor) -> Tensor:
        """What the decoder takes for codes of a level (1 to L - 1), int [n] to [n, d]."""
        ...

    def logits(self, level: int, hidden: Tensor, nodes: Tensor, about: Tensor | None) -> Tensor:
        """Logits of the codes of a level (1 to L), [n, K].

        Args:
            level: 1 to L.
            hidden: what the decoder gives for the level before, [n, d].
            nodes: their numbers in the tree that the softmax is over, int64 [n]; at level 1 zeros.
            about: ``Memory.about`` of their requests, [n, C].
        """
        ...


class Lists(NamedTuple):
    """Items by request, best first.

    Attributes:
        offsets: request b's are offsets[b] to offsets[b+1], int64 [B+1].
        items: catalog rows, int64 [T].
        log_p: [T].
    """

    offsets: Tensor
    items: Tensor
    log_p: Tensor


class _Walk:
    """The trees of some requests beside the whole catalog's, and a decoder's state on their memories."""

    def __init__(self, model: Model, memory: Memory, index: Index, tries: Tries, rows: int) -> None:
        self.model, self.memory, self.index, self.device = model, memory, index, memory.rows.device
        self.state: TreeState = model.decoder.start(memory, rows)
        self.shared = tries is index.whole()  # one tree for all requests
        # what the softmax is over: tree and, by level, the numbers there of the nodes here, unless they are the same
        own = self.shared or model.softmax == "allowed"
        self.tries = index.whole(self.device) if self.shared else tries.to(self.device)
        self.every = self.tries if own else index.whole(self.device)
        self.in_every = None if own else [x.to(self.device) for x in index.in_whole(tries)]

    def in_softmax(self, level: int, nodes: Tensor) -> Tensor:
        """Numbers of nodes of a level in the tree that the softmax is over; level 0: of the requests' roots."""
        if self.shared and level == 0:
            return torch.zeros_like(nodes)
        return nodes if self.in_every is None else self.in_every[level][nodes]

    def children(self, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """First child and end of the children of nodes of a level, int64 [n] each; level 0: of the requests' roots."""
        return _children(self.tries, level, torch.zeros_like(nodes) if self.shared and level == 0 else nodes)

    def step(
        self, level: int, nodes: Tensor, requests: Tensor, above: Tensor, at: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the next level's codes are worth after nodes of a level.

        Args:
            level: 0 (the requests' roots) to L - 1.
            nodes, requests: nodes [n] and their requests, ascending; the requests themselves at level 0.
            above: rows of the state of each node's ancestors, int64 [n, level].
            at: where in the state their own go.

        Returns:
            Logits [n, K], what to take off them to make them log p [n], and the nodes' own rows beside those above,
            [n, level + 1].
        """
        model, every, device = self.model, self.every, self.device
        of_softmax = self.in_softmax(level, nodes)
        rows = torch.cat([above, above.new_full((len(nodes), 1), -1)], dim=1)
        logits = self.memory.first.new_zeros(len(nodes), self.index.codes_per_level)
        # where one semantic ID is left, its codes have p = 1, as logits of 0 and a softmax over one code give it
        open_ = torch.ones(len(nodes), dtype=torch.bool, device=device)
        if model.softmax != "own":
            open_ = every.below(level, of_softmax) > 1
        some = open_.nonzero().squeeze(1)
        if len(some):
            rows[some, -1] = torch.arange(at, at + len(some), device=device)
            of = requests[some]
            offsets = F.pad(torch.bincount(of, minlength=len(self.memory.first)).cumsum(0), (1, 0)).tolist()
            if level == 0:
                x = self.memory.first[of]
            else:
                x = model.embed(level, self.tries.levels[level - 1].codes[nodes[some]])
            about = None if self.memory.about is None else self.memory.about[of]
            hidden = model.decoder.step(x, rows[some], offsets, self.state)
            found = model.logits(level + 1, hidden, of_softmax[some] if level else torch.zeros_like(of), about)
            logits = found if len(some) == len(nodes) else logits.index_copy_(0, some, found)
        if model.softmax == "own":
            return logits, logits.new_zeros(len(nodes)), rows
        starts, stops = _children(every, level, of_softmax)
        return logits, trie_logsumexp_unchecked(logits, starts, stops, every.levels[level].codes), rows

    def items(
        self, leaves: Tensor, requests: Tensor, totals: Tensor, last_mile: LastMile | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The items below leaves [n]: request and place in the tree's ``items``, int64 [T], and log p [T]."""
        levels = self.index.levels
        of, places = segment_rows_unchecked(*self.children(levels, leaves))
        every_of, every_places = of, places
        if self.in_every is not None:  # p(item | code) too is over all that exists
            every_of, every_places = segment_rows_unchecked(
                *_children(self.every, levels, self.in_softmax(levels, leaves))
            )
        if last_mile is None:
            counts = torch.bincount(every_of, minlength=len(leaves)).to(totals.dtype)
            return requests[of], places, (totals - counts.log())[of]
        logits = last_mile(requests[of], self.tries.items[places].long())
        among = logits
        if self.in_every is not None:
            among = last_mile(requests[every_of], self.every.items[every_places].long())
        return requests[of], places, logits + (totals - segment_logsumexp(among, every_of, len(leaves)))[of]


def _children(tries: Tries, level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    ends = tries.levels[level - 1].children if level else tries.levels[0].offsets
    return ends[nodes].long(), ends[nodes + 1].long()


def segment_logsumexp(values: Tensor, of: Tensor, segments: int) -> Tensor:
    """Over the values of each segment, [segments]."""
    top = values.new_full((segments,), -torch.inf).scatter_reduce(0, of, values, "amax")
    top = torch.where(top.isfinite(), top, 0).detach()
    return top + values.new_zeros(segments).index_add(0, of, (values - top[of]).exp()).log()


def _check(model: Model, memory: Memory, allowed: Allowed | None) -> None:
    if model.softmax not in ("own", "existing", "allowed"):
        raise ValueError(f"softmax: got {model.softmax!r}, expected own, existing or allowed")
    if model.decoder.training and model.decoder.dropout.p > 0:
        raise ValueError("the model is in training, where dropout makes other numbers each time; call eval() first")
    if allowed is not None and len(allowed.offsets) != len(memory.offsets):
        raise ValueError(
            f"allowed: got {len(allowed.offsets) - 1} requests, expected {len(memory.offsets) - 1} as in the memory"
        )


def _batches(memory: Memory) -> Iterator[tuple[int, int]]:
    """Cuts of the requests into what is decoded together."""
    offsets, start = memory.offsets.tolist(), 0
    for b in range(1, len(offsets)):
        last = b == len(offsets) - 1
        if last or b - start == REQUESTS or offsets[b + 1] - offsets[start] > TOKENS:
            yield start, b
            start = b


@torch.no_grad()
def score(
    model: Model, memory: Memory, index: Index, allowed: Allowed | None = None, last_mile: LastMile | None = None
) -> Tensor:
    """Exact log p of every allowed item.

    Args:
        model: in evaluation mode.
        memory: of B requests.
        index: the items.
        allowed: catalog rows by request, each once; None: all of the index, for each.
        last_mile: what tells items of one semantic ID apart; None: all alike.

    Returns:
        [T] in the order of ``allowed.items``, -inf for items without codes; without ``allowed`` [B, N] in that of
        ``index.items``; where the memory is.

    Raises:
        ValueError: an item twice in a request, another number of requests, a model in training.

    Beside the result and the trees of ``REQUESTS`` requests (about 40 bytes an item) it holds ``CHUNK`` nodes
    a level (elsewhere than on a CPU ``DEVICE_CHUNK``), whatever the number of items.
    """
    _check(model, memory, allowed)
    B = len(memory.first)
    whole = allowed is None
    if allowed is None and (memory.rows.device.type == "cpu" or len(index) > MOST):
        out = memory.first.new_empty(B, len(index))
        for b in range(B):
            _score(model, memory.some(b, b + 1), index, index.whole(), _later(last_mile, b), out[b])
        return out
    if allowed is None:
        allowed = everything(index.items, B)
    out = memory.first.new_full((len(allowed.items),), -torch.inf)
    for start, stop in _batches(memory):
        some = allowed.some(start, stop)
        first = int(allowed.offsets[start])
        found = out[first : first + len(some.items)]
        tries = index.tries(some)
        log_p = found.new_empty(len(tries.items))
        _score(model, memory.some(start, stop), index, tries, _later(last_mile, start), log_p)
        found[tries.rows.to(found.device)] = log_p
    return out.view(B, -1) if whole else out


def _later(last_mile: LastMile | None, start: int) -> LastMile | None:
    """The function for requests that are counted from ``start``."""
    return None if last_mile is None else lambda requests, items: last_mile(requests + start, items)


def _score(model: Model, memory: Memory, index: Index, tries: Tries, last_mile: LastMile | None, out: Tensor) -> None:
    """Log p of the trees' items, into out [T]."""
    B, L = len(memory.first), index.levels
    chunk = CHUNK if memory.rows.device.type == "cpu" else DEVICE_CHUNK
    walk = _Walk(model, memory, index, tries, B + chunk * (L - 1))
    tries = walk.tries

    def descend(level: int, nodes: Tensor, requests: Tensor, totals: Tensor, above: Tensor) -> None:
        if level == L:
            _, places, log_p = walk.items(nodes, requests, totals, last_mile)
            out[places] = log_p
            return
        at = 0 if level == 0 else B + chunk * (level - 1)
        logits, normaliser, rows = walk.step(level, nodes, requests, above, at)
        of, children = segment_rows_unchecked(*walk.children(level, nodes))
        found = (totals - normaliser)[of] + logits[of, tries.levels[level].codes[children].long()]
        del logits
        for cut in range(0, len(children), chunk):
            some = slice(cut, cut + chunk)
            descend(level + 1, children[some], requests[of[some]], found[some], rows[of[some]])

    requests = torch.arange(B, device=walk.device)
    if len(tries.items):
        descend(0, requests, requests, memory.first.new_zeros(B), requests.new_zeros(B, 0))


def best(log_p: Tensor, allowed: Allowed, k: int, seen: Tensor | None = None, new: int = 0) -> Lists:
    """The k best of what each request is allowed; ties go to the lower row; what can't be (-inf) is not listed.

    Args:
        log_p: of ``allowed.items``, [T].
        allowed: of B requests.
        k: items a request, at most.
        seen: which of the allowed items the user knows, bool [T]; for ``new``.
        new: items of a list that the user doesn't know, at least, where there are as many: the last of the others make
            room for the best of them. A user who goes to the same places hardly ever finds another among the k best.
    """
    check_number("k", k, 1, whole=True)
    check_number("new", new, 0, whole=True)
    if new > k or (new and seen is None):
        raise ValueError(f"new: got {new}, expected at most k = {k}, and to be told what was seen")
    can = log_p > -torch.inf
    of, items, log_p = allowed.requests[can], allowed.items[can], log_p[can]
    order = torch.from_numpy(np.lexsort((items.numpy(), -log_p.numpy(), of.numpy())))
    B = len(allowed.offsets) - 1
    if new and seen is not None:
        known = seen[can][order].long()
        others = torch.bincount(of, weights=1.0 - known, minlength=B).long()
        most = torch.maximum(torch.tensor(k - new), k - others)  # of those known
        before = F.pad(torch.bincount(of, weights=known.double(), minlength=B).long().cumsum(0), (1, 0))[:-1]
        order = order[(known == 0) | (known.cumsum(0) - before[of] <= most[of])]
        of = of[order]
    counts = torch.bincount(of, minlength=B)
    first = F.pad(counts.cumsum(0), (1, 0))
    kept = order[torch.arange(len(order)) - first[of] < k]  # of is in order, and stays so
    return Lists(F.pad(counts.clamp(max=k).cumsum(0), (1, 0)), items[kept], log_p[kept])


@torch.no_grad()
def beam(
    model: Model,
    memory: Memory,
    index: Index,
    allowed: Allowed | None = None,
    *,
    beams: int,
    k: int,
    last_mile: LastMile | None = None,
) -> Lists:
    """The k best of the items that ``beams`` semantic IDs a request have, kept level by level.

    Args:
        model, memory, index, allowed, last_mile: as for ``score``.
        beams: prefixes that a level keeps.
        k: items a request, at most; at most ``beams``, so that no list is shorter than what is allowed without need.

    Returns:
        Lists on the host, best first; min(k, allowed items with codes) items each. With beams for all allowed semantic
        IDs, the best of ``score`` with the same log p.

    Raises:
        ValueError: more items than beams asked for, and what ``score`` refuses.
    """
    _check(model, memory, allowed)
    check_number("beams", beams, 1, whole=True)
    check_number("k", k, 1, whole=True)
    if k > beams:
        raise ValueError(f"k: got {k}, expected at most beams = {beams}: a beam is sure to give one item, not more")
    parts = []
    for start, stop in _batches(memory):
        tries = index.whole() if allowed is None else index.tries(allowed.some(start, stop))
        parts.append(_beam(model, memory.some(start, stop), index, tries, beams, k, _later(last_mile, start)))
    counts = torch.cat([torch.zeros(0, dtype=torch.int64), *(part.offsets.diff() for part in parts)])
    items = torch.cat([torch.zeros(0, dtype=torch.int64), *(part.items for part in parts)])
    log_p = torch.cat([torch.zeros(0), *(part.log_p for part in parts)])
    return Lists(F.pad(counts.cumsum(0), (1, 0)), items, log_p)


def _beam(
    model: Model, memory: Memory, index: Index, tries: Tries, beams: int, k: int, last_mile: LastMile | None
) -> Lists:
    B, L = len(memory.first), index.levels
    walk = _Walk(model, memory, index, tries, B * (1 + beams * (L - 1)))
    nodes = requests = torch.arange(B, device=walk.device)
    totals, rows, at = memory.first.new_zeros(B), requests.new_zeros(B, 0), 0
    offsets = torch.arange(B + 1, device=walk.device)
    for level in range(L):
        logits, normaliser, own = walk.step(level, nodes, requests, rows, at)
        at += len(nodes)
        starts, stops = walk.children(level, nodes)
        codes = walk.tries.levels[level].codes
        parents, nodes, totals, offsets = trie_topk_unchecked(
            logits, totals - normaliser, starts, stops, codes, offsets, beams
        )
        requests, rows = requests[parents], own[parents]
    of, places, log_p = walk.items(nodes, requests, totals, last_mile)
    order = places.argsort(stable=True)  # so that of equals the lower code and item comes first
    order = order[log_p[order].argsort(stable=True, descending=True)]
    order = order[of[order].argsort(stable=True)]
    counts = torch.bincount(of, minlength=B)
    rank = torch.arange(len(order), device=walk.device) - (counts.cumsum(0) - counts)[of[order]]
    best = order[rank < k]
    found = F.pad(counts.clamp(max=k).cumsum(0), (1, 0)), walk.tries.items[places[best]].long(), log_p[best]
    return Lists(*(x.cpu() for x in found))
