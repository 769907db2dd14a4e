#!/usr/bin/env bash
# triton 3.7.1 (Python 3.11, no GPU: kernels are compiled ahead of time): does a cache of compiled kernels move with Triton?
#
# Guess: what was compiled is found again by the kernel's text, its arguments, options, target and the version of Triton. So an
# image that is built in one folder (a build stage, a virtual environment) and run from another takes its filled
# TRITON_CACHE_DIR along, as with CUDA.
# Seen: with CUDA it does: the libraries that are linked are in the key by what is in them. With AMD they are in the key by their
# path, whether or not the kernel links them, so the same Triton in another folder compiles every kernel again.
#
#   one kernel, compiled by Triton in folder a; then a is moved to b         entries in the cache, after a and after b
#   cuda sm_90                                                               1, 1
#   hip gfx942                                                               1, 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install --target "$work/a" triton==3.7.1
cat > "$work/kernel.py" <<'P'
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, 2 * tl.load(x + at, at < n), at < n)


source = ASTSource(double, {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {"BLOCK": 128})
target = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}[sys.argv[1]]
triton.compile(source, target=target)
P
entries() { find "$work/cache-$1" -name "double.json" | wc -l; }
for folder in a b; do
    if [ "$folder" = b ]; then mv "$work/a" "$work/b"; fi
    for backend in cuda hip; do
        PYTHONPATH="$work/$folder" TRITON_CACHE_DIR="$work/cache-$backend" "$work/venv/bin/python" "$work/kernel.py" "$backend"
        echo "Triton in $folder, $backend: $(entries "$backend") in the cache"
    done
done
test "$(entries cuda)" = 1
test "$(entries hip)" = 2
