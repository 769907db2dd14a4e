#!/usr/bin/env bash
# fbgemm-gpu 1.8.0 as it comes from PyPI (Linux x86-64, Python 3.12): which NVIDIA GPUs it has code for.
#
# Guess: machine code for the common ones, and PTX that the driver compiles for all others, as is usual.
# Seen: machine code for sm_80, sm_90 and sm_100, 323 fat binaries each, and no PTX at all. So 8.x, 9.x and 10.x are served;
# a T4 or V100 (7.x) and an RTX 50 or RTX PRO 6000 (12.x) find no kernel, whatever torch says of them.
#
#   machine code for sm_80     323
#   machine code for sm_90     323
#   machine code for sm_100    323
#
# No GPU and no CUDA are needed: the fat binaries in the libraries say for whom they are. The wheel is 0.5 GB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip -q download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 -d "$work" fbgemm-gpu==1.8.0
cat > "$work/try.py" <<'P'
import glob
import struct
import sys
import zipfile
from collections import Counter

MAGIC, KINDS = struct.pack("<I", 0xBA55ED50), {1: "PTX", 2: "machine code"}
found = Counter()
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/fbgemm_gpu-*.whl")[0]) as wheel:
    for name in wheel.namelist():
        if not name.endswith(".so"):
            continue
        data, at = wheel.read(name), 0
        while (at := data.find(MAGIC, at)) >= 0:
            _, version, header, size = struct.unpack_from("<IHHQ", data, at)
            if version != 1 or header != 16 or at + size > len(data):
                at += 4
                continue
            entry, end = at + header, at + header + size
            while entry < end:
                kind, _, own, length = struct.unpack_from("<HHIQ", data, entry)
                (architecture,) = struct.unpack_from("<I", data, entry + 28)
                found[KINDS.get(kind, kind), architecture] += 1
                entry += own + length
            at = end
for (kind, architecture), count in sorted(found.items()):
    print(f"{kind} for sm_{architecture}: {count} fat binaries")
assert {kind for kind, _ in found} == {"machine code"}, "there is PTX now"
assert {architecture for _, architecture in found} == {80, 90, 100}, "other architectures than were seen"
P
python3 "$work/try.py" "$work"
