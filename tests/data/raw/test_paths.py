"""Category paths from text and from lists, of every Arrow type that holds them."""

import pyarrow as pa
import pytest

from placerank.data.raw.paths import PATH, category_paths

TEXT = ["Food > Sushi", " Food>Sushi ", "Bar", "", "  ", None, "A > ", "Beer, Wine & Spirits"]
OF_TEXT = [["Food", "Sushi"], ["Food", "Sushi"], ["Bar"], None, None, None, ["A", ""], ["Beer, Wine & Spirits"]]
LISTS = [
    ["Food", "Sushi"], ["A > B", "A > C"], None, [], ["A > B"], ["Shops", "A > B"], [None, "x"], [" Food "],
    ["A > B > C", "D", None],
]  # fmt: skip
OF_LISTS = [["Food", "Sushi"], ["A", "B"], None, [], ["A", "B"], ["Shops"], [None, "x"], [" Food "], ["A", "B", "C"]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text(kind: pa.DataType) -> None:
    array = pa.array(TEXT).cast(kind)
    assert category_paths(array).to_pylist() == OF_TEXT and category_paths(array).type == PATH
    assert category_paths(pa.chunked_array([array[:3], array[3:3], array[3:]])).to_pylist() == OF_TEXT
    assert category_paths(pa.chunked_array([], kind)).type == PATH


@pytest.mark.parametrize(
    "kind", [PATH, pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int32(), pa.string()))], ids=str
)
def test_lists(kind: pa.DataType) -> None:
    values = pa.array(LISTS, kind)
    assert category_paths(values).to_pylist() == OF_LISTS and category_paths(values).type == PATH
    for start in range(len(LISTS)):  # slices keep the offsets of the whole
        assert category_paths(values[start:]).to_pylist() == OF_LISTS[start:]
    assert category_paths(pa.chunked_array([values, values])).to_pylist() == OF_LISTS * 2


def test_a_null_list_over_values_and_columns_without_values() -> None:
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 4], pa.int32()), pa.array(["a > b", "c", "d", "e > f"]), mask=pa.array([True, False, False])
    )
    assert category_paths(hidden).to_pylist() == [None, ["d"], ["e", "f"]]
    assert category_paths(pa.nulls(2)).to_pylist() == [None, None]
    assert category_paths(pa.array([[None], []])).to_pylist() == [[None], []]
    fixed = pa.array([["a", "b"], None, ["a > b", "c"]], pa.list_(pa.string(), 2))
    assert category_paths(fixed).to_pylist() == [["a", "b"], None, ["a", "b"]]
