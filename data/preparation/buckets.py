"""Interactions on disk in buckets of users, so that each user's rows are together and a bucket fits in memory.

A user's bucket depends on the user's id alone, and rows of a bucket are sorted before they are used, so nothing
that comes out of here depends on the order of the input.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import hash_ids, sort_order, starts_run
from ..raw.columns import DataError
from ..raw.lookup import plain

MOST_FILES = 256  # open at a time
_WAITING = 1 << 20  # rows
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


class BucketWriter:
    """Spreads rows over files by a hash of their user; rows wait until there are enough for batches of some thousands.

    Args:
        folder: an existing folder for the files, ``NUMBER.arrow``.
        buckets: how many there are in all.
        per_file: how many neighbouring ones share a file.
    """

    def __init__(self, folder: Path, buckets: int, per_file: int = 1) -> None:
        self.folder, self.buckets, self.per_file = folder, buckets, per_file
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "BucketWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
        for writer in self._writers.values():
            writer.close()

    def write(self, block: pa.Table) -> None:
        """Add a block as ``schema.iter_interactions`` yields it."""
        request = plain(block["request_id"])
        hashed = np.zeros(len(block), np.int64)  # 0: no request id
        has = request.is_valid().to_numpy(zero_copy_only=False)
        hashed[has] = hash_ids(request.drop_null()).view(np.int64)
        user = plain(block["user_id"]).dictionary_encode()
        bucket = (hash_ids(user.dictionary) % np.uint64(self.buckets)).astype(np.uint16)
        self.add(
            pa.table(
                {
                    "bucket": bucket[user.indices.to_numpy()],
                    "user": plain(block["user_id"]),
                    "item": block["item_index"].cast(pa.int32()),
                    "time": block["timestamp"],
                    "label": block["label"],
                    "request": pa.array(hashed),
                    "lat": block["user_lat"].cast(pa.float32()).fill_null(np.nan),
                    "lon": block["user_lon"].cast(pa.float32()).fill_null(np.nan),
                    "probability": block["probability"].fill_null(np.nan),
                }
            )
        )

    def add(self, rows: pa.Table) -> None:
        """Add rows as the files hold them."""
        self._waiting.append(rows)
        if sum(len(t) for t in self._waiting) >= _WAITING:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting.clear()
        file = table["bucket"].to_numpy() // self.per_file
        table = table.take(pa.array(np.argsort(file, kind="stable"))).combine_chunks()
        ends = np.cumsum(np.bincount(file))
        for i, (start, end) in enumerate(zip(ends - np.diff(ends, prepend=0), ends, strict=True)):
            if end > start:
                if i not in self._writers:
                    path = self.folder / f"{i:05d}.arrow"
                    self._writers[i] = pa.ipc.new_file(path, table.schema, options=_LZ4)
                self._writers[i].write_table(table.slice(start, end - start))


def spread(blocks: Iterable[pa.Table], folder: Path, buckets: int) -> list[Path]:
    """Put blocks of interactions into bucket files, with at most ``MOST_FILES`` of them open.

    Where there are more buckets, neighbours share a file first, and each such file is parted in turn.

    Args:
        blocks: as ``schema.iter_interactions`` yields them.
        folder: an existing folder for the files.
        buckets: how many, at most ``MOST_FILES ** 2``.

    Returns:
        The files of the buckets that have rows, in the order of the buckets.
    """
    per_file = -(-buckets // MOST_FILES)
    shared = folder / "shared" if per_file > 1 else folder
    shared.mkdir(exist_ok=True)
    with BucketWriter(shared, buckets, per_file) as writer:
        for block in blocks:
            writer.write(block)
    if per_file > 1:
        for file in sorted(shared.glob("*.arrow")):
            with BucketWriter(folder, buckets) as writer, pa.memory_map(str(file)) as source:
                reader = pa.ipc.open_file(source)
                for i in range(reader.num_record_batches):
                    writer.add(pa.Table.from_batches([reader.get_batch(i)]))
            file.unlink()
        shared.rmdir()
    return sorted(folder.glob("*.arrow"))


def times(file: Path) -> Iterator[NDArray[np.int64]]:
    """The times in a bucket's file, batch by batch, in no order; nothing else of it is read."""
    with pa.memory_map(str(file)) as source:
        at = pa.ipc.open_file(source).schema.get_field_index("time")
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[at]))
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)["time"].to_numpy()


class Bucket:
    """One bucket in memory, sorted by user (in the order of the raw ids), time, request and item.

    Attributes:
        users: raw ids of the bucket's users, sorted, [U].
        user: index in ``users``, int32 [R].
        item: index in the items table, int32 [R].
        time: unix seconds, int64 [R].
        label: int8 [R].
        request: number of the request within the bucket, rising, int64 [R].
        lat, lon: place of the request in degrees: the first known one of its rows; NaN = unknown, float32 [R].
        probability: NaN = unknown, float32 [R].
        repeated: rows with the same user, time, item and label (and request, where these are told apart) as another.
            Of visits only one of them counts: nobody visits a place twice in one second.
        both_labels: rows with label 0 whose item has label 1 in the same request.
    """

    def __init__(self, path: Path, each_row_a_request: bool) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        encoded = plain(table["user"]).dictionary_encode()
        by_id = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(by_id), np.int32)
        rank[by_id] = np.arange(len(by_id), dtype=np.int32)
        self.users = encoded.dictionary.take(pa.array(by_id))
        column = {name: table[name].to_numpy() for name in table.column_names if name not in ("user", "bucket")}
        user = rank[encoded.indices.to_numpy()]
        request = np.zeros_like(column["request"]) if each_row_a_request else column["request"]
        keys = (column["label"], column["item"], request, column["time"], user)
        order = sort_order(*reversed(keys))
        first = starts_run(*(key[order] for key in keys))
        self.repeated = int(len(order) - first.sum())
        if self.repeated:  # rows that differ in their floats alone, if at all
            alike = np.flatnonzero(~first | ~np.append(first[1:], True))
            rows = order[alike]
            floats = (column[n][rows] for n in ("probability", "lon", "lat"))
            order[alike] = rows[np.lexsort((*floats, np.cumsum(first)[alike]))]
            order = order[first] if each_row_a_request else order
        self.user = user[order]
        self.item, self.time, self.label = (column[n][order] for n in ("item", "time", "label"))
        self.lat, self.lon, self.probability = (column[n][order] for n in ("lat", "lon", "probability"))
        self.both_labels = 0
        if each_row_a_request:
            self.request = np.arange(len(order))
            return
        key = request[order]
        candidates = int(starts_run(self.user, self.time, key, self.item).sum())
        self.both_labels = len(order) - self.repeated - candidates
        new = starts_run(self.user, self.time, key)
        self._check_moments(self.user[new], key[new], self.time[new])
        self.request = np.cumsum(new) - 1
        self._share_place(np.flatnonzero(new))

    def __len__(self) -> int:
        return len(self.user)

    def _check_moments(self, user: NDArray[np.int32], key: NDArray[np.int64], time: NDArray[np.int64]) -> None:
        """A request id that comes back at another moment is not one request."""
        named = np.flatnonzero(key != 0)
        order = named[sort_order(user[named], key[named], time[named])]
        user, key, time = user[order], key[order], time[order]
        again = (user[1:] == user[:-1]) & (key[1:] == key[:-1])
        if again.any():
            at = int(np.flatnonzero(again)[0])
            raise DataError(
                f"interactions: a request_id of user {self.users[int(user[at])].as_py()!r} has rows at "
                f"{time[at]} and at {time[at + 1]} (unix seconds), expected one moment a request ({again.sum():,} such "
                "requests in this part); give every row of a request the time at which it was shown, or drop request_id"
            )

    def _share_place(self, first: NDArray[np.int64]) -> None:
        """All rows of a request get its first known place: a place on the clicked rows alone would tell the label."""
        known = np.where(np.isnan(self.lat), len(self.lat), np.arange(len(self.lat)))
        source = np.minimum.reduceat(known, first)[self.request]
        found = source < len(self.lat)
        source = np.where(found, source, 0)
        self.lat = np.where(found, self.lat[source], np.float32(np.nan))
        self.lon = np.where(found, self.lon[source], np.float32(np.nan))
