"""Items by their semantic IDs: one sorted array, whose intervals are the nodes of a prefix tree.

N items with codes, L levels, K codes a level. An item's codes are packed into one integer, the first level highest, and
items lie in the order of (codes, item). So all items with a prefix lie side by side: a node is an interval, and a set
of items, sorted by where they lie, is a tree of its own in one pass. No node is an object. Items come by a merge and go
by a pass over the array; the whole tree is made anew when it is next asked for.
"""

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.batches.semantic_features import SemanticFeatures
from ...kernels.threads import inlined, jit
from .reach import Allowed

log = logging.getLogger(__name__)
_BITS = 63  # of a packed semantic ID
_ITEMS = 2**31 - 1  # rows fit 32 bits
_NO_ITEM = -1
HOST = torch.device("cpu")


class Level(NamedTuple):
    """The nodes of one level, in the order of requests and codes; int32.

    Attributes:
        codes: [n], the code that leads to each.
        children: [n+1]; node i's are nodes children[i] to children[i+1] of the next level, those of the last level
            items.
        offsets: int64 [B+1]; request b's nodes are offsets[b] to offsets[b+1].
    """

    codes: Tensor
    children: Tensor
    offsets: Tensor


class Tries(NamedTuple):
    """A prefix tree for each of B requests.

    Attributes:
        levels: L.
        items: item rows below the last level's nodes, int32 [T].
        rows: where each of them stood in the set that it was made from, int64 [T].
    """

    levels: tuple[Level, ...]
    items: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "Tries":
        """The same on a device."""
        if self.items.device == device:
            return self
        return Tries(
            tuple(Level(*(x.to(device) for x in level)) for level in self.levels),
            self.items.to(device),
            self.rows.to(device),
        )

    def below(self, level: int, nodes: Tensor) -> Tensor:
        """How many different semantic IDs lie below nodes of a level (0: a request's root), int64 like ``nodes``."""
        first, last = (
            (nodes, nodes + 1) if level else (self.levels[0].offsets[nodes], self.levels[0].offsets[nodes + 1])
        )
        for deeper in self.levels[max(level - 1, 0) : -1]:
            first, last = deeper.children[first].long(), deeper.children[last].long()
        return last - first


class Index:
    """The items of a catalog by their semantic IDs.

    About 17 bytes an item: packed codes (8), item and its place (4 each), and, once asked for, the whole tree (2 to 9).

    Args:
        items: rows of the catalog, [N], different, 0 or more.
        codes: of each item, coarse to fine, int [N, L]; below K, -1 where an item has no code. Items with a -1 stand
            apart (``without_codes``): no tree leads to them.
        codes_per_level: K.
        lineage: hashes of the semantic IDs, the newest last, as ``SemanticFeatures`` has them.

    Raises:
        ValueError: shapes, items or codes that can't be, L levels of K codes that don't fit 63 bits.
    """

    def __init__(
        self,
        items: NDArray[np.integer],
        codes: NDArray[np.integer],
        codes_per_level: int,
        lineage: Iterable[str] = (),
    ) -> None:
        items, codes = np.asarray(items), np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] < 1 or items.shape != codes.shape[:1]:
            raise ValueError(
                f"items, codes: got {list(items.shape)} and {list(codes.shape)}, "
                "expected [N] and [N, L] with L of 1 or more"
            )
        self.levels, self.codes_per_level = codes.shape[1], codes_per_level
        self.bits = max((codes_per_level - 1).bit_length(), 1)
        if codes_per_level < 1 or self.bits * self.levels > _BITS:
            raise ValueError(
                f"codes_per_level: got {codes_per_level} with {self.levels} levels, expected 1 or more that fit "
                f"{_BITS} bits together; use fewer codes or levels"
            )
        self.lineage = tuple(lineage)
        self._keys, self._items = np.empty(0, np.int64), np.empty(0, np.int32)
        self._place = np.empty(0, np.int32)  # by item row: where it lies, or -1
        self._without = np.empty(0, np.int32)
        self._whole: dict[torch.device, Tries] = {}
        self.add(items, codes)
        if len(self._without):
            log.warning(f"{len(self._without):,} of {len(items):,} items have no semantic ID: they are never generated")

    @classmethod
    def of_tokens(cls, tokens: SemanticFeatures) -> "Index":
        """The items of a catalog, whose row 0 stands for unknown ones and is none."""
        return cls(np.arange(1, len(tokens.codes)), tokens.codes[1:], tokens.codes_per_level, tokens.lineage)

    def __len__(self) -> int:
        """Items with codes."""
        return len(self._items)

    @property
    def items(self) -> NDArray[np.int32]:
        """Item rows [N] in the order of their codes, then of their rows."""
        return self._items

    @property
    def codes(self) -> NDArray[np.int64]:
        """Their codes, [N, L]."""
        shifts = np.arange(self.levels - 1, -1, -1) * self.bits
        return (self._keys[:, None] >> shifts) & ((1 << self.bits) - 1)

    @property
    def without_codes(self) -> NDArray[np.int32]:
        """Item rows that stand apart since they have no code, in ascending order."""
        return self._without

    @property
    def nbytes(self) -> int:
        """Bytes held, the whole tree's among them if it has been asked for."""
        arrays: list[Any] = [self._keys, self._items, self._place, self._without]
        tensors = [
            x for whole in self._whole.values() for x in (*(y for level in whole.levels for y in level), whole.rows)
        ]
        return sum(x.nbytes for x in [*arrays, *tensors])

    def check_lineage(self, trained_with: str) -> None:
        """Whether a model that was trained with these IDs, or with those they were made of by adding items, fits.

        Args:
            trained_with: the hash that the model keeps.

        Raises:
            ValueError: other IDs.
        """
        if trained_with not in self.lineage:
            newest = self.lineage[-1] if self.lineage else "none"
            raise ValueError(
                f"the index has semantic IDs {newest}, the model was trained with {trained_with}: expected the same "
                "IDs, or such as placerank tokenize --add made of them; make the index of those, or train again"
            )

    def update(self, tokens: SemanticFeatures) -> None:
        """Add what items tokens have beyond those here: tokens that were made of these by ``placerank tokenize --add``.

        Raises:
            ValueError: tokens of another lineage, or of other codes for the items here.
        """
        if self.lineage and tokens.lineage[: len(self.lineage)] != self.lineage:
            raise ValueError(
                f"tokens: got the lineage {list(tokens.lineage)}, expected one that goes on from {list(self.lineage)}; "
                "make a new index of them"
            )
        if tokens.codes_per_level != self.codes_per_level or tokens.levels != self.levels:
            raise ValueError(
                f"tokens: got {tokens.levels} levels of {tokens.codes_per_level} codes, expected {self.levels} of "
                f"{self.codes_per_level}"
            )
        rows = np.arange(1, len(tokens.codes))
        here = self.has(rows)
        known = rows[here]
        if not np.array_equal(self._keys[self._place[known]], self._pack(tokens.codes[known])):
            raise ValueError("tokens: got other codes for items that are here; expected what --add leaves as it was")
        coded = (tokens.codes[1:] >= 0).all(1)
        apart = np.isin(rows, self._without)
        self.remove(rows[apart & coded])  # they have got codes since
        new = rows[~here & (coded | ~apart)]
        self.add(new, tokens.codes[new])
        self.lineage = tuple(tokens.lineage)

    def has(self, items: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether item rows [...] have codes here."""
        items = np.asarray(items)
        known = (items >= 0) & (items < len(self._place))
        return known & (self._place[np.where(known, items, 0)] >= 0) if len(self._place) else known

    def add(self, items: NDArray[np.integer], codes: NDArray[np.integer]) -> None:
        """Add items with their codes, in one merge. Nothing is changed if something is refused.

        Args:
            items: rows [n] that are not here yet.
            codes: [n, L], -1 where an item has none.

        Raises:
            ValueError: items that are here or come twice, shapes or codes that can't be.
        """
        items, codes = np.asarray(items), np.asarray(codes)
        if codes.shape != (*items.shape, self.levels) or items.ndim != 1:
            raise ValueError(
                f"codes: got {list(codes.shape)} for items {list(items.shape)}, expected [n, {self.levels}]"
            )
        if not (np.issubdtype(items.dtype, np.integer) and np.issubdtype(codes.dtype, np.integer)) and items.size:
            raise ValueError(f"items, codes: got {items.dtype} and {codes.dtype}, expected integers")
        if not len(items):
            return
        low, high = int(items.min()), int(items.max())
        if low < 0 or high >= _ITEMS:
            raise ValueError(f"items: got {low} to {high}, expected rows of 0 to {_ITEMS - 1}")
        if codes.min() < -1 or codes.max() >= self.codes_per_level:
            raise ValueError(
                f"codes: got {codes.min()} to {codes.max()}, expected 0 to {self.codes_per_level - 1}, or -1 for none"
            )
        there = self.has(items) | np.isin(items, self._without)
        if there.any():
            raise ValueError(f"items: got {items[there][0]}, which is here already; remove it first")
        coded = (codes >= 0).all(1)
        keys, rows = self._pack(codes[coded]), items[coded].astype(np.int32)
        order = np.lexsort((rows, keys))
        keys, rows = keys[order], rows[order]
        once = np.sort(items)
        if (once[1:] == once[:-1]).any():
            raise ValueError(f"items: got {once[1:][once[1:] == once[:-1]][0]} twice, expected each once")
        merged_keys, merged_items = _merge(self._keys, self._items, keys, rows)
        self._set(merged_keys, merged_items, np.union1d(self._without, items[~coded]).astype(np.int32))

    def remove(self, items: NDArray[np.integer]) -> None:
        """Take items out, in one pass. Nothing is changed if something is refused.

        Args:
            items: rows [n] that are here, with or without codes.

        Raises:
            ValueError: items that are not here.
        """
        items = np.asarray(items)
        coded = self.has(items)
        missing = ~coded & ~np.isin(items, self._without)
        if missing.any():
            raise ValueError(f"items: got {items[missing][0]}, which is not here")
        if not len(items):
            return
        keep = np.ones(len(self._items), bool)
        keep[self._place[items[coded]]] = False
        self._place[items[coded]] = _NO_ITEM
        self._set(self._keys[keep], self._items[keep], np.setdiff1d(self._without, items))

    def _pack(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        keys = np.zeros(len(codes), np.int64)
        for column in codes.T:
            keys = (keys << self.bits) | column
        return keys

    def _set(self, keys: NDArray[np.int64], items: NDArray[np.int32], without: NDArray[np.int32]) -> None:
        self._keys, self._items, self._without, self._whole = keys, items, without, {}
        rows = int(items.max(initial=-1)) + 1
        if rows > len(self._place):
            self._place = np.concatenate([self._place, np.full(rows - len(self._place), _NO_ITEM, np.int32)])
        _number(items, self._place)

    def whole(self, device: torch.device = HOST) -> Tries:
        """The tree of all items, made once a device until items come or go; its ``rows`` are those of ``items``."""
        if device not in self._whole:
            offsets = np.array([0, len(self)])
            levels = self._levels(self._keys, offsets)
            made = Tries(levels, torch.from_numpy(self._items), torch.zeros(0, dtype=torch.int64))
            self._whole[device] = made.to(device)
        return self._whole[device]

    def tries(self, allowed: Allowed) -> Tries:
        """The trees of what each request is allowed; items that have no codes or are not here are left out.

        Raises:
            ValueError: an item that comes twice in a request.
        """
        offsets, items = allowed.offsets.numpy(), allowed.items.numpy()
        rows = np.arange(len(items))
        known = self.has(items)
        if not known.all():
            rows, items = rows[known], items[known]
            offsets = np.concatenate([[0], np.cumsum(known)])[offsets]
        places = self._place[items].astype(np.int64)
        B = len(offsets) - 1
        if B > 1:
            places += np.repeat(np.arange(B) * len(self), np.diff(offsets))
        order = np.argsort(places)
        places = places[order]
        if len(places) and (places[1:] == places[:-1]).any():
            raise ValueError("allowed: got an item twice in one request, expected each once")
        if B > 1:
            places -= np.repeat(np.arange(B) * len(self), np.diff(offsets))
        levels = self._levels(self._keys[places], offsets)
        return Tries(levels, torch.from_numpy(self._items[places]), torch.from_numpy(rows[order]))

    def _levels(self, keys: NDArray[np.int64], offsets: NDArray[np.integer]) -> tuple[Level, ...]:
        """Nodes of the trees whose packed codes, ascending in each request, are given."""
        offsets = offsets.astype(np.int64)
        ends = _count(keys, offsets, self.levels, self.bits)
        codes = [np.empty(n, np.int32) for n in ends]
        children = [np.empty(n + 1, np.int32) for n in ends]
        firsts = [np.empty(len(offsets), np.int64) for _ in ends]
        _fill(keys, offsets, self.bits, tuple(codes), tuple(children), tuple(firsts))
        return tuple(Level(*map(torch.from_numpy, x)) for x in zip(codes, children, firsts, strict=True))

    def in_whole(self, tries: Tries) -> list[Tensor]:
        """Numbers of the nodes in the whole tree: of each level 0 (the root, 0 for each request) to L, int64 [n]."""
        whole = self.whole()
        found = [torch.zeros(len(tries.levels[0].offsets) - 1, dtype=torch.int64)]
        parents, starts = tries.levels[0].offsets, whole.levels[0].offsets
        for own, every in zip(tries.levels, whole.levels, strict=True):
            numbers = torch.empty(len(own.codes), dtype=torch.int64)
            _find(*(x.numpy() for x in (parents, own.codes, found[-1], starts, every.codes, numbers)))
            found.append(numbers)
            parents, starts = own.children, every.children
        return found


@jit()
def _merge(keys: Any, items: Any, new_keys: Any, new_items: Any) -> Any:
    """Two runs in the order of (key, item) as one."""
    n, m = len(keys), len(new_keys)
    out_keys, out_items = np.empty(n + m, np.int64), np.empty(n + m, np.int32)
    i = 0
    for j in range(m):
        low, high = i, n
        while low < high:  # runs of old ones are copied whole
            middle = (low + high) // 2
            if keys[middle] < new_keys[j] or (keys[middle] == new_keys[j] and items[middle] < new_items[j]):
                low = middle + 1
            else:
                high = middle
        out_keys[i + j : low + j] = keys[i:low]
        out_items[i + j : low + j] = items[i:low]
        i = low
        out_keys[i + j], out_items[i + j] = new_keys[j], new_items[j]
    out_keys[i + m :] = keys[i:]
    out_items[i + m :] = items[i:]
    return out_keys, out_items


@jit()
def _number(items: Any, place: Any) -> None:
    for i in range(len(items)):
        place[items[i]] = i


@inlined()
def _split(a: Any, b: Any, levels: int, bits: int) -> int:
    """The first level, from 0, at which two packed IDs differ; ``levels`` if they don't."""
    differ = a ^ b
    level = levels
    while differ:
        differ >>= bits
        level -= 1
    return level


@jit()
def _count(keys: Any, offsets: Any, levels: int, bits: int) -> Any:
    """Nodes a level."""
    ends = np.zeros(levels, np.int64)
    for b in range(len(offsets) - 1):
        for t in range(offsets[b], offsets[b + 1]):
            for level in range(0 if t == offsets[b] else _split(keys[t - 1], keys[t], levels, bits), levels):
                ends[level] += 1
    return ends


@jit()
def _fill(keys: Any, offsets: Any, bits: int, codes: Any, children: Any, firsts: Any) -> None:
    """Codes, children and each request's first node, level by level."""
    levels = len(codes)
    mask = (1 << bits) - 1
    ends = np.zeros(levels + 1, np.int64)
    for b in range(len(offsets) - 1):
        for level in range(levels):
            firsts[level][b] = ends[level]
        for t in range(offsets[b], offsets[b + 1]):
            for level in range(0 if t == offsets[b] else _split(keys[t - 1], keys[t], levels, bits), levels):
                codes[level][ends[level]] = (keys[t] >> (levels - 1 - level) * bits) & mask
                children[level][ends[level]] = ends[level + 1]
                ends[level] += 1
            ends[levels] += 1
    for level in range(levels):
        firsts[level][len(offsets) - 1] = ends[level]
        children[level][ends[level]] = ends[level + 1]


@jit()
def _find(parents: Any, codes: Any, above: Any, starts: Any, every: Any, out: Any) -> None:
    """Children parents[i] to parents[i+1] with ``codes``, among those of node above[i] of the whole tree."""
    for i in range(len(above)):
        at = starts[above[i]]
        for c in range(parents[i], parents[i + 1]):
            high = starts[above[i] + 1]
            while at < high:
                middle = (at + high) // 2
                if every[middle] < codes[c]:
                    at = middle + 1
                else:
                    high = middle
            out[c] = at
