#!/usr/bin/env bash
# usearch 2.26.6 (numpy 2.4.6, Python 3.11): what MetricKind.Haversine takes and gives.
#
# Guess: as scikit-learn's haversine (BallTree, haversine_distances), the other index that has this metric: radians in,
# radians out. Or as libraries of maps have it: degrees in, kilometres out.
# Seen: half of each. Latitude and longitude are taken in degrees, and the distance comes in radians, so kilometres are
# 6371 times it. Places given in radians are taken for degrees near 0, 0: no error, plausible small numbers, the order of
# places far from the equator wrong (a degree of longitude counts as much as one of latitude), and a radius of r / 6371
# finds too much. Nothing in the package's docstrings names a unit. With f32 the error at 100 m is below a millimetre.
#
#   Berlin to Potsdam (26.6 km: 0.00417 radians)    given in degrees 0.00417    in radians 0.00011
#   nearer to 60 N 10 E: 0.8 degrees north, or 1.2 east    in degrees the one in the east, in radians the one in the north
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install usearch==2.26.6 numpy==2.4.6
cat > "$work/try.py" <<'P'
import numpy as np
from usearch.index import Index, MetricKind


def nearest(places, request, k=1):
    index = Index(ndim=2, metric=MetricKind.Haversine, dtype="f32")
    index.add(np.arange(len(places)), np.asarray(places, dtype=np.float32))
    found = index.search(np.asarray(request, dtype=np.float32), k)
    return found.keys.tolist(), found.distances.tolist()


def angle(a, b):
    (la, lo), (lb, lp) = np.radians(a), np.radians(b)
    h = np.sin((la - lb) / 2) ** 2 + np.cos(la) * np.cos(lb) * np.sin((lo - lp) / 2) ** 2
    return 2 * np.arcsin(np.sqrt(h))


berlin, potsdam = (52.52, 13.405), (52.40, 13.066)
truth = angle(berlin, potsdam)
_, [degrees] = nearest([berlin], potsdam)
_, [radians] = nearest(np.radians([berlin]), np.radians(potsdam))
print(f"truth {truth:.6f}  given in degrees {degrees:.6f}  given in radians {radians:.6f}")
assert abs(degrees / truth - 1) < 1e-3, "degrees in, radians out no longer"
assert radians < truth / 30, "radians are no longer taken for degrees"

request, places = (60.0, 10.0), [(60.8, 10.0), (60.0, 11.2)]
in_degrees, in_radians = nearest(places, request)[0], nearest(np.radians(places), np.radians(request))[0]
print(f"nearest in degrees {in_degrees}, in radians {in_radians}; truth {[angle(request, p) for p in places]}")
assert in_degrees == [1] and in_radians == [0], "the order of places given in radians is right now"

a, b = (40.7, -74.0), (40.7009, -74.0)
_, [near] = nearest([a], b)
exact = angle(np.float32(a).astype(float), np.float32(b).astype(float))
print(f"100 m: off by {abs(near - exact) * 6371e3 * 1000:.3f} mm")
assert abs(near - exact) * 6371e3 < 1e-3
P
"$work/venv/bin/python" "$work/try.py"
