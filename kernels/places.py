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
        # 0 times what is no number is none: a tenth of the time of isfinite().all(1)
        return ((self.embeddings * 0).sum(1) + (self.positions * 0).sum(1)) == 0


class SortedPlaces(NamedTuple):
    """Places along the curve, in whole tiles of ``TILE``: N rows, of which those past the batch are not known places.

    Attributes:
        numbers: int32 [4, N], what the properties are rows of.
        positions: float32 [3, N], NaN where not known.
        embeddings: float32 [N, D] of length 1, or 0 where not known or zero.
    """

    numbers: Tensor
    positions: Tensor
    embeddings: Tensor

    @property
    def rows(self) -> Tensor:
        """Row in the batch."""
        return self.numbers[0]

    @property
    def items(self) -> Tensor:
        """Numbers that are equal where the ids are."""
        return self.numbers[1]

    @property
    def categories(self) -> Tensor:
        """As items; -1 for negative ids."""
        return self.numbers[2]

    @property
    def brands(self) -> Tensor:
        """As items; -1 for negative ids."""
        return self.numbers[3]


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
    ids = torch.cat([torch.stack([p.items, p.categories.long(), p.brands.long()]) for p in batches], dim=1)
    numbers = numbers_of(ids)
    numbers[1:].masked_fill_(ids[1:] < 0, -1)
    parts = numbers.split([len(places.items) for places in batches], dim=1)
    made = [_sort(places, by_category, part) for places, part in zip(batches, parts, strict=True)]
    return made[0], made[-1]


def numbers_of(ids: Tensor) -> Tensor:
    """int32 numbers of ids, in the order of the ids: like torch.unique's inverse, without a wait for the device.

    The last dimension's; each before it has numbers of its own.
    """
    values, rows = ids.sort()
    steps = F.pad((values[..., 1:] != values[..., :-1]).int(), (1 if ids.shape[-1] else 0, 0))
    return torch.empty_like(steps).scatter_(-1, rows, steps.cumsum(-1, dtype=torch.int32))


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


def _sort(places: Places, by_category: bool, numbers: Tensor) -> SortedPlaces:
    """numbers: int32 [3, B], of items, categories and brands."""
    known = places.known()
    if by_category:
        known &= torch.maximum(numbers[1], numbers[2]) >= 0
    positions = places.positions.masked_fill(~known[:, None], torch.nan)
    order = curve_order(positions)
    if positions.is_cuda:
        from .places_triton import put_in_order  # triton is not everywhere that torch is

        return SortedPlaces(*put_in_order(order, numbers, positions, places.embeddings))
    pad = -len(order) % TILE
    embeddings = positions.new_zeros(len(order) + pad, places.embeddings.shape[1])
    real = embeddings[: len(order)]
    if places.embeddings.device.type == "cpu":
        _unit_rows(places.embeddings.float().contiguous().numpy(), order.numpy(), real.numpy())
    else:
        F.normalize(real.copy_(places.embeddings[order]), out=real).nan_to_num_(0, 0, 0)
    sorted_numbers = torch.cat([order.int()[None], numbers[:, order]])
    filled = F.pad(sorted_numbers, (0, pad), value=-1)
    filled[0, len(order) :] = 0
    return SortedPlaces(filled, F.pad(positions[order].t(), (0, pad), value=torch.nan).contiguous(), embeddings)


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
