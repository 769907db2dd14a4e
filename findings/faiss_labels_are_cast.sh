#!/usr/bin/env bash
# faiss-cpu 1.15.1 (numpy 2.4.6, Python 3.11): what add_with_ids makes of labels that are not int64.
#
# Guess: labels are ids, so those that int64 can't hold raise, as a string or a wrong shape does.
# Seen: the Python layer casts any number without a check. Floats are cut off, so labels that differ become one;
# uint64 wraps, and 2**64 - 1 becomes -1, the label that a search answers for "nothing found". Nothing is raised or
# logged.
#
#   float64 [0.2, 0.7, 1.5]   labels [0, 0, 1]
#   uint64 [7, 2**64 - 1]     labels [7, -1]; a search for 3 of 2 vectors: [-1, 7, -1]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install faiss-cpu==1.15.1 numpy==2.4.6
cat > "$work/try.py" <<'P'
import faiss
import numpy as np


def labelled(labels):
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(4))
    index.add_with_ids(np.eye(4, dtype=np.float32)[: len(labels)], labels)
    return index, faiss.vector_to_array(index.id_map).tolist()


for labels, want in (
    (np.array([0.2, 0.7, 1.5]), [0, 0, 1]),
    (np.array([7, 2**64 - 1], np.uint64), [7, -1]),
):
    index, got = labelled(labels)
    print(labels.dtype, labels.tolist(), "labels", got)
    assert got == want
found = index.search(np.eye(4, dtype=np.float32)[1:2], 3)[1][0].tolist()
print("a search for 3 of 2 vectors:", found)
assert found == [-1, 7, -1]
P
"$work/venv/bin/python" "$work/try.py"
