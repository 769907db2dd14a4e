"""Vocabularies: raw values to table rows. Row 0 of every table is the one for missing or unknown values."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

REGIONS = ("province", "city", "district")
PATH_SEPARATOR = " > "


def vocabulary(values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The distinct values in sorted order after a null in row 0: one column ``value``."""
    distinct = pc.unique(values).drop_null()
    distinct = distinct.take(pc.sort_indices(distinct))
    return pa.table({"value": pa.concat_arrays([pa.nulls(1, distinct.type), distinct])})


def rows_of(values: pa.Array | pa.ChunkedArray, table: pa.Table) -> NDArray[np.int32]:
    """Row of each value in its vocabulary, int32; 0 for null and for values that are not there."""
    known = table["value"].combine_chunks().slice(1)
    rows = pc.index_in(values, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    return (rows + 1).astype(np.int32)


def category_rows(category: pa.ChunkedArray) -> tuple[pa.Table, NDArray[np.int32], pa.ListArray]:
    """Nodes of the category tree and the items' places in it.

    Args:
        category: list of string from coarse to fine; null or empty where an item has none.

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
    table = vocabulary(pa.chunked_array(nodes, pa.string()))
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


def price_rows(price: pa.ChunkedArray, buckets: int) -> tuple[pa.Table, NDArray[np.int32]]:
    """Price buckets of about equal numbers of items, named "low-high", and the row of each price (0 = none).

    Where there are no more different prices than buckets (price levels), each is a bucket of its own.
    """
    value = price.to_numpy().astype(np.float64)  # null becomes NaN
    known = value[~np.isnan(value)]
    levels = np.unique(known)
    rows = np.zeros(len(value), np.int32)
    if len(levels) > buckets:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, buckets + 1)))
        bucket = np.clip(np.searchsorted(edges, known, "right"), 1, len(edges) - 1)
        names = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    else:
        bucket = np.searchsorted(levels, known) + 1
        names = [f"{level:g}-{level:g}" for level in levels]
    rows[~np.isnan(value)] = bucket
    return pa.table({"value": pa.array([None, *names], pa.string())}), rows


def item_vocabularies(items: pa.Table, price_buckets: int) -> tuple[dict[str, pa.Table], dict[str, pa.Array]]:
    """The vocabularies of all item attributes, and the columns of rows they give the items.

    Args:
        items: in the columns of ``schema.ITEMS``.

    Returns:
        Name to vocabulary (category, brand, price, province, city, district; categories and regions are named with
        what is above them), and the columns
        ``<name>_row`` (int32) and ``category_path`` (list of int32), one value an item.
    """
    tables: dict[str, pa.Table] = {}
    columns: dict[str, pa.Array] = {}
    tables["category"], deepest, columns["category_path"] = category_rows(items["category"])
    columns["category_row"] = pa.array(deepest)
    for name, values in {"brand": items["brand"], **region_names(items)}.items():
        tables[name] = vocabulary(values)
        columns[f"{name}_row"] = pa.array(rows_of(values, tables[name]))
    tables["price"], price = price_rows(items["price"], price_buckets)
    columns["price_row"] = pa.array(price)
    return tables, columns
