"""Where ids are in a table of them: the table is hashed once, whatever is looked up in it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import hash_ids, one_array

_BLOCK = 1 << 18


class IdIndex:
    """Rows of a table by its ids. Takes 16 to 20 bytes an id beside the ids themselves.

    Rows lie in the order of their ids' hashes, and ``_first`` says where those begin that start with the same bits:
    one id or two, since there are more beginnings than ids. Arrow's ``index_in`` hashes the whole table at each call.

    Args:
        ids: int64 or string, unique and not null.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        self.type = ids.type
        wide = pa.large_string() if pa.types.is_string(ids.type) else ids.type  # strings end at 2 GiB
        self._ids = one_array(ids.cast(wide))
        blocks = [hash_ids(self._ids.slice(s, _BLOCK)) for s in range(0, len(ids), _BLOCK)]
        hashed = np.concatenate([np.zeros(0, np.uint64), *blocks])
        order = np.argsort(hashed)
        self._hash, self._row = hashed[order], order.astype(np.int32)
        bits = max(len(ids), 2).bit_length()
        self._shift = np.uint64(64 - bits)
        count = np.bincount((self._hash >> self._shift).astype(np.int64), minlength=1 << bits)
        self._first = np.zeros(len(count), np.int32)
        np.cumsum(count[:-1], out=self._first[1:])

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The row of each id, int32 [n]; -1 for null and for ids that are not there, or of another type than these.

        ``ids`` may be dictionaries.
        """
        encoded = one_array(ids).dictionary_encode()  # ids of a block repeat, and this hashes faster than we do
        if encoded.type.value_type != self.type or len(self) == 0:
            return np.full(len(ids), -1, np.int32)
        rows = np.concatenate([self._find(encoded.dictionary), np.array([-1], np.int32)])
        return rows[encoded.indices.fill_null(-1).to_numpy()]

    def _find(self, ids: pa.Array) -> NDArray[np.int32]:
        hashed = hash_ids(ids)
        at = self._first[hashed >> self._shift].astype(np.int64)
        rows = np.full(len(ids), -1, np.int32)
        left = np.arange(len(ids))
        while len(left):  # until what lies there is the id, or comes after it
            left = left[at[left] < len(self)]
            here = self._hash[at[left]]
            equal = left[here == hashed[left]]
            row = self._row[at[equal]]
            same = pc.equal(self._ids.take(pa.array(row)), ids.take(pa.array(equal)).cast(self._ids.type))
            found = same.to_numpy(zero_copy_only=False)
            rows[equal[found]] = row[found]
            left = left[here <= hashed[left]]
            left = left[rows[left] < 0]
            at[left] += 1
        return rows
