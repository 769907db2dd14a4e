#!/usr/bin/env bash
# pyarrow 25.0.1 (Parquet): a column of fixed-size lists with a null list is written without a word and can't be read.
#
# Guess: what pyarrow.parquet writes it reads, nulls among the lists too, since they are of Arrow's own types.
# Seen:  20.0.0 refuses to write it; 25.0.1 writes it, and reading raises ArrowInvalid (a null list has no elements in
#        the file, and the reader wants as many as the type says); 26.0.1 reads it back. Lists of no fixed size are
#        read back by all three. So a table of codes or vectors that some items lack, written with 26, is not readable
#        for whoever has 25.
# Output:
#        20.0.0 fixed: ArrowNotImplementedError when written
#        20.0.0 plain: [[1, 2, 3], None, [4, 5, 6]]
#        25.0.1 fixed: ArrowInvalid when read
#        25.0.1 plain: [[1, 2, 3], None, [4, 5, 6]]
#        26.0.1 fixed: [[1, 2, 3], None, [4, 5, 6]]
#        26.0.1 plain: [[1, 2, 3], None, [4, 5, 6]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/seen.py" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

for name, kind in (("fixed", pa.list_(pa.int32(), 3)), ("plain", pa.list_(pa.int32()))):
    table = pa.table({"codes": pa.array([[1, 2, 3], None, [4, 5, 6]], kind)})
    step = "written"
    try:
        pq.write_table(table, sys.argv[1])
        step = "read"
        print(pa.__version__, f"{name}:", pq.read_table(sys.argv[1])["codes"].to_pylist())
    except pa.ArrowException as error:
        print(pa.__version__, f"{name}: {type(error).__name__} when {step}")
PY
for version in 20.0.0 25.0.1 26.0.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" --disable-pip-version-check install -qq "pyarrow==$version"
    "$folder/$version/bin/python" "$folder/seen.py" "$folder/$version.parquet"
done >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#        \(2[0-9.]* [fp].*: .*\)$/\1/p' "$0")
