"""All pairs of places within a radius, as a sparse matrix or as a mask.

What is asked of each pair is |u - v|^2 <= 4 sin^2(r / 2R): for unit vectors that is "great-circle distance at most r",
one difference and one sum of squares instead of four sines, and the difference comes first, so float32 is exact at
short range. Every path does these few operations in the same order, each rounded by itself: all find the same pairs,
to the last one on the rim.
"""

import torch
from torch import Tensor

from .pairwise_within_cpu import pairwise_within_cpu
from .tiles import check_points, chord_of_km

PAIRS = 1 << 24  # of a mask that are worked on at once
PAIRS_CPU = 1 << 17  # the same, so that they stay in the processor's cache


def pairwise_within(queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> tuple[Tensor, Tensor]:
    """The candidates within a radius of each query, exact.

    Args:
        queries: unit vectors [B, 3], float32 or float64 (``unit_vectors``).
        candidates: unit vectors [M, 3], same dtype and device; None: the queries themselves.
        km: radius, one for all or one a query [B], great-circle km. The rim counts as within.

    Returns:
        offsets int64 [B + 1] and indices int64 [nnz], CSR: query i has ``indices[offsets[i]:offsets[i + 1]]``,
        ascending. With ``candidates=None`` a point is its own neighbour, as with scikit-learn's BallTree. A point with
        NaN or infinity has no neighbours and is nobody's; a tensor's negative or NaN radius reaches nothing, not
        even the point itself. A radius of half the circumference (20,015.09 km) reaches every place.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a negative or NaN number as radius.

    float32 unit vectors hold a place to 0.3 m, and the comparison adds 3e-7 of the radius; towards the antipode a chord
    says less and less about the angle, so a rim that far is sharp to 5 km (float64: 0.2 m).

    Cost: comparing all pairs takes 9 B M flops and, written in PyTorch, some 40 B M bytes moved. Here queries are put
    in tiles of near ones along a space-filling curve and compared with what their tile can reach: for places spread
    out, 9 B flops times the candidates within a tile's width + the radius, twice (rows are counted, then filled), the
    candidates read once a tile, the result written once. On CUDA the result is then sorted row by row. Memory: the
    result, and a list of candidates a thread; on CUDA 128 MB of lists at most and some 130 MB to sort in.

    The number of pairs is known when they have been found: under ``torch.compile`` set
    ``torch._dynamo.config.capture_dynamic_output_shape_ops``, and on CUDA the call waits for the device, once or twice.
    """
    others = queries if candidates is None else candidates
    return _pairwise_within(queries, candidates, _limits(queries, others, km))


def pairwise_within_reference(queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> tuple[Tensor, Tensor]:
    """``pairwise_within`` from the mask of all pairs: B x M booleans."""
    mask = within_mask(queries, candidates, km)
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return offsets, mask.nonzero()[:, 1]


def within_mask(queries: Tensor, candidates: Tensor | None, km: float | Tensor) -> Tensor:
    """``pairwise_within`` as booleans [B, M]: True where candidate j is within the radius of query i.

    Arguments, errors and meaning are those of ``pairwise_within``. For where B x M bytes are no matter: nothing is
    skipped. Beside the mask it takes 2 MB, on CUDA 200 MB.
    """
    others = queries if candidates is None else candidates
    limits = _limits(queries, others, km)
    mask = torch.empty(len(queries), len(others), dtype=torch.bool, device=queries.device)
    planes, other_planes = queries.T.contiguous(), others.T.contiguous()
    rows = max(1, (PAIRS if queries.is_cuda else PAIRS_CPU) // max(len(others), 1))
    for start in range(0, len(queries), rows):
        some = slice(start, start + rows)
        squares = [(planes[axis, some, None] - other_planes[axis]).square_() for axis in range(3)]
        torch.le(squares[0].add_(squares[1]).add_(squares[2]), limits[some, None], out=mask[some])
    return mask


def _limits(queries: Tensor, candidates: Tensor, km: float | Tensor) -> Tensor:
    """Checks what is given; squared chord for each query, [B]: finite, -1 for a radius that reaches nothing."""
    for name, points in (("queries", queries), ("candidates", candidates)):
        check_points(name, points)
    if queries.dtype != candidates.dtype or queries.device != candidates.device:
        raise ValueError(
            f"candidates: got {candidates.dtype} on {candidates.device}, expected {queries.dtype} on {queries.device} "
            "as the queries; convert one of them"
        )
    if isinstance(km, Tensor):
        if km.shape not in ((), (len(queries),)):
            raise ValueError(
                f"km: got shape {list(km.shape)}, expected a number or one radius a query, [{len(queries)}]"
            )
        chord = chord_of_km(km.to(queries.device, torch.float64)).expand(len(queries))
    elif km >= 0:
        chord = torch.full((len(queries),), chord_of_km(km), dtype=torch.float64, device=queries.device)
    else:
        raise ValueError(f"km: got {km}, expected a radius of at least 0")
    # 8 is past every pair of points on the sphere, and finite: at an infinite coordinate the test still fails.
    return torch.nan_to_num(chord.square().clamp(max=8), nan=-1).to(queries.dtype)


@torch.library.custom_op("placerank::pairwise_within", mutates_args=())
def _pairwise_within(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    others = None if candidates is None else candidates.detach().contiguous()
    return pairwise_within_cpu(queries.detach().contiguous(), others, limits.contiguous())


@_pairwise_within.register_kernel("cuda")
def _(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    from .pairwise_within_triton import pairwise_within_triton  # triton only where it can run

    others = None if candidates is None else candidates.detach().contiguous()
    return pairwise_within_triton(queries.detach().contiguous(), others, limits.contiguous())


@_pairwise_within.register_fake
def _(queries: Tensor, candidates: Tensor | None, limits: Tensor) -> tuple[Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size()
    offsets = queries.new_empty(queries.shape[0] + 1, dtype=torch.int64)
    return offsets, queries.new_empty(pairs, dtype=torch.int64)
