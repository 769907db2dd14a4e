"""Own columns of CSV: text made numbers, dates and lists, as the first block of rows shows them."""

import pyarrow as pa
import pyarrow.compute as pc

from .checks import as_mask
from .columns import YEAR_2200, Column, text_column
from .own import KNOWN, Declaration
from .paths import PATH
from .values import MISSING_IDS, numbers, times

_DAY = r"^\s*\d{4}-\d\d-\d\d"
_SPLIT = (r"|", r";")


class OwnText:
    """The own columns of a CSV table.

    What they are is told from the first block: numbers if all values are, dates likewise, lists where any has a "|" or
    a ";", else text. A value of a later block that does not fit is a bad row, since it was a number before.

    Args:
        of: "items", "users" or "interactions".
        table: the first block, all text.
        known: names in the file that the schema's columns are read from.
        declaration: what the user says of columns.
    """

    def __init__(self, of: str, table: pa.Table, known: set[str], declaration: Declaration) -> None:
        self.columns: list[Column] = []
        self._split: dict[str, str] = {}
        says = declaration.get(of, {})
        for name in table.column_names:
            if name in known or not name.strip() or name in KNOWN[of] or table.column_names.count(name) > 1:
                continue
            kind = says[name].kind if name in says else None
            self.columns.append(self._column(name, _filled(table[name]).drop_null(), kind))

    def _column(self, name: str, text: pa.ChunkedArray, kind: str | None) -> Column:
        if kind == "category" or (kind is None and len(text) == 0):
            return text_column(name)
        marks = [mark for mark in _SPLIT if pc.any(pc.match_substring(text, mark)).as_py()]
        if kind == "list" or (kind is None and marks):
            self._split[name] = marks[0] if marks else _SPLIT[0]
            return Column(name=name, kind="path", type=PATH, expected="a list")
        found = numbers(text)
        if found.null_count == 0 and pc.all(pc.is_finite(found), min_count=0).as_py():
            whole = not pc.any(pc.match_substring_regex(text, "[.eE]")).as_py()
            coded = pc.any(pc.match_substring_regex(text, r"^\s*0\d")).as_py()  # 0042 is a code
            if whole and kind is None and (coded or pc.max(pc.abs(found)).as_py() >= 2**53):
                return text_column(name)
            type_ = pa.int64() if whole and kind is None else pa.float64()
            return Column(name=name, kind="number", type=type_, expected="a number, as in the first rows of the file")
        if times(text).null_count == 0 and pc.all(pc.match_substring_regex(text, _DAY)).as_py():
            expected = "a date, as in the first rows of the file"
            low, high = -YEAR_2200, YEAR_2200
            return Column(name=name, kind="time", type=pa.timestamp("s"), low=low, high=high, expected=expected)
        return text_column(name)

    def values(self, raw: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Of a block the own columns as text, missing ones null, and as values."""
        texts, values = {}, {}
        for column in self.columns:
            text = texts[column.name] = _filled(raw[column.name])
            if column.kind == "number":
                text = numbers(text)
            elif column.kind == "time":
                text = times(text)
            elif column.kind == "path":
                text = self._lists(column.name, text)
            values[column.name] = text
        return pa.table(texts), pa.table(values)

    def _lists(self, name: str, text: pa.ChunkedArray) -> pa.ChunkedArray:
        lists = [[w for w in map(str.strip, t.split(self._split[name])) if w] if t else None for t in text.to_pylist()]
        return pa.chunked_array([pa.array(lists, PATH)])


def _filled(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text in which what stands for a missing value is null."""
    text = text.cast(pa.string())
    blank = as_mask(pc.equal(pc.utf8_trim_whitespace(text), "")) | as_mask(pc.is_in(text, value_set=MISSING_IDS))
    return pc.if_else(pa.array(blank), pa.scalar(None, pa.string()), text)
