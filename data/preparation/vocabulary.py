"""Vocabularies: raw values to table rows. Row 0 of every table is the one for missing or unknown values."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import one_array

REGIONS = ("province", "city", "district")
PATH_SEPARATOR = " > "


def vocabulary(values: pa.Array | pa.ChunkedArray, before: pa.Table | None = None) -> pa.Table:
    """The distinct values in sorted order after a null in row 0: one column ``value``.

    Args:
        before: a vocabulary to go on from: its values keep their rows, and only those that it lacks come after them.
    """
    known = pa.nulls(1, values.type) if before is None else one_array(before["value"])
    distinct = pc.unique(values).drop_null()
    distinct = distinct.filter(pc.invert(pc.is_in(distinct, value_set=known)))
    distinct = distinct.take(pc.sort_indices(distinct))
    return pa.table({"value": pa.concat_arrays([known, distinct])})


def rows_of(values: pa.Array | pa.ChunkedArray, table: pa.Table) -> NDArray[np.int32]:
    """Row of each value in its vocabulary, int32; 0 for null and for values that are not there."""
    known = table["value"].combine_chunks().slice(1)
    rows = pc.index_in(values, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    return (rows + 1).astype(np.int32)


def category_rows(
    category: pa.ChunkedArray, before: pa.Table | None = None
) -> tuple[pa.Table, NDArray[np.int32], pa.ListArray]:
    """Nodes of the category tree and the items' places in it.

    Args:
        category: list of string from coarse to fine; null or empty where an item has none.
        before: as of ``vocabulary``.

    Returns:
        The vocabulary of nodes (each prefix of each path, joined by " > "), the row of each item's deepest node
        (int32, 0 = none), and the rows of its whole path (list of int32, coarse to fine).
    """
    lists = pa.concat_arrays(category.chunks) if category.num_chunks else pa.array([], category.type)
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    names = lists.flatten()  # of valid lists only, so offsets are counted anew
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    nodes: list[pa.Array] = []
    where: list[NDArray[np.int64]] = []
    for depth in range(int(lengths.max(initial=0))):
        items = np.flatnonzero(lengths > depth)
        at = offsets[items] + depth
        name = names.take(pa.array(at))
        if depth:
            coarser = nodes[-1].take(pa.array(np.searchsorted(where[-1], at - 1)))
            name = pc.binary_join_element_wise(coarser, name, PATH_SEPARATOR)
        nodes.append(name)
        where.append(at)
    table = vocabulary(pa.chunked_array(nodes, pa.string()), before)
    path = np.zeros(len(names), np.int32)
    for at, node in zip(where, nodes, strict=True):
        path[at] = rows_of(node, table)
    deepest = np.zeros(len(lengths), np.int32)
    deepest[lengths > 0] = path[offsets[1:][lengths > 0] - 1]
    return table, deepest, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(path))


def region_names(items: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Provinces, cities and districts with what is above them, such as "Illinois > Springfield"; null where unknown.

    Two of one name below different parents are two. A level that is not known is left out above the first known one,
    and "?" below it, so that a district of a city and one of a province never read the same.
    """
    names: dict[str, pa.ChunkedArray] = {}
    above = pa.chunked_array([pa.nulls(len(items), pa.string())])
    for level in REGIONS:
        own = items[level]
        names[level] = pc.coalesce(pc.binary_join_element_wise(above, own, PATH_SEPARATOR), own)
        above = pc.coalesce(names[level], pc.binary_join_element_wise(above, "?", PATH_SEPARATOR))
    return names


def price_rows(
    price: pa.ChunkedArray, buckets: int, before: pa.Table | None = None
) -> tuple[pa.Table, NDArray[np.int32]]:
    """Price buckets of about equal numbers of items, named "low-high", and the row of each price (0 = none).

    Where there are no more different prices than buckets (price levels), each is a bucket of its own.

    Args:
        before: buckets to go on with: a price is in that which begins at it or next below it, or else in the first.

    Returns:
        value, low, high by row, and the rows, int32 [I].
    """
    value = price.to_numpy().astype(np.float64)  # null becomes NaN
    known = value[~np.isnan(value)]
    levels = np.unique(known)
    rows = np.zeros(len(value), np.int32)
    if before is not None and len(before) > 1:
        table, low = before, before["low"].to_numpy()[1:]
    else:
        low = high = levels
        if len(levels) > buckets:
            edges = np.unique(np.quantile(known, np.linspace(0, 1, buckets + 1)))
            low, high = edges[:-1], edges[1:]
        names = [f"{a:g}-{b:g}" for a, b in zip(low, high, strict=True)]
        columns = {"low": pa.array([None, *low], pa.float64()), "high": pa.array([None, *high], pa.float64())}
        table = pa.table({"value": pa.array([None, *names], pa.string()), **columns})
    rows[~np.isnan(value)] = np.clip(np.searchsorted(low, known, "right"), 1, max(len(low), 1))
    return table, rows


def item_vocabularies(
    items: pa.Table, price_buckets: int, before: Mapping[str, pa.Table] | None = None
) -> tuple[dict[str, pa.Table], dict[str, pa.Array]]:
    """The vocabularies of all item attributes, and the columns of rows they give the items.

    Args:
        items: in the columns of ``schema.ITEMS``.
        before: vocabularies to go on from, by name.

    Returns:
        Name to vocabulary (category, brand, price, province, city, district; categories and regions are named with
        what is above them), and the columns
        ``<name>_row`` (int32) and ``category_path`` (list of int32), one value an item.
    """
    tables: dict[str, pa.Table] = {}
    columns: dict[str, pa.Array] = {}
    before = before or {}
    tables["category"], deepest, columns["category_path"] = category_rows(items["category"], before.get("category"))
    columns["category_row"] = pa.array(deepest)
    for name, values in {"brand": items["brand"], **region_names(items)}.items():
        tables[name] = vocabulary(values, before.get(name))
        columns[f"{name}_row"] = pa.array(rows_of(values, tables[name]))
    tables["price"], price = price_rows(items["price"], price_buckets, before.get("price"))
    columns["price_row"] = pa.array(price)
    return tables, columns
