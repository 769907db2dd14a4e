"""Points on the sphere in tiles of near ones, so that a kernel can skip tiles that are out of reach.

Order the points along a space-filling curve, cut the order into runs of ``tile`` points, give each run a ball that
holds it: two tiles whose balls are further apart than the radius hold no pair within it. Distances here are chords,
straight lines through the sphere of radius 1, as everywhere in the kernels: 2 sin(km / 2R) for a great-circle distance.
Plain PyTorch on any device, and nothing waits for it but ``reachable_tiles``, which ``tiles_triton.py`` does without;
on the CPU the curve is a compiled loop, on CUDA curve and bounds are kernels of ``tiles_triton.py``.
"""

import functools
import math
from typing import overload

import numpy as np
import torch
from torch import Tensor

from .checks import check_number, check_tensors
from .haversine import EARTH_RADIUS_KM
from .threads import jit

BITS = 21  # an axis: three of them fill an int64, and float32 holds no more of a point in a country
LAST = (1 << BITS) - 2  # cell of an axis: the one after it stays free, so the curve's last step is for what is no place
LEVELS = 3  # of the curve that one look-up takes; divides BITS
SPREAD = np.array([0, 1, 8, 9, 64, 65, 72, 73])  # three bits, two places apart
PAIRS = 1 << 17  # of tiles whose distances are in memory at once: they stay in the processor's cache


@overload
def chord_of_km(km: float) -> float: ...
@overload
def chord_of_km(km: Tensor) -> Tensor: ...
def chord_of_km(km: float | Tensor) -> float | Tensor:
    """Chord of a great-circle distance on the unit sphere: 2 sin(km / 2R); a tensor keeps its shape, dtype and device.

    From half the circumference on (pi R, 20,015 km) the chord is infinite: rounded unit vectors of antipodes are more
    than 2 apart, and everything is within such a radius. A negative or NaN distance gives NaN: nothing is within.
    """
    if isinstance(km, Tensor):
        half = km.double() / (2 * EARTH_RADIUS_KM)
        chord = torch.where(half >= math.pi / 2, torch.inf, 2 * torch.sin(half))
        return torch.where(half >= 0, chord, torch.nan).to(km.dtype)
    half_angle = km / (2 * EARTH_RADIUS_KM)
    if not half_angle >= 0:
        return math.nan
    return math.inf if half_angle >= math.pi / 2 else 2 * math.sin(half_angle)


def check_points(name: str, points: Tensor) -> None:
    """TypeError or ValueError unless these are vectors [N, 3] in float32 or float64."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{name}: got {type(points).__name__}, expected unit vectors [N, 3]")
    if points.dim() != 2 or points.shape[1] != 3 or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: got {list(points.shape)} {points.dtype}, expected unit vectors [N, 3] in float32 or float64; "
            "unit_vectors(lat, lon) makes them"
        )


def curve_order(places: Tensor) -> Tensor:
    """Permutation that puts near points near each other: order along a Hilbert curve through the points' own box.

    Args:
        places: unit vectors [N, 3], float32 or float64; a row with NaN or infinity is no place.

    Returns:
        int64 [N], ``places[order]`` is sorted; equal points keep their order, what is no place comes last.

    The curve has 2^21 steps along the longest side of the box of the finite points, so the order is spatial within a
    street as well as around the globe. Rows of 64 points of a city have about a quarter fewer tiles in reach than on a
    Morton curve, whose jumps make some tiles huge. Curve: C. Hamilton, Compact Hilbert Indices, Dalhousie CS-2006-07.
    """
    check_points("places", places)
    if len(places) == 0:
        return torch.zeros(0, dtype=torch.int64, device=places.device)
    places = places.detach()
    if places.device.type == "cpu":
        keys = torch.from_numpy(_keys_cpu(places.contiguous().numpy(), curve_table(places.device).numpy()))
    elif places.is_cuda:
        from .tiles_triton import curve_keys_triton  # triton is not everywhere that torch is

        keys = curve_keys_triton(places)
    else:
        keys = curve_keys(places)
    return torch.argsort(keys, stable=True)


def curve_keys(places: Tensor) -> Tensor:
    """Step of the curve that each place is at, int64 [N]; 2^63 - 1 for what is no place. The reference."""
    planes = places.T.contiguous()
    known = planes.isfinite().all(0)
    low = planes.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    side = (planes.masked_fill(~known, -torch.inf).amax(1, keepdim=True) - low).amax()
    cells = (planes - low) * (LAST / side.clamp(min=torch.finfo(places.dtype).tiny * 2**BITS))
    cells = cells.masked_fill_(~known, 0).long().clamp_(0, LAST)
    return _hilbert(_interleave(cells)).masked_fill_(~known, torch.iinfo(torch.int64).max)


@jit()
def _keys_cpu(places: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``curve_keys``, the same numbers, compiled: a fifth of the time."""
    low, high = np.full(3, np.inf, places.dtype), np.full(3, -np.inf, places.dtype)
    for i in range(len(places)):
        if np.isfinite(places[i, 0]) and np.isfinite(places[i, 1]) and np.isfinite(places[i, 2]):
            for axis in range(3):
                low[axis] = min(low[axis], places[i, axis])
                high[axis] = max(high[axis], places[i, axis])
    side = max(high[0] - low[0], high[1] - low[1], high[2] - low[2], np.finfo(places.dtype).tiny * 2**BITS)
    scale = places.dtype.type(LAST / side)
    keys = np.empty(len(places), np.int64)
    for i in range(len(places)):
        keys[i] = np.iinfo(np.int64).max
        if np.isfinite(places[i, 0]) and np.isfinite(places[i, 1]) and np.isfinite(places[i, 2]):
            x = min(int((places[i, 0] - low[0]) * scale), LAST)
            y = min(int((places[i, 1] - low[1]) * scale), LAST)
            z = min(int((places[i, 2] - low[2]) * scale), LAST)
            key, state = 0, 0
            for shift in range(BITS - LEVELS, -1, -LEVELS):
                cells = SPREAD[(x >> shift) & 7] | SPREAD[(y >> shift) & 7] << 1 | SPREAD[(z >> shift) & 7] << 2
                found = table[state << 3 * LEVELS | cells]
                key, state = key << 3 * LEVELS | (found & ((1 << 3 * LEVELS) - 1)), found >> 3 * LEVELS
            keys[i] = key
    return keys


def _interleave(cells: Tensor) -> Tensor:
    """Morton index [N] of cells [3, N]: bit b of axis a becomes bit 3 b + a. Spreads the bits by halves."""
    x = cells
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | (x << shift)) & mask
    return x[0] | (x[1] << 1) | (x[2] << 2)


def _hilbert(morton: Tensor) -> Tensor:
    """Hilbert index [N] of Morton indices [N], LEVELS levels of the curve at a time."""
    table = curve_table(morton.device)
    width = 3 * LEVELS
    mask = (1 << width) - 1
    index, state = torch.zeros_like(morton), torch.zeros_like(morton)
    for shift in range(3 * BITS - width, -1, -width):
        found = table[(state << width) | ((morton >> shift) & mask)]
        index, state = (index << width) | (found & mask), found >> width
    return index


@functools.cache
def curve_table(device: torch.device) -> Tensor:
    """For each state of the curve and each cell below it: (state there << 3 LEVELS) | step of the curve in the cell.

    A state is the corner where the curve enters a cube and the axis that it leaves along (Hamilton, section 2). 98 KB,
    made once and kept on each device that asks: to copy them there is to wait.
    """
    if device.type != "cpu":
        return curve_table(torch.device("cpu")).to(device)

    def rotate(bits: int, by: int) -> int:
        by %= 3
        return ((bits << by) | (bits >> (3 - by))) & 7

    def trailing_ones(i: int) -> int:
        return (~i & (i + 1)).bit_length() - 1

    def descend(state: int, cell: int) -> tuple[int, int]:
        corner, axis = state % 8, state // 8
        gray = rotate(cell ^ corner, -(axis + 1))
        step = gray ^ (gray >> 1) ^ (gray >> 2)
        entered = 2 * ((step - 1) // 2) if step else 0
        corner ^= rotate(entered ^ (entered >> 1), axis + 1)
        turn = trailing_ones(step if step % 2 else step - 1) if step else 0
        return corner + 8 * ((axis + turn + 1) % 3), step

    table = []
    for state in range(24):
        for cells in range(1 << 3 * LEVELS):
            at, index = state, 0
            for level in reversed(range(LEVELS)):
                at, step = descend(at, (cells >> 3 * level) & 7)
                index = index << 3 | step
            table.append(at << 3 * LEVELS | index)
    return torch.tensor(table)


def tile_bounds(places: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Ball around each run of ``tile`` points.

    Args:
        places: points [N, 3] in the order of ``curve_order``, float32 or float64.
        tile: points in a run; the last may be short.

    Returns:
        centres [n, 3], the middle of the run's box, which lies inside the sphere, and radii [n], n = ceil(N / tile),
        as chords, rounded up: no finite point of the run is outside. A run without one has radius -inf: nothing
        reaches it.
    """
    check_points("places", places)
    check_number("tile", tile, 1, whole=True)
    if places.is_cuda:
        from .tiles_triton import tile_bounds_triton

        return tile_bounds_triton(places.detach(), tile)
    n = -(-len(places) // tile)
    planes = torch.nn.functional.pad(places.T, (0, n * tile - len(places)), value=torch.nan).view(3, n, tile)
    known = planes.isfinite().all(0)
    low, high = planes.masked_fill(~known, torch.inf).amin(2), planes.masked_fill(~known, -torch.inf).amax(2)
    centres = torch.where(known.any(1), (low + high) / 2, 0)
    away = _norm(planes - centres[:, :, None]).masked_fill_(~known, -torch.inf)
    limits = torch.finfo(places.dtype)
    return centres.T.contiguous(), away.amax(1) * (1 + 8 * limits.eps) + limits.tiny**0.5  # squares below tiny vanish


def _norm(planes: Tensor) -> Tensor:
    """Lengths [...] of vectors [3, ...]. PyTorch's own is slow over an axis of three."""
    return (planes[0].square() + planes[1].square() + planes[2].square()).sqrt_()


def reachable_tiles(
    centres_a: Tensor, radii_a: Tensor, centres_b: Tensor, radii_b: Tensor, chord: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Tiles of b that a tile of a has to look at: those that can hold a point within the chord of one of its own.

    Args:
        centres_a, radii_a, centres_b, radii_b: what ``tile_bounds`` gave, [na, 3], [na], [nb, 3], [nb].
        chord: largest chord, from ``chord_of_km``; one for all or [na].

    Returns:
        offsets int64 [na + 1] and tiles int64, ascending: row i has ``tiles[offsets[i]:offsets[i + 1]]``. Rounding only
        ever adds a tile, also that of a kernel which compares squared float32 chords. A place is a tile of radius 0.
        Memory: na x nb in pieces of some 4 MB, a wait for the device each where there is one.
    """
    balls = {"centres_a": (centres_a, "na 3"), "radii_a": (radii_a, "na")}
    check_tensors({**balls, "centres_b": (centres_b, "nb 3"), "radii_b": (radii_b, "nb")})
    if isinstance(chord, Tensor) and chord.shape not in ((), radii_a.shape):
        raise ValueError(f"chord: got {list(chord.shape)}, expected a number or one a tile, {list(radii_a.shape)}")
    chord = chord if isinstance(chord, Tensor) else float(chord)
    na, nb = len(centres_a), len(centres_b)
    reach = radii_a + torch.as_tensor(chord, dtype=radii_a.dtype, device=radii_a.device)
    slack = 1 + 32 * torch.finfo(radii_a.dtype).eps
    planes_a, planes_b = centres_a.T.contiguous(), centres_b.T.contiguous()
    step = max(1, PAIRS // max(nb, 1))
    counts, found = [], []
    for start in range(0, na, step):
        rows = slice(start, start + step)
        apart = _norm(planes_a[:, rows, None] - planes_b[:, None])
        near = apart <= (reach[rows, None] + radii_b) * slack
        counts.append(near.sum(1))
        found.append(near.nonzero()[:, 1])
    offsets = torch.zeros(na + 1, dtype=torch.int64, device=radii_a.device)
    if na:
        torch.cumsum(torch.cat(counts), 0, out=offsets[1:])
    return offsets, torch.cat(found) if found else offsets[:0]
