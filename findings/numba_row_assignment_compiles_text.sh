#!/usr/bin/env bash
# numba 0.68.1 (numpy 2.4.6, Python 3.11): what does assigning a row to a row make numba compile?
#
# Guess: with 2-D arrays a and b of one width, a[i] = b[j] is compiled to what a loop over the columns is compiled to, and a
# check of shapes that raises a constant message.
# Seen: the message names both shapes, and is made in compiled code: conversions of integers to text, joins and copies of
# strings. A function of that one line has 37 others compiled, is six times the code, and took twenty times as long to
# compile as the loop. With cache=True it is paid once for each signature of each such function. A scalar to a row,
# a[i] = 0, is as cheap as a loop.
#
#                                          functions compiled    characters of LLVM code    seconds
#   for k in range(n): a[i, k] = b[j, k]    1                     24,074                    0.21
#   a[i] = 0.0                              1                     13,505                    0.12
#   a[i] = b[j]                            38                    151,896                    4.06
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install numba==0.68.1 numpy==2.4.6
cat > "$work/try.py" <<'P'
import time

import numba
import numpy as np
from numba.core import event


class Count(event.Listener):
    names = []

    def on_start(self, e):
        self.names.append(e.data["dispatcher"].py_func.__name__)

    def on_end(self, e):
        pass


event.register("numba:compile", Count())


@numba.njit
def warm(x):
    return x + 1


@numba.njit
def loop(a, b, i, j):
    for k in range(a.shape[1]):
        a[i, k] = b[j, k]


@numba.njit
def scalar(a, b, i, j):
    a[i] = 0.0


@numba.njit
def row(a, b, i, j):
    a[i] = b[j]


warm(1)
a, b = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
found = {}
for f in (loop, scalar, row):
    Count.names.clear()
    start = time.process_time()
    f(a, b, 0, 1)
    took = time.process_time() - start
    found[f.py_func.__name__] = len(Count.names), sum(map(len, f.inspect_llvm().values()))
    print(f"{f.py_func.__name__}: {len(Count.names)} compiled, {found[f.py_func.__name__][1]} characters of LLVM code, {took:.2f} s;"
          f" {sorted(set(Count.names))}")
assert found["loop"][0] == 1 and found["scalar"][0] == 1 and found["row"][0] > 15
assert found["scalar"][1] < 2 * found["loop"][1] and found["row"][1] > 4 * found["loop"][1]
P
"$work/venv/bin/python" "$work/try.py"
