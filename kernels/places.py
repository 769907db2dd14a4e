"""A batch of places as the sampler is given it, and the same batch along a space-filling curve for its fast paths."""

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .threads import jit
from .tiles import curve_order

TILE = 64  # places that are skipped or looked at together


class Places(NamedTuple):
    """B items, one row each; all tensors on one device.

    Attributes:
        items: int64 [B], ids of any value; rows with equal ids are the same item.
        positions: float32 [B, 3], unit vectors (``haversine.unit_vectors``); a row with NaN is a place that is not
            known: it is never selected and selects nothing.
        embeddings: [B, D], float32, float16 or bfloat16, of any length; NaN as in positions.
        categories: int32 or int64 [B], negative: not known.
        brands: int32 or int64 [B], negative: none.
    """

    items: Tensor
    positions: Tensor
    embeddings: Tensor
    categories: Tensor
    brands: Tensor

    def known(self) -> Tensor:
        """bool [B]: rows whose position and embedding are finite."""
        finite = (self.embeddings * 0).sum(1) == 0  # a tenth of the time of isfinite().all(1)
        return self.positions.isfinite().all(1) & finite


class SortedPlaces(NamedTuple):
    """Places along the curve, in whole tiles of ``TILE``: N rows, of which those past the batch are not known places.

    Attributes:
        rows: int32 [N], row in the batch.
        positions: float32 [3, N], NaN where not known.
        embeddings: float32 [N, D] of length 1, or 0 where not known or zero.
        items, categories, brands: int32 [N], numbers that are equal where the ids are; -1 for negative categories and
            brands.
    """

    rows: Tensor
    positions: Tensor
    embeddings: Tensor
    items: Tensor
    categories: Tensor
    brands: Tensor


def check_places(places: Places, name: str) -> None:
    """TypeError or ValueError unless shapes, types and devices are those of ``Places``."""
    if not isinstance(places, Places):
        raise TypeError(f"{name}: got {type(places).__name__}, expected Places")
    for field, tensor in zip(Places._fields, places, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            raise TypeError(f"{name}.{field}: got {type(tensor).__name__}, expected a tensor of a row each")
        if tensor.device != places.items.device:
            raise ValueError(f"{name}.{field}: got {tensor.device}, expected {places.items.device} like the items")
    integers, floats = (torch.int32, torch.int64), (torch.float32, torch.float16, torch.bfloat16)
    rows, dim = len(places.items), places.embeddings.shape[-1]
    for field, shape, dtypes in (
        ("items", (rows,), (torch.int64,)),
        ("positions", (rows, 3), (torch.float32,)),
        ("embeddings", (rows, dim), floats),
        ("categories", (rows,), integers),
        ("brands", (rows,), integers),
    ):
        tensor = getattr(places, field)
        if tensor.shape != shape or tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            hint = ": haversine.unit_vectors(lat, lon) makes them" if field == "positions" else ""
            raise ValueError(
                f"{name}.{field}: got {tensor.dtype} {list(tensor.shape)}, expected {names} {list(shape)}{hint}"
            )


def gather_places(places: Places, rows: int, group: dist.ProcessGroup | None = None) -> Places:
    """The places of all ranks, in the order of the ranks, each rank's filled up; no gradient flows back.

    Args:
        places: this rank's; their number may differ between ranks, types and D may not.
        rows: to which each rank fills up, at least its own number and the same on all ranks, such as the batch size:
            the sizes need not be exchanged, and no rank waits for its device.
        group: the ranks; None for all.

    Returns:
        Places, ``rows`` times as many as ranks; row i of rank r is row r * rows + i. What fills up is item -1, and no
        known place: no query selects it.

    Raises:
        ValueError: there are more places than ``rows``.

    One row's fields travel as one string of bytes, so this is one exchange: (36 + D x element size) bytes a row with
    64-bit categories and brands.
    """
    check_places(places, "places")
    missing = rows - len(places.items)
    if missing < 0:
        raise ValueError(f"places: got {len(places.items)}, expected at most rows={rows}; the same number on all ranks")
    filled = [
        F.pad(field.detach(), (0, 0) * (field.dim() - 1) + (0, missing), value=torch.nan if name == "positions" else -1)
        for name, field in zip(Places._fields, places, strict=True)
    ]
    widths = [field.shape[1:].numel() * field.element_size() for field in filled]
    own = torch.cat(
        [f.contiguous().flatten().view(torch.uint8).view(rows, w) for f, w in zip(filled, widths, strict=True)], dim=1
    )
    whole = own.new_empty(dist.get_world_size(group), *own.shape)
    dist.all_gather([*whole], own, group=group)
    columns = [x.clone(memory_format=torch.contiguous_format) for x in whole.flatten(0, 1).split(widths, dim=1)]
    return Places(*(x.flatten().view(f.dtype).view(-1, *f.shape[1:]) for x, f in zip(columns, filled, strict=True)))


def sort_places(queries: Places, candidates: Places | None, by_category: bool) -> tuple[SortedPlaces, SortedPlaces]:
    """Both batches sorted, with item, category and brand numbers that can be compared between them.

    by_category: places of no known category and no brand select nothing and are not selected, so they count as not
    known and lie in tiles that nothing reaches.
    """
    batches = [queries] if candidates is None else [queries, candidates]
    columns = []
    for ids in ("items", "categories", "brands"):
        both = torch.cat([getattr(places, ids).long() for places in batches])
        numbers = numbers_of(both)
        if ids != "items":
            numbers = numbers.masked_fill_(both < 0, -1)
        columns.append(numbers.split([len(places.items) for places in batches]))
    made = [_sort(places, by_category, *numbers) for places, *numbers in zip(batches, *columns, strict=True)]
    return made[0], made[-1]


def numbers_of(ids: Tensor) -> Tensor:
    """int32 numbers of ids, in the order of the ids: like torch.unique's inverse, without a wait for the device."""
    values, rows = ids.sort()
    steps = F.pad((values[1:] != values[:-1]).int(), (1 if len(ids) else 0, 0))
    return torch.empty_like(steps).scatter_(0, rows, steps.cumsum(0, dtype=torch.int32))


@jit(fastmath={"reassoc", "contract"})
def _unit_rows(rows: np.ndarray, order: np.ndarray, out: np.ndarray) -> None:
    """out[i] = rows[order[i]] by its length, or 0 where that is no number: as ``F.normalize``, in one pass."""
    for i in range(len(order)):
        row, squares = rows[order[i]], np.float32(0)
        for column in range(len(row)):
            squares += row[column] * row[column]
        scale = np.float32(1) / max(np.sqrt(squares), np.float32(1e-12))
        finite = squares < np.inf
        for column in range(len(row)):
            out[i, column] = row[column] * scale if finite else np.float32(0)


def _sort(places: Places, by_category: bool, items: Tensor, categories: Tensor, brands: Tensor) -> SortedPlaces:
    known = places.known()
    if by_category:
        known &= torch.maximum(categories, brands) >= 0
    positions = places.positions.masked_fill(~known[:, None], torch.nan)
    order = curve_order(positions)
    pad = -len(order) % TILE
    embeddings = positions.new_zeros(len(order) + pad, places.embeddings.shape[1])
    real = embeddings[: len(order)]
    if places.embeddings.device.type == "cpu":
        _unit_rows(places.embeddings.float().contiguous().numpy(), order.numpy(), real.numpy())
    else:
        F.normalize(real.copy_(places.embeddings[order]), out=real).nan_to_num_(0, 0, 0)
    return SortedPlaces(
        F.pad(order.int(), (0, pad)),
        F.pad(positions[order].t(), (0, pad), value=torch.nan).contiguous(),
        embeddings,
        *(F.pad(numbers[order], (0, pad), value=-1) for numbers in (items, categories, brands)),
    )


class Search(NamedTuple):
    """What is asked of a fast path; rows as in ``SortedPlaces``.

    Attributes:
        queries, candidates: sorted.
        negative_limits, positive_limits: float32 [N], squared chords; NaN: nothing is within.
        negative_keys, positive_keys: int64 [N], below 2^32, to draw at random from; None: the hardest.
        k: negatives of a query.
        different_category: whether a negative's category must be known to differ.
    """

    queries: SortedPlaces
    candidates: SortedPlaces
    negative_limits: Tensor
    positive_limits: Tensor
    negative_keys: Tensor | None
    positive_keys: Tensor | None
    k: int
    different_category: bool
