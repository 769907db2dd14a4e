"""How long ago and how far away visits are from the item that is ranked: the history's gaps, of pairs.

Shapes: B candidates, V visits, T pairs of a candidate and a visit of its history.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .earth import EARTH_RADIUS_KM
from .haversine import unit_vectors_km
from .jagged import segment_ids_unchecked, shared_rows_unchecked
from .threads import jit, parallel_rows

_GRAIN = 256  # candidates


def visit_gaps_reference(hours: Tensor, visited: Tensor, place: Tensor, starts: Tensor, offsets: Tensor) -> Tensor:
    """``visit_gaps_unchecked`` pair by pair in plain PyTorch; what a GPU runs too, with the pairs' number known."""
    total = int(offsets[-1])
    rows = shared_rows_unchecked(starts, offsets, total)
    km = unit_vectors_km(visited[rows], place[segment_ids_unchecked(offsets, total)])
    return torch.stack([hours[rows], km.nan_to_num(0)], dim=1).log1p()


def visit_gaps_unchecked(hours: Tensor, visited: Tensor, place: Tensor, starts: Tensor, offsets: Tensor) -> Tensor:
    """log(1 + hours) and log(1 + km) of each pair, float32 [T, 2]; km that are unknown count as 0. On the CPU.

    A pair's gather of two places, difference, sum and two norms are one pass that keeps a ratio a pair; the angle's
    tangent and the logarithms are PyTorch's vectorised ones: a quarter of the time of the lines above. Distances are
    those of ``unit_vectors_km`` to float32's last digits.

    Args:
        hours: since each visit, float32 [V].
        visited: unit vectors of the visits' places, NaN where unknown, float32 [V, 3].
        place: the same of the candidates, float32 [B, 3].
        starts: the first visit of each candidate's history, int64 [B]; candidates may share visits.
        offsets: where its pairs are, int64 [B+1]; the last is T.
    """
    total = int(offsets[-1])
    out, km = hours.new_empty(total, 2), hours.new_empty(total)
    arrays = (x.contiguous().numpy() for x in (hours.log1p(), visited, place, starts, offsets, out, km))
    parallel_rows(_pairs, len(starts), *arrays, grain=_GRAIN)
    out[:, 1] = km.atan_().mul_(4 * EARTH_RADIUS_KM).nan_to_num_(0.0).log1p_()
    return out


@jit()
def _pairs(
    start: int, stop: int, hours: Any, visited: Any, place: Any, starts: Any, offsets: Any, out: Any, km: Any
) -> None:
    """out[t, 0] = hours[t]; km[t] = the tangent of a quarter of the angle between both places."""
    for b in range(start, stop):
        x, y, z = place[b, 0], place[b, 1], place[b, 2]
        shift = starts[b] - offsets[b]
        for t in range(offsets[b], offsets[b + 1]):
            v = t + shift
            dx, dy, dz = visited[v, 0] - x, visited[v, 1] - y, visited[v, 2] - z
            sx, sy, sz = visited[v, 0] + x, visited[v, 1] + y, visited[v, 2] + z
            chord, rest = np.sqrt(dx * dx + dy * dy + dz * dz), np.sqrt(sx * sx + sy * sy + sz * sz)
            out[t, 0] = hours[v]
            # chord and rest are 2 sin and 2 cos of half the angle; tan(a / 2) = sin(a) / (1 + cos(a)) stays finite
            km[t] = chord / (np.sqrt(chord * chord + rest * rest) + rest)
