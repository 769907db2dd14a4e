"""The catalog and the users' table that ``prepare`` writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..raw.hours import OPENING_HOURS
from .before import Before, carried_on
from .vocabulary import rows_of

_HEAD, _MID = 0.1, 0.5  # the most popular tenth of the items is the head, the next 40 % the middle


def write_catalog(
    file: Path, items: pa.Table, columns: dict[str, pa.Array], counts: dict[str, NDArray[np.int64]]
) -> None:
    """Write what belongs to the items, a row each in their order, after a row 0 that stands for none.

    Args:
        items: in the columns of ``schema.ITEMS``; opening hours are written where any are known.
        columns: of ``vocabulary.item_vocabularies``, and own ones.
        counts: of the training split: ``positives`` and more columns.
    """
    n = len(items)
    by_popularity = np.argsort(-counts["positives"], kind="stable")
    bucket = np.full(n, 2, np.int8)
    bucket[by_popularity[: int(np.ceil(_MID * n))]] = 1
    bucket[by_popularity[: int(np.ceil(_HEAD * n))]] = 0
    raw = ["item_id", "name", "category", "brand", "price", "lat", "lon", "province", "city", "district"]
    if items[OPENING_HOURS].null_count < n:
        raw.append(OPENING_HOURS)
    table = items.select(raw)
    for name, column in {**columns, **counts, "popularity_bucket": bucket}.items():
        table = table.append_column(name, pa.array(column))
    missing = {"popularity_bucket": 2, "lat": np.nan, "lon": np.nan}
    first = {f.name: [missing.get(f.name, None if f.name in raw else _nothing(f.type))] for f in table.schema}
    table = pa.concat_tables([pa.table(first, schema=table.schema), table])
    pq.write_table(table.combine_chunks(), file, compression="zstd")


def _nothing(type_: pa.DataType) -> Any:
    """What a column has where there is nothing: row 0, no number, no list."""
    return [] if pa.types.is_list(type_) else np.nan if pa.types.is_floating(type_) else 0


def write_users(
    file: Path, table: pa.Table, users: pa.Table | None, own: dict[str, pa.Array], before: Before | None = None
) -> int:
    """Write the users of the vocabulary after a row 0 for all others.

    Args:
        table: ``user_id`` and counts, in the order of the vocabulary.
        users: of ``schema.read_users``.
        own: columns of ``users``, in its order; without such a table, of nobody.
        before: the day before: its users come first in ``table``, and keep what today doesn't say of them.

    Returns:
        How many of the vocabulary are in ``users``.
    """
    found = 0
    table = table.combine_chunks()
    if users is not None:
        ids, known = table["user_id"], users["user_id"]
        if ids.type != known.type:  # 7 here and "7" there are the same user
            ids, known = ids.cast(pa.string()), known.cast(pa.string())
        at = rows_of(ids, pa.table({"value": _after_null(known)}))
        found = int((at > 0).sum())
    else:
        at = np.zeros(len(table), np.int32)
    for name, values in own.items():
        after = pa.concat_arrays([pa.array([_nothing(values.type)], values.type), values]).take(pa.array(at))
        table = table.append_column(name, after if before is None else carried_on(after, at > 0, before.users[name]))
    first = {f.name: [None if f.name == "user_id" else _nothing(f.type)] for f in table.schema}
    table = pa.concat_tables([pa.table(first, schema=table.schema), table])
    pq.write_table(table.combine_chunks(), file, compression="zstd")
    return found


def by_row(parts: Sequence[pa.Table]) -> pa.Table:
    """Users of the vocabulary in the order of their rows, of ``BucketCounts.users`` of all buckets in order: those that
    have a ``user_row``, which is left out, and then the new ones as they come."""
    table = pa.concat_tables(parts)
    row = table["user_row"].to_numpy()
    order = np.argsort(np.where(row > 0, row, np.iinfo(np.int32).max), kind="stable")
    return table.take(pa.array(order)).drop_columns(["user_row"])


def _after_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(1, values.type), *values.chunks])
