#!/usr/bin/env bash
# faiss-cpu 1.15.1 (numpy 2.4.6, Python 3.11): what the code of a vector depends on, with faiss.LocalSearchQuantizer.
#
# Guess: on the quantizer and the vector, as with ResidualQuantizer: copies have one code, and an item that comes later,
# alone, gets the code that it would have had among all others. So codes can serve as ids of places.
# Seen: on its position in the call too. Codes are found by a search with random numbers, drawn anew from one seed by each
# call and shared out by position. The same call gives the same codes, so nothing looks random; but more than a third of the
# vectors get other codes alone, and as many where the batch is turned around. Copies in one batch have several codes, and
# several distances to a request. More iterations (encode_ils_iters) make it rarer. compute_codes says nothing of it.
#
#                      same call again   in reverse order   one at a time   codes of 1000 copies
#   residual           all the same      all                all             1
#   local search       all the same      61 %               63 %            3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install faiss-cpu==1.15.1 numpy==2.4.6
cat > "$work/try.py" <<'P'
import faiss
import numpy as np

draw = np.random.default_rng(0)
middles = draw.normal(size=(50, 16))
vectors = (middles[draw.integers(0, 50, 6000)] + 0.3 * draw.normal(size=(6000, 16))).astype(np.float32)
known, new = vectors[:5000], vectors[5000:5200]


def shares(quantizer):
    quantizer.train(known)
    codes = quantizer.compute_codes(new)
    ways = {
        "same call again": quantizer.compute_codes(new),
        "in reverse order": quantizer.compute_codes(new[::-1].copy())[::-1],
        "one at a time": np.concatenate([quantizer.compute_codes(new[i : i + 1]) for i in range(len(new))]),
    }
    copies = quantizer.compute_codes(np.repeat(new[:1], 1000, 0))
    errors = ((quantizer.decode(copies) - new[:1]) ** 2).sum(1)
    same = {way: float((found == codes).all(1).mean()) for way, found in ways.items()}
    return same, len(np.unique(copies, axis=0)), (float(errors.min()), float(errors.max()))


for kind in (faiss.ResidualQuantizer, faiss.LocalSearchQuantizer):
    same, codes, errors = shares(kind(16, 4, 6))  # 4 levels of 64 codes
    print(f"{kind.__name__}: share of codes that stay {same}; codes of 1000 copies {codes}, their errors {errors}")
    if kind is faiss.ResidualQuantizer:
        assert set(same.values()) == {1.0} and codes == 1
    else:
        assert same["same call again"] == 1, "the same call no longer gives the same codes"
        assert same["in reverse order"] < 0.9 and same["one at a time"] < 0.9, "the batch no longer counts"
        assert codes > 1 and errors[0] < errors[1], "copies have one code now"
P
"$work/venv/bin/python" "$work/try.py"
