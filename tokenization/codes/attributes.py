"""Features of an item's place, category and brand, for HGIT's first level (LGSID, arXiv 2511.14221, eq. 9):

    F = [w_admin f_admin, w_geo f_geo, w_cat f_cat, w_brand f_brand]

The paper makes discrete codes into "composite embeddings" with "fixed scaling factors", to avoid one-hot vectors, and
says no more. Here each value becomes a fixed vector of 32 signs derived from a hash of its text: a random projection of
the one-hot code, in which different values lie about equally far apart (a plain number would put province 3 near
province 4). A level is hashed with the levels above it, so two districts of one name in two cities differ, and the
vectors of an item's levels are added, scaled by fixed factors: items that share the province, then the city, then the
district come closer and closer. Nothing is fitted to the values, so a value that was never seen has its vector too.

f_geo is the unit vector of the place on the sphere: no seam at the antimeridian, no stretch near the poles.

What is fitted are a mean and one scale a block, so that each block has total variance 1 over the items that have it,
and the weights alone decide what counts. An item that misses a block has the block's mean there: it is pulled nowhere.
A block that no item has, or that is the same for all, drops out.

Beside the paper's blocks items' own columns can have one each, where a weight asks for it: categories become vectors as
above, and lists the mean of those of their values.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.requests import OWN
from ...kernels.haversine import unit_vectors

ADMIN = ("province", "city", "district")
BLOCKS = ("admin", "geo", "category", "brand")
SIGNS = 32  # numbers a hashed value becomes
_CATEGORY_LEVELS = 2  # primary and secondary, as in the paper


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64: a well-mixed 64-bit word for each."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def text_hashes(values: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash of each text and whether there is one; the same in every process and version."""
    encoded = values.cast(pa.string()).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    table = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") for word in words]
    known = encoded.is_valid().to_numpy(zero_copy_only=False)
    index = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return np.array(table or [0], np.uint64)[index], known


def one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _levels(columns: Sequence[pa.Array], scales: Sequence[float], seed: int) -> tuple[Tensor, Tensor]:
    """Sum of the scaled sign vectors of nested levels, float32 [N, 32], and which rows have at least one level."""
    rows = len(columns[0])
    out, any_known, parent = torch.zeros(rows, SIGNS), np.zeros(rows, bool), np.full(rows, seed, np.uint64)
    shifts = np.arange(SIGNS, dtype=np.uint64)
    norm = float(np.sqrt(sum(s * s for s in scales) * SIGNS))
    for column, scale in zip(columns, scales, strict=True):
        text, known = text_hashes(column)
        parent = np.where(known, mix(parent ^ text), parent)
        values, at = np.unique(parent, return_inverse=True)  # few: signs are made once for each
        signs = ((mix(values)[:, None] >> shifts) & np.uint64(1)).astype(np.float32) * 2 - 1
        table = torch.cat([torch.from_numpy(signs) * (scale / norm), torch.zeros(1, SIGNS)])
        out += table[torch.from_numpy(np.where(known, at, len(values)))]
        any_known |= known
    return out, torch.from_numpy(any_known)


def raw_blocks(
    items: pa.Table, admin_scale: Sequence[float] = (1, 1, 1), category_scale: Sequence[float] = (1, 1)
) -> dict[str, tuple[Tensor, Tensor]]:
    """The blocks of some items before they are centred and scaled: name -> (float32 [N, d], bool [N] has it).

    Args:
        items: any of province, city, district, lat, lon, category (list, coarse to fine), brand, and own columns (text,
            or lists of text); others are ignored.
    """
    names, blocks = set(items.column_names), {}
    if names & set(ADMIN):
        missing = pa.nulls(len(items), pa.string())
        columns = [one_array(items[c]) if c in names else missing for c in ADMIN]
        blocks["admin"] = _levels(columns, admin_scale, seed=1)
    if {"lat", "lon"} <= names:
        lat, lon = (torch.from_numpy(items[c].to_numpy().astype(np.float64)) for c in ("lat", "lon"))
        known = lat.isfinite() & lon.isfinite()
        place = unit_vectors(lat.nan_to_num(), lon.nan_to_num())
        blocks["geo"] = (place.masked_fill(~known[:, None], 0), known)
    if "category" in names:
        path = one_array(items["category"])
        levels = [
            pc.list_element(pc.if_else(pc.greater(pc.list_value_length(path), depth), path, None), depth)
            if pc.any(pc.greater(pc.list_value_length(path), depth)).as_py()
            else pa.nulls(len(items), pa.string())
            for depth in range(_CATEGORY_LEVELS)
        ]
        blocks["category"] = _levels(levels, category_scale, seed=2)
    if "brand" in names:
        blocks["brand"] = _levels([one_array(items["brand"])], [1.0], seed=3)
    for name in (n for n in items.column_names if n.startswith(OWN)):
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        column = one_array(items[name])
        if not pa.types.is_list(column.type):
            blocks[name] = _levels([column], [1.0], seed)
            continue
        vectors, _ = _levels([column.flatten()], [1.0], seed)
        lengths = torch.from_numpy(pc.list_value_length(column).fill_null(0).to_numpy(False).astype(np.int64))
        row = torch.repeat_interleave(torch.arange(len(column)), lengths)
        sums = torch.zeros(len(column), SIGNS).index_add_(0, row, vectors)
        blocks[name] = (sums / lengths.clamp(min=1)[:, None], lengths > 0)
    return blocks


@dataclass(frozen=True)
class AttributeFeatures:
    """Fitted blocks: items in, F out.

    Attributes:
        weights: w of each block that is used, in the order of ``BLOCKS``, then own columns'.
        mean: of each such block, float64 [d].
        scale: of each such block: 1 / root of its total variance.
    """

    weights: dict[str, float]
    admin_scale: tuple[float, ...]
    category_scale: tuple[float, ...]
    mean: dict[str, Tensor]
    scale: dict[str, float]

    @classmethod
    def fit(
        cls,
        items: pa.Table,
        weights: dict[str, float],
        admin_scale: Sequence[float] = (1, 1, 1),
        category_scale: Sequence[float] = (1, 1),
        chunk_rows: int = 65_536,
    ) -> "AttributeFeatures":
        """Means and scales over all items, chunk by chunk.

        Raises:
            ValueError: no block is left: the items have none of the columns, or all are alike, or all weights are 0.
        """
        sums: dict[str, Tensor] = {}
        squares: dict[str, float] = {}
        counts: dict[str, int] = {}
        for start in range(0, len(items), chunk_rows):
            for name, (x, known) in raw_blocks(items.slice(start, chunk_rows), admin_scale, category_scale).items():
                wide = x[known].double()
                sums[name] = sums.get(name, torch.zeros(x.shape[1], dtype=torch.float64)) + wide.sum(0)
                squares[name] = squares.get(name, 0.0) + float(wide.square().sum())
                counts[name] = counts.get(name, 0) + int(known.sum())
        used, mean, scale = {}, {}, {}
        for name in (*BLOCKS, *(n for n in weights if n.startswith(OWN))):
            if not counts.get(name) or not weights.get(name):
                continue
            centre = sums[name] / counts[name]
            variance = squares[name] / counts[name] - float(centre.square().sum())
            if variance > 1e-12:  # 6 m of ground; rounding is far below
                used[name], mean[name], scale[name] = weights[name], centre, variance**-0.5
        if not used:
            raise ValueError(
                f"items: got columns {items.column_names} with weights {weights}, expected at least one of "
                f"{', '.join(ADMIN)}, lat and lon, category, brand that differs between items and has a weight; "
                "take a tokenizer that needs no attributes, such as res_kmeans"
            )
        return cls(used, tuple(admin_scale), tuple(category_scale), mean, scale)

    @property
    def dim(self) -> int:
        """Numbers in F."""
        return sum(map(len, self.mean.values()))

    def __call__(self, items: pa.Table) -> Tensor:
        """F of some items, float32 [N, sum of d]."""
        blocks = raw_blocks(items, self.admin_scale, self.category_scale)
        out, start = torch.zeros(len(items), self.dim), 0
        for name, weight in self.weights.items():
            mean = self.mean[name]
            if name in blocks:
                x, known = blocks[name]
                centred = (x - mean.to(x.dtype)).mul_(weight * self.scale[name])  # coordinates are float64
                out[:, start : start + len(mean)] = centred.masked_fill_(~known[:, None], 0)
            start += len(mean)
        return out

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors; ``from_state`` is the way back."""
        out = {"admin_scale": torch.tensor(self.admin_scale), "category_scale": torch.tensor(self.category_scale)}
        for name, weight in self.weights.items():
            out[f"{name}.mean"] = self.mean[name]
            out[f"{name}.weight_and_scale"] = torch.tensor([weight, self.scale[name]], dtype=torch.float64)
        return out

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "AttributeFeatures":
        own = [n.removesuffix(".mean") for n in state if n.startswith(OWN) and n.endswith(".mean")]
        used = [name for name in (*BLOCKS, *sorted(own)) if f"{name}.mean" in state]
        pairs = {name: state[f"{name}.weight_and_scale"].tolist() for name in used}
        return cls(
            {name: pairs[name][0] for name in used},
            tuple(state["admin_scale"].tolist()),
            tuple(state["category_scale"].tolist()),
            {name: state[f"{name}.mean"] for name in used},
            {name: pairs[name][1] for name in used},
        )
