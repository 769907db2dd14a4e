"""Own columns of interactions on their way into samples: what is seen of them in the buckets, and what they become."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import first_of_run, starts_run
from .buckets import Bucket, is_known

MOST_VALUES = 1_000_000
"""Different texts of a column of interactions, at most; with more it is hashed."""
SAMPLED = 1 << 18
"""Training rows from which quantiles, means and leakage are told, in all."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A column that samples get beside those that all have.

    Attributes:
        name: in the samples, beginning with ``requests.OWN``.
        column: in the buckets.
        of: whether requests have it, or each candidate its own.
        form: how values become it. vocabulary: rows by ``hashes``; hashed: 1 + hash modulo ``size``; buckets: rows by
            ``edges``; number: less ``mean``, by ``scale``; raw: as they are. Of rows 0 stands for none.
    """

    name: str
    column: str
    of: Literal["request", "candidate"]
    form: Literal["vocabulary", "hashed", "buckets", "number", "raw"]
    hashes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    rows: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    size: int = 0
    edges: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    mean: float = 0.0
    scale: float = 1.0

    @property
    def dtype(self) -> Any:
        """Of the samples' column."""
        return np.float32 if self.form in ("number", "raw") else np.int32

    def of_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """What the bucket's values, hashes int64 or numbers float32 [R], become."""
        if self.form == "raw":
            return values.astype(np.float32)
        if self.form == "number":
            return ((values - self.mean) / self.scale).astype(np.float32)
        if self.form == "buckets":
            return bucket_of(values, self.edges)
        if self.form == "hashed":
            rows = 1 + (values.view(np.uint64) % np.uint64(self.size)).astype(np.int32)
            return np.where(values == 0, 0, rows).astype(np.int32)
        at = np.minimum(np.searchsorted(self.hashes, values), max(len(self.hashes) - 1, 0))
        if len(self.hashes) == 0:
            return np.zeros(len(values), np.int32)
        return np.where((values != 0) & (self.hashes[at] == values), self.rows[at], 0).astype(np.int32)


def quantile_edges(values: NDArray[Any], buckets: int) -> NDArray[np.float64]:
    """Where numbers are cut into at most ``buckets`` of about equal counts: edges [E], bucket i being
    [edges_i-1, edges_i), from -inf to inf. Of few different values each is a bucket."""
    levels = np.unique(values[~np.isnan(values)].astype(np.float64))
    if len(levels) <= buckets:
        return (levels[1:] + levels[:-1]) / 2
    cuts = np.linspace(0, 1, buckets + 1)[1:-1]
    known = values[~np.isnan(values)].astype(np.float64)
    return np.unique(np.quantile(known, cuts))


def bucket_of(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.int32]:
    """Rows of numbers: 0 for NaN, else 1 + the number of edges at or below, int32 [n]."""
    rows = 1 + np.searchsorted(edges, values.astype(np.float64), "right")
    return np.where(np.isnan(values), 0, rows).astype(np.int32)


@dataclass
class OwnSeen:
    """Of a bucket, or of all.

    Attributes:
        varies: columns that are not the same for all candidates of some request.
        values: hashes of the texts in the training split, each once, by column.
        sample: some training rows: label, item (row), user (raw id), and the columns.
    """

    varies: set[str]
    values: dict[str, NDArray[np.int64]]
    sample: pa.Table

    @classmethod
    def of(cls, b: Bucket, users: pa.Array, train: NDArray[np.bool_], most: int) -> "OwnSeen":
        """Of a bucket that is sorted; ``most`` rows of it are sampled, evenly."""
        first = first_of_run(starts_run(b.request))
        varies, values = set(), {}
        for name, x in b.own.items():
            known = is_known(x)
            same = np.where(known & known[first], x == x[first], known == known[first])
            if not same.all():
                varies.add(name)
            if x.dtype.kind == "i":
                values[name] = np.unique(x[train & known])
        rows = np.flatnonzero(train)
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)] if len(rows) else rows
        table = {"label": b.label[rows], "item": b.item[rows], "user": users.take(pa.array(b.user[rows]))}
        return cls(varies, values, pa.table(table | {name: x[rows] for name, x in b.own.items()}))

    @classmethod
    def joined(cls, seen: Sequence["OwnSeen"]) -> "OwnSeen":
        """Of all buckets, in their order."""
        names = seen[0].values
        values = {name: np.unique(np.concatenate([s.values[name] for s in seen])) for name in names}
        return cls(set().union(*(s.varies for s in seen)), values, pa.concat_tables([s.sample for s in seen]))


class Distinct:
    """Different texts as they come, unless there are more than ``MOST_VALUES``."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._kept = 0

    def add(self, values: pa.Array | pa.ChunkedArray) -> None:
        self._parts.append(pc.unique(values).drop_null())
        if sum(map(len, self._parts)) > 2 * self._kept + 65_536:
            self._pack()

    def _pack(self) -> None:
        if len(self._parts) > 1:
            self._parts = [pc.unique(pa.chunked_array(self._parts))]
        if self._parts and len(self._parts[0]) > MOST_VALUES:
            self._parts = [self._parts[0].slice(0, MOST_VALUES + 1)]
        self._kept = sum(map(len, self._parts))

    def values(self) -> pa.Array | None:
        """All of them, in any order; None where there are too many."""
        self._pack()
        if not self._parts:
            return pa.array([], pa.string())
        return self._parts[0] if len(self._parts[0]) <= MOST_VALUES else None

    @classmethod
    def joined(cls, found: Iterable["Distinct"]) -> "Distinct":
        whole = cls()
        for one in found:
            for part in one._parts:
                whole.add(part)
        return whole
