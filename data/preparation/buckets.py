"""Interactions on disk in buckets of users, so that each user's rows are together and a bucket fits in memory.

A user's bucket depends on the user's id alone, and rows of a bucket are sorted before they are used, so nothing
that comes out of here depends on the order of the input.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import hash_ids, starts_run
from ..raw.columns import DataError

_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


class BucketWriter:
    """Spreads blocks of interactions over bucket files by a hash of the user.

    Args:
        folder: an existing folder for the files.
        buckets: how many.
    """

    def __init__(self, folder: Path, buckets: int) -> None:
        self.folder, self.buckets = folder, buckets
        self._writers: list[pa.ipc.RecordBatchFileWriter | None] = [None] * buckets

    def __enter__(self) -> "BucketWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for writer in self._writers:
            if writer is not None:
                writer.close()

    def write(self, block: pa.Table) -> None:
        """Add a block as ``schema.iter_interactions`` yields it."""
        user = _plain(block["user_id"])
        request = _plain(block["request_id"])
        hashed = np.zeros(len(block), np.int64)  # 0: no request id
        has = request.is_valid().to_numpy(zero_copy_only=False)
        hashed[has] = hash_ids(request.drop_null()).view(np.int64)
        table = pa.table(
            {
                "user": user,
                "item": block["item_index"].cast(pa.int32()),
                "time": block["timestamp"],
                "label": block["label"],
                "request": pa.array(hashed),
                "lat": block["user_lat"].cast(pa.float32()).fill_null(np.nan),
                "lon": block["user_lon"].cast(pa.float32()).fill_null(np.nan),
                "probability": block["probability"].fill_null(np.nan),
            }
        )
        bucket = (hash_ids(user) % np.uint64(self.buckets)).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        ends = np.cumsum(np.bincount(bucket, minlength=self.buckets))
        for i, (start, end) in enumerate(zip(ends - np.diff(ends, prepend=0), ends, strict=True)):
            if end > start:
                writer = self._writers[i]
                if writer is None:
                    path = self.folder / f"{i:05d}.arrow"
                    writer = self._writers[i] = pa.ipc.new_file(path, table.schema, options=_LZ4)
                writer.write_table(table.slice(start, end - start))


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
        encoded = _plain(table["user"]).dictionary_encode()
        by_id = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(by_id), np.int32)
        rank[by_id] = np.arange(len(by_id), dtype=np.int32)
        self.users = encoded.dictionary.take(pa.array(by_id))
        column = {name: table[name].to_numpy() for name in table.column_names if name != "user"}
        user = rank[encoded.indices.to_numpy()]
        request = np.zeros_like(column["request"]) if each_row_a_request else column["request"]
        keys = (column["label"], column["item"], request, column["time"], user)
        order = np.lexsort(keys)
        first = starts_run(*(key[order] for key in keys))
        self.repeated = int(len(order) - first.sum())
        if self.repeated:  # rows that differ in their floats alone, if at all
            order = np.lexsort((*(column[n] for n in ("probability", "lon", "lat")), *keys))
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
        order = np.lexsort((time, key, user))
        user, key, time = user[order], key[order], time[order]
        again = (user[1:] == user[:-1]) & (key[1:] == key[:-1]) & (key[1:] != 0)
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
