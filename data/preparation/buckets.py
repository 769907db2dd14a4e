"""Interactions on disk in buckets of users, so that each user's rows are together and a bucket fits in memory.

A user's bucket depends on the user's id alone, and rows of a bucket are sorted before they are used, so nothing
that comes out of here depends on the order of the input.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import hash_ids, one_array, reordered, sort_order, starts_run
from ..raw.columns import DataError
from ..requests import OWN

MOST_FILES = 256  # open at a time
_WAITING = 1 << 20  # rows
LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


def bucket_rows(block: pa.Table, buckets: int) -> pa.Table:
    """Checked interactions in few bytes a row, with the number of their bucket.

    Args:
        block: as ``schema.iter_interactions`` yields it, ``encoded`` or not: user_id, timestamp, label, user_lat,
            user_lon, request_id, probability, utc_offset, item_index, and own columns, text or numbers; others are not
            used.
        buckets: how many there are in all, at most 65,536.

    Returns:
        A row each, in the columns of ``rows_schema``: bucket (a hash of the user's id, modulo), user (the id), item
        (row in the order of the items' ids), time (unix seconds), label, request (a hash of request_id, 0 = none),
        lat, lon (degrees, NaN = unknown), probability, utc_offset (minutes; NaN = unknown); user_row, folded (0: these
        are of carried visits, see ``before``); then own columns: of text a hash (0 = none), numbers (NaN = none).
    """
    own = [name for name in block.column_names if name.startswith(OWN)]
    encoded = one_array(block["user_id"]).dictionary_encode()
    bucket = (hash_ids(encoded.dictionary) % np.uint64(buckets)).astype(np.int32)
    return pa.table(
        {
            "bucket": bucket[encoded.indices.to_numpy()],
            "user": encoded.dictionary_decode(),
            "item": block["item_index"].cast(pa.int32()),
            "time": block["timestamp"],
            "label": block["label"],
            "request": hashed(block["request_id"]),
            "lat": block["user_lat"].cast(pa.float32()).fill_null(np.nan),
            "lon": block["user_lon"].cast(pa.float32()).fill_null(np.nan),
            "probability": block["probability"].fill_null(np.nan),
            "utc_offset": block["utc_offset"].fill_null(np.nan),
            "user_row": np.zeros(len(block), np.int32),
            "folded": np.zeros(len(block), np.int32),
        }
        | {name: _own(block[name]) for name in own}
    )


def hashed(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Hashes of ids or texts, 0 for null, [n]."""
    array = one_array(values)
    out = np.zeros(len(array), np.int64)
    has = array.is_valid().to_numpy(zero_copy_only=False)
    if has.any():
        encoded = array.drop_null().dictionary_encode()
        out[has] = hash_ids(encoded.dictionary).view(np.int64)[encoded.indices.to_numpy()]
    return out


def _own(values: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_string(values.type):
        return hashed(values)
    return values.cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy()


def rows_schema(user: pa.DataType, own: Iterable[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    """Of what ``bucket_rows`` returns, where ids of users are of that type: int64 or string; ``own``: names and types
    of own columns in its argument."""
    numbers = {"item": pa.int32(), "time": pa.int64(), "label": pa.int8(), "request": pa.int64()}
    floats = dict.fromkeys(("lat", "lon", "probability", "utc_offset"), pa.float32())
    carried = {"user_row": pa.int32(), "folded": pa.int32()}
    more = {name: pa.int64() if pa.types.is_string(of) else pa.float32() for name, of in own}
    return pa.schema({"bucket": pa.int32(), "user": user, **numbers, **floats, **carried, **more})


class BucketWriter:
    """Spreads rows over files by a hash of their user; rows wait until there are enough for batches of some thousands.

    Any number of threads may add rows.

    Args:
        folder: for the files, ``NUMBER.arrow``; it is made.
        buckets: how many there are in all.
        per_file: how many neighbouring ones share a file.
    """

    def __init__(self, folder: Path, buckets: int, per_file: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.buckets, self.per_file = folder, buckets, per_file
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        self._waiting: list[pa.Table] = []
        self._adding, self._writing = Lock(), Lock()

    def __enter__(self) -> "BucketWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None and self._waiting:
            self._flush(self._waiting)
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()  # or their files stay open

    def write(self, block: pa.Table) -> None:
        """Add a block as ``schema.iter_interactions`` yields it."""
        self.add(bucket_rows(block, self.buckets))

    def add(self, rows: pa.Table) -> None:
        """Add rows of ``bucket_rows``."""
        with self._adding:
            self._waiting.append(rows)
            if sum(len(t) for t in self._waiting) < _WAITING:
                return
            enough, self._waiting = self._waiting, []
        self._flush(enough)

    def _flush(self, tables: list[pa.Table]) -> None:
        """Write some rows; other threads may add further ones meanwhile."""
        table = pa.concat_tables(tables)
        tables.clear()
        file = (table["bucket"].to_numpy() // self.per_file).astype(np.uint16)  # which NumPy sorts by digits
        table = table.take(pa.array(np.argsort(file, kind="stable"))).combine_chunks()
        ends = np.cumsum(np.bincount(file))
        with self._writing:
            for i, (start, end) in enumerate(zip(ends - np.diff(ends, prepend=0), ends, strict=True)):
                if end > start:
                    if i not in self._writers:
                        path = self.folder / f"{i:05d}.arrow"
                        self._writers[i] = pa.ipc.new_file(path, table.schema, options=LZ4)
                    self._writers[i].write_table(table.slice(start, end - start))


def sharing(buckets: int) -> int:
    """How many neighbouring buckets share a file, so that at most ``MOST_FILES`` are open; ``part`` parts them."""
    return -(-buckets // MOST_FILES)


def part(files: Iterable[Path], folder: Path, buckets: int) -> None:
    """Part files that the same buckets share into files of one bucket; those are removed."""
    with BucketWriter(folder, buckets) as writer:
        for file in files:
            with pa.memory_map(str(file)) as source:
                reader = pa.ipc.open_file(source)
                for i in range(reader.num_record_batches):
                    writer.add(pa.Table.from_batches([reader.get_batch(i)]))
            file.unlink()


def by_number(files: Iterable[Path]) -> dict[int, list[Path]]:
    """Files ``NUMBER.arrow`` of several writers by their number, in order."""
    found: dict[int, list[Path]] = {}
    for file in sorted(files, key=lambda f: (f.stem, f.parent.name)):
        found.setdefault(int(file.stem), []).append(file)
    return found


def times(file: Path) -> Iterator[NDArray[np.int64]]:
    """The times in a bucket's file, batch by batch, in no order; nothing else of it is read."""
    with pa.memory_map(str(file)) as source:
        at = pa.ipc.open_file(source).schema.get_field_index("time")
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[at]))
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)["time"].to_numpy()


@dataclass
class Bucket:
    """One bucket in memory, sorted by user (in the order of the raw ids), time, request and item.

    Attributes:
        user: number among the bucket's users in the order of their ids, int32 [R].
        item: index in the items table, int32 [R].
        time: unix seconds, int64 [R].
        label: int8 [R].
        request: number of the request within the bucket, rising, int64 [R].
        lat, lon: place of the request in degrees: the first known one of its rows; NaN = unknown, float32 [R].
        probability: NaN = unknown, float32 [R].
        utc_offset: of the request in minutes: the first known one of its rows; NaN = unknown, float32 [R].
        user_row: of carried visits, the user's row in the vocabulary so far; else 0, int32 [R].
        folded: of carried visits, the user's visits of that item before it that are in no row, told on the first of
            them alone; else 0, int32 [R].
        own: further columns by name: hashes of text, int64 (0 = none), or numbers, float32 (NaN = none), [R].
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    label: NDArray[np.int8]
    request: NDArray[np.int64]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]
    probability: NDArray[np.float32]
    utc_offset: NDArray[np.float32]
    user_row: NDArray[np.int32]
    folded: NDArray[np.int32]
    own: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def columns(self) -> dict[str, NDArray[Any]]:
        """All of them by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "own"} | self.own

    @classmethod
    def of(cls, columns: dict[str, NDArray[Any]]) -> "Bucket":
        """From ``columns``."""
        own = {name: x for name, x in columns.items() if name.startswith(OWN)}
        return cls(**{name: x for name, x in columns.items() if name not in own}, own=own)

    def save(self, file: Path) -> None:
        table = pa.table(self.columns())
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, file: Path) -> "Bucket":
        """A bucket as ``save`` wrote it; the arrays are the file, and can't be written."""
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        return cls.of({name: table[name].to_numpy() for name in table.column_names})


@dataclass
class Sorted:
    """A bucket, and what is known of it once it is sorted.

    Attributes:
        users: raw ids of the bucket's users, sorted, [U].
        repeated: rows with the same user, time, item and label (and request, where these are told apart) as another.
            Of visits only one of them counts: nobody visits a place twice in one second.
        both_labels: rows with label 0 whose item has label 1 in the same request.
    """

    bucket: Bucket
    users: pa.Array
    repeated: int
    both_labels: int


def read_rows(files: Iterable[Path]) -> pa.Table:
    """All rows of files of ``BucketWriter``."""
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:
            tables.append(pa.ipc.open_file(source).read_all())
    return pa.concat_tables(tables)


def sort_rows(table: pa.Table, each_row_a_request: bool, of_request: Collection[str] = ()) -> Sorted:
    """All rows of a bucket, in whatever order they come.

    Args:
        table: of ``bucket_rows``, at least a row.
        each_row_a_request: of repeated rows one stays, and each is a request; else rows of a request share its place.
        of_request: own columns that rows of a request share too.

    Raises:
        DataError: a request_id has rows of several moments.
    """
    encoded = one_array(table["user"]).dictionary_encode()
    by_id = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(by_id), np.int32)
    rank[by_id] = np.arange(len(by_id), dtype=np.int32)
    users = encoded.dictionary.take(pa.array(by_id))
    column = {name: table[name].to_numpy() for name in table.column_names if name not in ("bucket", "user")}
    del table
    column["user"] = rank[encoded.indices.to_numpy()]
    if each_row_a_request:
        column["request"] = np.zeros_like(column["request"])
    keys = ("user", "time", "request", "item", "label")
    order = sort_order(*(column[n] for n in keys))
    b = Bucket.of({name: reordered(values, order) for name, values in column.items()})
    first = starts_run(*(getattr(b, n) for n in keys))
    repeated = int(len(order) - first.sum())
    if repeated:  # rows that differ in their floats alone, if at all
        alike = np.flatnonzero(~first | ~np.append(first[1:], True))
        rows = order[alike]
        others = [column[n][rows] for n in (*b.own, "utc_offset", "probability", "lon", "lat")]
        rows = rows[np.lexsort((*others, np.cumsum(first)[alike]))]
        for name, values in b.columns().items():
            values[alike] = column[name][rows]
    if each_row_a_request:
        if repeated:
            b = Bucket.of({name: values[first] for name, values in b.columns().items()})
        b.request = np.arange(len(b))
        return Sorted(b, users, repeated, 0)
    candidates = int(starts_run(b.user, b.time, b.request, b.item).sum())
    new = starts_run(b.user, b.time, b.request)
    _check_moments(users, b.user[new], b.request[new], b.time[new])
    b.request = np.cumsum(new) - 1
    _share(b, np.flatnonzero(new), of_request)
    return Sorted(b, users, repeated, len(order) - repeated - candidates)


def _check_moments(users: pa.Array, user: NDArray[np.int32], key: NDArray[np.int64], time: NDArray[np.int64]) -> None:
    """A request id that comes back at another moment is not one request."""
    named = np.flatnonzero(key != 0)
    order = named[sort_order(user[named], key[named], time[named])]
    user, key, time = user[order], key[order], time[order]
    again = (user[1:] == user[:-1]) & (key[1:] == key[:-1])
    if again.any():
        at = int(np.flatnonzero(again)[0])
        raise DataError(
            f"interactions: a request_id of user {users[int(user[at])].as_py()!r} has rows at "
            f"{time[at]} and at {time[at + 1]} (unix seconds), expected one moment a request ({again.sum():,} such "
            "requests in this part); give every row of a request the time at which it was shown, or drop request_id"
        )


def _share(b: Bucket, first: NDArray[np.int64], own: Collection[str]) -> None:
    """All rows of a request get its first known place and offset: on clicked rows alone these would tell the label."""
    columns = b.columns()
    for names in (("lat", "lon"), ("utc_offset",), *((name,) for name in own)):
        known = is_known(columns[names[0]])
        if not known.any():
            continue
        source = np.minimum.reduceat(np.where(known, np.arange(len(b)), len(b)), first)[b.request]
        found = source < len(b)
        source = np.where(found, source, 0)
        for name in names:
            missing = np.float32(np.nan) if columns[name].dtype.kind == "f" else np.int64(0)
            columns[name][:] = np.where(found, columns[name][source], missing)


def is_known(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where an own column has a value, bool [n]."""
    return ~np.isnan(values) if values.dtype.kind == "f" else values != 0
