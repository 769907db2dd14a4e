#!/usr/bin/env bash
# pyarrow 26.0.1 (numpy 2.4.6, Python 3.11): whose list is each value of a list column in?
#
# Guess: list_parent_indices(a) names, for each value of a.flatten(), the row that it came from: same length, same order.
# Seen: flatten leaves out values that lie under a null list, list_parent_indices counts them, so the two differ in
# length and what is joined by position is joined to other rows. list_flatten goes with flatten. Columns read from a
# Parquet file have nothing under their nulls; columns made with a mask, or by if_else, have.
#
#   lists [null over x, y] [z]     flatten ['z']     list_parent_indices [0, 0, 1]
#   after a round trip by Parquet  flatten ['z']     list_parent_indices [1]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install pyarrow==26.0.1 numpy==2.4.6
cat > "$work/try.py" <<'P'
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

made = pa.ListArray.from_arrays(
    pa.array([0, 2, 3], pa.int32()), pa.array(["x", "y", "z"]), mask=pa.array([True, False])
)
made.validate(full=True)
pq.write_table(pa.table({"a": made}), sys.argv[1])
read = pq.read_table(sys.argv[1])["a"].combine_chunks()
assert made.equals(read)
seen = []
for name, column in (("made with a mask", made), ("read from Parquet", read)):
    values, parents = column.flatten().to_pylist(), pc.list_parent_indices(column).to_pylist()
    print(f"{name}: {column.to_pylist()}  flatten {values}  list_parent_indices {parents}")
    assert pc.list_flatten(column).to_pylist() == values
    seen.append((values, parents))
assert seen == [(["z"], [0, 0, 1]), (["z"], [1])], "the behaviour has changed"
P
"$work/venv/bin/python" "$work/try.py" "$work/t.parquet"
