"""ReST's three-stage sampler: the hardest negatives near each item of a batch, and a positive, in one pass."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_number
from .hard_negatives_cpu import hard_negatives_cpu
from .places import Places, Search, check_places, sort_places
from .tiles import chord_of_km

Choice = Literal["hardest", "random"]


class HardNegatives(NamedTuple):
    """Rows of the candidates; 0 where not valid, so that indexing with them is safe.

    Attributes:
        negatives: int64 [B, k], the valid ones first, hardest first (in random order if drawn at random).
        negatives_valid: bool [B, k].
        positives: int64 [B].
        positives_valid: bool [B].
    """

    negatives: Tensor
    negatives_valid: Tensor
    positives: Tensor
    positives_valid: Tensor


def random_keys(seed: int, rows: int, stream: int, device: torch.device) -> Tensor:
    """int64 [rows], the number below 2^32 that a query row draws with; stream 0 is the negatives', 1 the positives'."""
    seeded = _mix((seed ^ 0x85EBCA6B * (stream + 1)) & 0xFFFFFFFF)
    seeded = _mix(seeded ^ ((seed >> 32) & 0xFFFFFFFF))
    return _mix(torch.arange(rows, device=device) * 0x9E3779B9 & 0xFFFFFFFF ^ seeded)


def random_scores(keys: Tensor, candidates: Tensor) -> Tensor:
    """float32 in [0, 1), 24 bits, of broadcast keys and candidate rows: the same on every path and device."""
    return (_mix(keys ^ (candidates * 0x9E3779B9 & 0xFFFFFFFF)) >> 8).float() * 2.0**-24


def _mix(x: Any) -> Any:
    """MurmurHash3's 32-bit finalizer (A. Appleby, public domain) of an int, or of int64, whose products wrap: their low
    half is right."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


def hard_negatives_reference(
    queries: Places,
    candidates: Places | None = None,
    *,
    k: int = 9,
    negative_km: float | Tensor = 10.0,
    positive_km: float | Tensor = 30.0,
    different_category: bool = True,
    negatives: Choice = "hardest",
    positives: Choice = "hardest",
    seed: int = 0,
) -> HardNegatives:
    """``hard_negatives`` with every pair in memory."""
    others = queries if candidates is None else candidates
    rows, columns = torch.arange(len(queries.items)), torch.arange(len(others.items))

    def draw(choice: Choice, stream: int) -> Tensor:
        if choice == "random":
            keys = random_keys(seed, len(rows), stream, queries.items.device)
            return random_scores(keys[:, None], columns.to(keys.device))
        return F.normalize(queries.embeddings.float()) @ F.normalize(others.embeddings.float()).t()

    def pairs(q: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        known = (q >= 0)[:, None] & (c >= 0)
        return known & (q[:, None] == c), known & (q[:, None] != c)

    def best(score: Tensor, eligible: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Largest scores of each row, ties to the lowest column, which is what a stable sort gives."""
        score, at = score.masked_fill(~eligible, -torch.inf).sort(dim=1, descending=True, stable=True)
        pad = (0, max(0, k - score.shape[1]))
        valid = F.pad(score[:, :k] > -torch.inf, pad)
        return F.pad(at[:, :k], pad).masked_fill(~valid, 0), valid

    apart = (queries.positions[:, None] - others.positions).square().sum(-1)
    usable = (queries.items[:, None] != others.items) & queries.known()[:, None] & others.known()
    same_category, other_category = pairs(queries.categories, others.categories)
    same_brand, _ = pairs(queries.brands, others.brands)
    eligible = usable & (apart <= _squared_chords(negative_km, queries, "negative_km")[:, None])
    if different_category:
        eligible &= other_category
    found, found_valid = best(draw(negatives, 0), eligible, k)
    near = apart <= _squared_chords(positive_km, queries, "positive_km")[:, None]
    positive, positive_valid = best(-draw(positives, 1), usable & near & (same_category | same_brand), 1)
    return HardNegatives(found, found_valid, positive[:, 0], positive_valid[:, 0])


def _squared_chords(km: float | Tensor, queries: Places, name: str) -> Tensor:
    """float32 [B]; NaN, which nothing is within, where the radius is negative or NaN."""
    rows = len(queries.items)
    if isinstance(km, Tensor):
        if km.shape not in ((), (rows,)):
            raise ValueError(
                f"{name}: got a tensor {list(km.shape)}, expected a number or one for each query, [{rows}]"
            )
        return chord_of_km(km.detach().double()).square().float().to(queries.positions.device).expand(rows)
    if not km >= 0:
        raise ValueError(f"{name}: got {km}, expected km >= 0; math.inf for no limit")
    return torch.full((rows,), chord_of_km(float(km)) ** 2, device=queries.positions.device)


Fields = tuple[Tensor, Tensor, Tensor, Tensor]


def solve(
    fast_path: Callable[[Search], Tensor],
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    negative_limits: Tensor,
    positive_limits: Tensor,
    k: int,
    different_category: bool,
    random_negatives: bool,
    random_positives: bool,
    seed: int,
) -> Fields:
    """Sort, search by the fast path given, put the answers in the order of the queries.

    Args:
        queries, candidates: fields of ``Places``; no candidates: the queries.
        negative_limits, positive_limits: float32 [B], squared chords; NaN: nothing is within.
        k, different_category, seed: of ``hard_negatives``.
        random_negatives, random_positives: instead of the hardest.

    Returns:
        The fields of ``HardNegatives``.
    """
    own = Places(*queries)
    q, c = sort_places(own, Places(*candidates) if candidates else None, different_category)
    rows = q.rows[: len(own.items)].long()

    def of_sorted(values: Tensor, fill: float) -> Tensor:
        return F.pad(values[rows], (0, len(q.rows) - len(rows)), value=fill)

    if different_category:  # an unknown category is not known to differ
        negative_limits = negative_limits.masked_fill(own.categories < 0, torch.nan)
    limits = [of_sorted(values, torch.nan) for values in (negative_limits, positive_limits)]
    keys = [
        of_sorted(random_keys(seed, len(rows), stream, rows.device), 0) if random else None
        for stream, random in enumerate((random_negatives, random_positives))
    ]
    found = fast_path(Search(q, c, limits[0], limits[1], keys[0], keys[1], k, different_category))
    answers = rows.new_empty(len(rows), k + 1).index_copy_(0, rows, found[: len(rows)].long())
    valid, answers = answers >= 0, answers.clamp_(min=0)
    # an operation's results may share no memory
    return answers[:, :k].clone(), valid[:, :k].clone(), answers[:, k].clone(), valid[:, k].clone()


@torch.library.custom_op("placerank::hard_negatives", mutates_args=(), device_types="cpu")
def _hard_negatives(
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    negative_limits: Tensor,
    positive_limits: Tensor,
    k: int,
    different_category: bool,
    random_negatives: bool,
    random_positives: bool,
    seed: int,
) -> Fields:
    return solve(
        hard_negatives_cpu, queries, candidates, negative_limits, positive_limits, k, different_category,
        random_negatives, random_positives, seed,
    )  # fmt: skip


@_hard_negatives.register_kernel("cuda")
def _(*args: Any) -> Fields:
    from .hard_negatives_triton import hard_negatives_triton  # triton is not everywhere that torch is

    return solve(hard_negatives_triton, *args)


@_hard_negatives.register_fake
def _(queries: Sequence[Tensor], candidates: Sequence[Tensor], negative_limits: Tensor, positive_limits: Tensor,
      k: int, *options: Any) -> Fields:  # fmt: skip
    items = queries[0]
    shape = (len(items), k)
    return (
        items.new_empty(shape), items.new_empty(shape, dtype=torch.bool),
        items.new_empty(shape[:1]), items.new_empty(shape[:1], dtype=torch.bool),
    )  # fmt: skip


def arguments(
    queries: Places,
    candidates: Places | None,
    k: int,
    negative_km: float | Tensor,
    positive_km: float | Tensor,
    different_category: bool,
    negatives: Choice,
    positives: Choice,
    seed: int,
) -> tuple[Any, ...]:
    """What ``hard_negatives`` was given, checked, as ``solve`` takes it after the fast path."""
    check_places(queries, "queries")
    if candidates is not None:
        check_places(candidates, "candidates")
        dims = queries.embeddings.shape[1], candidates.embeddings.shape[1]
        if dims[0] != dims[1]:
            raise ValueError(f"candidates.embeddings: got D = {dims[1]}, expected that of the queries, {dims[0]}")
        if candidates.items.device != queries.items.device:
            devices = candidates.items.device, queries.items.device
            raise ValueError(f"candidates: got {devices[0]}, expected {devices[1]} like the queries; move one of them")
    check_number("k", k, 1, whole=True)
    if not isinstance(different_category, bool):
        raise TypeError(f"different_category: got {different_category!r}, expected True or False")
    check_number("seed", seed, -(2**63), most=2**63 - 1, whole=True)
    for name, choice in (("negatives", negatives), ("positives", positives)):
        if choice not in ("hardest", "random"):
            raise ValueError(f"{name}: got {choice!r}, expected 'hardest' or 'random'")
    return (
        [tensor.detach() for tensor in queries],
        [tensor.detach() for tensor in candidates or ()],
        _squared_chords(negative_km, queries, "negative_km"),
        _squared_chords(positive_km, queries, "positive_km"),
        k,
        different_category,
        negatives == "random",
        positives == "random",
        seed,
    )


def hard_negatives(
    queries: Places,
    candidates: Places | None = None,
    *,
    k: int = 9,
    negative_km: float | Tensor = 10.0,
    positive_km: float | Tensor = 30.0,
    different_category: bool = True,
    negatives: Choice = "hardest",
    positives: Choice = "hardest",
    seed: int = 0,
) -> HardNegatives:
    """k negatives and a positive for each query, by category, distance and similarity (ReST, arXiv 2511.12947).

    A negative of a query is another item whose category differs, at most ``negative_km`` away; the hardest have the
    largest cosine with it. A positive is another item of the same category or the same brand, at most ``positive_km``
    away. The paper does not say which of those it takes: here the hardest, the one with the smallest cosine, or one at
    random.

    Args:
        queries: B items.
        candidates: C items to choose from, such as ``gather_places(queries, rows)``; None: the queries themselves. Rows
            that have a query's item id are never its negatives nor its positive, so neither is the query's own row.
        k: negatives of a query, at least 1.
        negative_km, positive_km: great-circle kilometres; a number (math.inf: no limit) or one for each query [B], of
            which those that are negative or NaN let nothing in.
        different_category: False leaves the category out of the negatives' test.
        negatives, positives: "hardest", or "random": drawn evenly, without replacement, from all that pass the tests.
        seed: of the random choices, which depend on it, the query's row and the candidate's row, and on nothing else.

    Returns:
        ``HardNegatives``: rows of the candidates, with what is valid.

    Raises:
        ValueError: shapes, types or options are not those above, or k is over 128 on CUDA.

    An unknown category (negative) equals no other and is not known to differ from any: such an item has and is a
    negative only without ``different_category``, and a positive only by its brand. No brand equals no other. Of equal
    cosines the lowest row wins, on every path. Cosines are of float32, whatever the type of the embeddings; no gradient
    flows. Rows that can be neither, of no known category and no brand, cost no more than being sorted away, so there is
    no need to take them out before.

    The plain way takes 2 B C D operations, then reads and writes a dozen B x C matrices. Here places are sorted along a
    curve and tiles of 64 that no query of a run can reach are skipped: 2 D operations for each pair in reach, B (D + k)
    + C D numbers of memory, and a few thousand more for each thread or block; on CUDA also 4 bytes a pair of tiles,
    128 MB at most, and nothing waits for the device.
    """
    return HardNegatives(
        *_hard_negatives(
            *arguments(queries, candidates, k, negative_km, positive_km, different_category, negatives, positives, seed)
        )
    )
