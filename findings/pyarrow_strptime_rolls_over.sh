#!/usr/bin/env bash
# pyarrow 26.0.1 (Python 3.11): what strptime makes of a date that does not exist.
#
# Guess: with error_is_null=True a text that is no date is null, without it an error; a cast and strptime agree.
# Seen: days beyond the end of their month roll over into the next one, in both modes, while a month or hour out of
# range is null or an error. The cast from text to timestamp refuses all of them.
#
#   2023-02-29           2023-03-01        cast: error
#   2023-04-31           2023-05-01        cast: error
#   2023-13-01           null              cast: error
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install pyarrow==26.0.1
cat > "$work/try.py" <<'P'
import pyarrow as pa
import pyarrow.compute as pc

want = {"2023-02-28": "2023-02-28", "2023-02-29": "2023-03-01", "2023-04-31": "2023-05-01", "2023-13-01": None}
for text, expected in want.items():
    column = pa.array([text])
    day = pc.strptime(column, format="%Y-%m-%d", unit="s", error_is_null=True)[0].as_py()
    got = None if day is None else day.date().isoformat()
    try:
        strict = pc.strptime(column, format="%Y-%m-%d", unit="s")[0].as_py().date().isoformat()
    except pa.ArrowInvalid:
        strict = None
    try:
        cast = column.cast(pa.timestamp("s"))[0].as_py().date().isoformat()
    except pa.ArrowInvalid:
        cast = "error"
    print(f"{text}  strptime {got}  without error_is_null {strict or 'error'}  cast {cast}")
    assert got == strict == expected and (cast == text if text == "2023-02-28" else cast == "error"), "it has changed"
P
"$work/venv/bin/python" "$work/try.py"
