"""A table's Parquet files: one, or the parts in a folder, as Spark, Hive and pandas write them.

Of a folder all Parquet files are read in the order of their names, also those in partition folders (``day=1/``), whose
names become columns where the files lack them. Names that start with ``.`` or ``_`` (``_SUCCESS``, ``.part.crc``,
macOS's ``._part``) are nobody's data.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ..urls import UrlError, size
from ..urls import open_parquet as opened
from .columns import INTERACTIONS, ITEMS, DataError

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_TEXT = {c.name for c in (*ITEMS, *INTERACTIONS) if c.kind in ("text", "path")}
_AT_ONCE = 8  # files
_TYPED = {c.name for c in (*ITEMS, *INTERACTIONS)} | {"user_id"}


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table; it is open only while it is read, since there may be thousands.

    Attributes:
        label: name for what is written about it: the table's, and its own place among the parts.
        groups: rows of its row groups.
        stored: names of the columns in the file.
        values: of columns that only the names of its folders give.
        schema: of the file, then of ``values``.
    """

    file: Path
    label: str
    groups: list[int]
    stored: list[str]
    values: dict[str, pa.Scalar]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        return sum(self.groups)

    def with_values(self, table: pa.Table) -> pa.Table:
        """A table read from the file, with the columns that its folders' names give."""
        for name, value in self.values.items():
            table = table.append_column(name, pa.repeat(value, len(table)))
        return table


def parts(path: Path, name: str) -> list[Part]:
    """The files of a table, with what their footers say.

    Args:
        path: a raw folder, or the table's own file or, for interactions, folder.
        name: "items", "interactions" or "users".

    Raises:
        FileNotFoundError: there is none.
        DataError: a file is no Parquet, has a column twice, or lies so that rows might be counted twice.
    """
    files = table_files(path, name)
    if not files:
        beside = sorted(p.name for p in path.iterdir())[:20]
        raise FileNotFoundError(
            f"{path / name}.parquet not found; expected a Parquet file, or a folder of them; {path} holds "
            f"{beside or 'nothing'}"
        )
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # behind URLs a footer takes some requests
        return list(pool.map(lambda file: _described(path, name, file, len(files) > 1), files))


def table_files(path: Path, name: str) -> list[Path]:
    """The files of a table in the order of their names, without opening them; none where there is no such table."""
    if not path.is_dir():
        return [path]
    single, folder = path / f"{name}.parquet", path / name
    if single.exists() and folder.is_dir():
        raise DataError(f"{path}: got both {single.name} and {name}/, expected one of them; remove the other")
    if single.is_file():
        return [single]
    if single.exists() or folder.is_dir():
        folder = single if single.exists() else folder
        return _not_none(folder, _below(folder))
    if name == "interactions":
        if any((path / f"items{end}").exists() for end in ("", ".parquet")) or not (files := _below(path)):
            text = next((n for n in ("interactions.csv", "interactions.csv.gz") if (path / n).is_file()), None)
            raise FileNotFoundError(
                f"{path}: got no interactions, expected interactions.parquet or interactions/*.parquet"
                + (f"; {text} is read with --format csv" if text else "")
            )
        return files
    return []


def _not_none(folder: Path, files: list[Path]) -> list[Path]:
    if not files:
        held = sorted(p.name for p in folder.iterdir())[:20]
        raise FileNotFoundError(f"{folder} is a folder without Parquet files (*.parquet); it holds {held or 'nothing'}")
    return files


def _below(folder: Path) -> list[Path]:
    """Parquet files of a folder: its own, or those of its partitions, never both."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith((".", "_")))
    own = [p for p in entries if p.suffix == ".parquet" and p.is_file()]
    inner = {p: files for p in entries if p.is_dir() and (files := _below(p))}
    keys = {p.name.partition("=")[0] if "=" in p.name else "" for p in inner}
    if inner and (own or len(keys) > 1):
        names = [f"{p.name}/" if p in inner else p.name for p in (*own[:1], *inner)][:6]
        raise DataError(
            f"{folder}: got {', '.join(names)} side by side, expected Parquet files, or folders KEY=VALUE of one key, "
            "because rows might be in both; move the one or the other away"
        )
    return own + [file for files in inner.values() for file in files]


def _described(path: Path, name: str, file: Path, several: bool) -> Part:
    inside = file.relative_to(path).with_suffix("").parts if file != path else (file.stem,)
    if several and inside[0] in (name, f"{name}.parquet"):
        inside = inside[1:]
    label = "-".join((name, *inside)) if several else name if path.is_dir() else file.stem
    with open_parquet(file) as parquet:
        schema, footer = parquet.schema_arrow, parquet.metadata
    groups = [int(footer.row_group(i).num_rows) for i in range(footer.num_row_groups)]
    stored, values = schema.names, {}
    for folder in inside[:-1]:
        key, equals, text = folder.partition("=")
        if equals and key not in schema.names:
            values[key] = _scalar(key, unquote(text))
            schema = schema.append(pa.field(key, values[key].type))
    return Part(file, label, groups, stored, values, schema)


def _scalar(key: str, text: str) -> pa.Scalar:
    """A partition's value: a whole number where the schema may want one, else text."""
    if text == _HIVE_NULL:
        return pa.scalar(None, pa.null() if key in _TYPED - _TEXT else pa.string())
    number = key in _TYPED - _TEXT and text.lstrip("-").isdecimal()
    return pa.scalar(int(text) if number else text)


def open_parquet(file: Path, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """A Parquet file that can be read, or an error that says what is wrong with it; ``dictionaries``: text columns that
    are read as such."""
    held = size(file)
    if held is None and file.is_dir():
        raise DataError(f"{file} is a folder, expected a Parquet file; name one of those in it")
    if held is None:
        beside = sorted(p.name for p in file.parent.iterdir())[:20] if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file} not found; expected a Parquet file; {file.parent} holds {beside or 'nothing'}")
    if held == 0:
        raise DataError(f"{file}: the file is empty (0 bytes), expected Parquet; write it again")
    try:
        parquet = opened(file, read_dictionary=list(dictionaries))
    except UrlError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(unreadable(file, error)) from error
    twice = [name for name, n in Counter(parquet.schema_arrow.names).items() if n > 1]
    if twice:
        raise DataError(
            f"{file}: got the column '{twice[0]}' twice, expected each name once; drop or rename one of them"
        )
    return parquet


def unreadable(file: Path, error: Exception) -> str:
    return (
        f"{file}: not a whole Parquet file ({size(file) or 0:,} bytes; Arrow says: {error}); "
        "it is truncated or of another format; write or copy it again"
    )
