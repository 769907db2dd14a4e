"""Category paths, coarse to fine, from text such as "Food > Sushi" or from lists."""

from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PATH = pa.list_(pa.string())
Column = TypeVar("Column", pa.Array, pa.ChunkedArray)


def category_paths(array: Column) -> Column:
    """Paths as list<string>; ">" separates levels, in text as in the elements of lists.

    "Food > Sushi" and ["Food > Sushi"] are ["Food", "Sushi"]. A list with a ">" in any element holds whole paths, one
    in each element, and the first is taken (an item has one category): ["Food > Sushi", "Shops"] is ["Food", "Sushi"].
    Other lists are paths already and stay as they are. Null and blank text give null.

    Args:
        array: text or lists of text, of any Arrow type for these (large, view, dictionary, fixed size).
    """
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([category_paths(chunk) for chunk in array.chunks], PATH)
    if not (pa.types.is_nested(array.type) or pa.types.is_null(array.type)):
        text = pc.utf8_trim_whitespace(array.cast(pa.string()))
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        return pc.split_pattern_regex(text, r"\s*>\s*").cast(PATH)
    lists = array.cast(PATH)
    whole = pc.match_substring(lists.flatten(), ">").fill_null(False).to_numpy(zero_copy_only=False)
    if not whole.any():
        return lists
    # Not list_parent_indices: it counts the values under null lists, which flatten leaves out.
    rows = np.unique(np.repeat(np.arange(len(lists)), pc.list_value_length(lists).fill_null(0).to_numpy())[whole])
    first = category_paths(pc.list_element(lists.take(pa.array(rows)), 0))
    at = np.arange(len(lists))
    at[rows] = len(lists) + np.arange(len(rows))
    return pa.concat_arrays([lists, first]).take(pa.array(at))
