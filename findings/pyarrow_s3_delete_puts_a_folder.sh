#!/usr/bin/env bash
# pyarrow 26.0.1, S3FileSystem.delete_file, against the S3 server of moto 5.1.16.
#
# Guess: one object goes, nothing else changes: S3 has no folders.
# Seen: besides, an object that nobody wrote is put: 0 bytes, named like the file's prefix with a slash, whether or not other
# files are left beside. Arrow keeps "the folder" that the file was in. So whoever lists what was written has to leave such
# objects out, a deletion needs the right to put, and a server that refuses such a name makes the call fail although the
# file is gone. The listing is asked of the server itself.
#
#   one: before data/a.parquet 3 bytes
#   one: after  data/ 0 bytes
#   two: before data/a.parquet 3 bytes, data/b.parquet 3 bytes
#   two: after  data/ 0 bytes, data/b.parquet 3 bytes
set -euo pipefail
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
server=
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install pyarrow==26.0.1 "moto[server]==5.1.16"
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/moto_server" -p "$port" > "$work/server.log" 2>&1 &
server=$!
cat > "$work/try.py" <<'P'
import sys
import time
import urllib.request
import xml.etree.ElementTree as ET

import pyarrow.fs as fs

url = f"http://127.0.0.1:{sys.argv[1]}"
for _ in range(100):
    try:
        urllib.request.urlopen(url).read()
        break
    except OSError:
        time.sleep(0.1)
s3 = fs.S3FileSystem(endpoint_override=url, access_key="a", secret_key="b", region="us-east-1", allow_bucket_creation=True)


def listed(bucket: str) -> str:
    """Asked of the server itself."""
    tree = ET.fromstring(urllib.request.urlopen(f"{url}/{bucket}?list-type=2").read())
    of = lambda x, name: next(e.text for e in x if e.tag.endswith(name))
    return ", ".join(f"{of(x, 'Key')} {of(x, 'Size')} bytes" for x in tree if x.tag.endswith("Contents")) or "nothing"


for bucket, names in (("one", ["a"]), ("two", ["a", "b"])):
    s3.create_dir(bucket)
    for name in names:
        with s3.open_output_stream(f"{bucket}/data/{name}.parquet") as out:
            out.write(b"abc")
    print(f"{bucket}: before {listed(bucket)}")
    s3.delete_file(f"{bucket}/data/a.parquet")
    print(f"{bucket}: after  {listed(bucket)}")
P
"$work/venv/bin/python" "$work/try.py" "$port" | tee "$work/out"
diff <(sed -n 's/^#   //p' "$0") "$work/out"
echo "as seen"
