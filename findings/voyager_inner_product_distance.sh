#!/usr/bin/env bash
# voyager 2.2.3 (numpy 2.4.6, Python 3.11): get_distance of an index for inner products.
#
# Guess: the distance that a search tells for the same two vectors, 1 - a . b, whatever the index holds; for Euclidean
# and cosine distances it is so.
# Seen: it changes with the longest vector that was ever added, and falls with it, of two vectors that have nothing to
# do with it. Searches go on telling 1 - a . b. So a threshold on get_distance means something else after each add.
#
#   longest in the index   get_distance([1, 0], [1, 0])   get_distance([1, 0], [10, 0])   a search for [1, 0] and them
#   10                     -81                            -9                              0, -9
#   100                    -9801                          -9810                           0, -9
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install voyager==2.2.3 numpy==2.4.6
cat > "$work/try.py" <<'P'
import numpy as np
from voyager import Index, Space


def vector(x):
    return np.array([x, 0], np.float32)


def told(index, xs):
    ids, distances = index.query(vector(1), len(index))
    searched = dict(zip(ids.tolist(), distances.tolist()))
    return [(index.get_distance(vector(1), vector(x)), searched[i]) for i, x in enumerate(xs)]


index = Index(Space.InnerProduct, num_dimensions=2)
index.add_items(np.stack([vector(1), vector(10)]))
before = told(index, (1, 10))
index.add_item(vector(100))
after = told(index, (1, 10))
print(before, after)
assert before == [(-81, 0), (-9, -9)] and after == [(-9801, 0), (-9810, -9)]
for space, distance in ((Space.Euclidean, 81), (Space.Cosine, 0)):
    index = Index(space, num_dimensions=2)
    index.add_items(np.stack([vector(10), vector(100)]))
    assert told(index, (10,)) == [(distance, distance)], told(index, (10,))
P
"$work/venv/bin/python" "$work/try.py"
