"""Where ids are in a table of them: the table is hashed once, whatever is looked up in it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..arrays import hash_ids, one_array, wide_ids


class IdIndex:
    """Rows of a table by its ids. Takes 12 to 16 bytes an id beside the ids themselves.

    Each id has a number: the first bits of its hash, and below them its row. They are sorted, and ``_first`` says where
    those begin that start with the same bits: one id or two, since there are more beginnings than ids. Arrow's
    ``index_in`` hashes the whole table at each call.

    Args:
        ids: int64 or string, unique and not null.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray) -> None:
        self.type = ids.type
        self._ids = wide_ids(ids)
        self._below = np.uint64((1 << max(len(ids) - 1, 0).bit_length()) - 1)  # bits of a row
        self._number = hash_ids(self._ids)
        self._number &= ~self._below
        self._number |= np.arange(len(ids), dtype=np.uint64)
        self._number.sort()
        bits = max(len(ids), 2).bit_length()
        self._shift = np.uint64(64 - bits)
        count = np.bincount((self._number >> self._shift).astype(np.int64), minlength=1 << bits)
        self._first = np.zeros(len(count), np.int32)
        np.cumsum(count[:-1], out=self._first[1:])

    def __len__(self) -> int:
        return len(self._ids)

    def repeated_in(self, rows: int) -> bool:
        """Whether so many rows can be expected to have an id several times, so that it pays to look for that."""
        return len(self) <= 4 * rows

    def find(self, ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """The row of each id, int32 [n]; -1 for null and for ids that are not there, or of another type than these.

        ``ids`` may be dictionaries.
        """
        array = one_array(ids)
        if pa.types.is_dictionary(array.type) or array.null_count or self.repeated_in(len(array)):
            encoded = array.dictionary_encode()  # Arrow hashes faster than we do
            rows = np.append(self._find_each(encoded.dictionary), np.int32(-1))
            return rows[encoded.indices.fill_null(-1).to_numpy()]
        return self._find_each(array)

    def _find_each(self, ids: pa.Array) -> NDArray[np.int32]:
        """As ``find``, of ids that are no dictionary, not null, and hardly ever the same."""
        rows = np.full(len(ids), -1, np.int32)
        if ids.type != self.type or len(self) == 0:
            return rows
        hashed = hash_ids(ids)
        at = self._first[hashed >> self._shift]
        hashed &= ~self._below
        left = np.arange(len(ids))
        while len(left):  # until what lies there is the id, or comes after it
            left = left[at[left] < len(self)]
            number, wanted = self._number[at[left]], hashed[left]
            here = number & ~self._below
            equal = here == wanted
            rows_there, which = (number[equal] & self._below).astype(np.int32), left[equal]
            same = pc.equal(self._ids.take(pa.array(rows_there)), ids.take(pa.array(which)).cast(self._ids.type))
            found = same.to_numpy(zero_copy_only=False)
            rows[which[found]] = rows_there[found]
            left = left[here <= wanted]
            left = left[rows[left] < 0]
            at[left] += 1
        return rows
