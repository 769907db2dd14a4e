"""The loader: prepared Parquet files to batches of samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..manifest import read_manifest
from ..requests import OFFSET, OWN, PROBABILITY, SIZE, Requests, columns_to_read
from ..urls import place
from .batch import SampleBatch
from .line_loader import LineLoader, RowGroups


class SampleLoader(LineLoader[Requests, SampleBatch]):
    """Batches of the samples of one split, for one rank, as ``LineLoader`` deals them.

    A sample is a candidate, the unit that stays together is a request.

    Args:
        folder: a prepared folder; one behind a URL is read from where it lies, row group by row group.
        split: "train", "valid" or "test".
        batch_size: samples a batch, on each rank, however many requests they belong to.
        rank, world_size: this rank and how many there are.
        seed: decides the shuffled order.
        shuffle: training or evaluation, see ``LineLoader``.
        prefetch: batches that a background thread reads ahead; 0 reads in the caller's thread.

    Raises:
        FileNotFoundError, ValueError: the folder is not whole, has no such split, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = False,
        prefetch: int = 8,
    ) -> None:
        folder = place(folder)
        manifest = read_manifest(folder, "prepared")
        self._longest = manifest["history_length"]
        self._groups = _row_groups(folder, split, manifest)
        super().__init__(
            f"{folder}: the {split} split", self._groups.sizes, batch_size,
            rank=rank, world_size=world_size, seed=seed, shuffle=shuffle, prefetch=prefetch,
        )  # fmt: skip

    def _read(self, groups: NDArray[np.int64]) -> Requests:
        parts = []
        for found in self._groups.read(groups, columns_to_read):
            with found.named():
                requests = Requests.of_table(found.table)
            found.check(int(requests.candidates.offsets[-1]), "samples")
            longest = int(np.diff(requests.history.offsets).max())
            if longest > self._longest:
                raise ValueError(
                    f"{found.path}: got a history of {longest:,} entries, the data were prepared with "
                    f"history_length={self._longest:,}; prepare with --history-length {longest}, or cut the histories"
                )
            parts.append(requests)
        return Requests.join(parts)

    def _batch(self, parts: list[Requests], valid: int) -> SampleBatch:
        found = Requests.join(parts)
        flat, candidates = found.flat, found.candidates

        def whole(x: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(x.astype(np.int64, copy=False))

        def real(x: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(x.astype(np.float32, copy=False))

        own = {name: x for name, x in (flat | candidates.values).items() if name.startswith(OWN)}
        known, offset = candidates.values.get(PROBABILITY), flat.get(OFFSET)
        size = found.history.values.get(SIZE)
        return SampleBatch(
            request_id=whole(flat["request"]),
            user=whole(flat["user_row"]),
            user_index=whole(flat["user_index"]),
            time=whole(flat["time"]),
            lat=real(flat["lat"]),
            lon=real(flat["lon"]),
            offsets=whole(found.history.offsets),
            history=whole(found.history.values["history"]),
            history_hours=real(found.history.values["history_hours"]),
            history_size=None if size is None else real(size),
            request=whole(np.repeat(np.arange(len(found)), np.diff(candidates.offsets))),
            item=whole(candidates.values["item_row"]),
            label=real(candidates.values["label"]),
            visits=torch.from_numpy(candidates.values["visits"].astype(np.int32, copy=False)),
            probability=None if known is None else real(known),
            valid=valid,
            utc_offset=None if offset is None else real(offset),
            own={name[len(OWN) :]: real(x) if x.dtype.kind == "f" else whole(x) for name, x in own.items()},
        )


def _row_groups(folder: Path, split: str, manifest: dict[str, Any]) -> RowGroups:
    """Those that have samples: the manifest tells them."""
    splits = manifest["splits"]
    if split not in splits:
        raise ValueError(f"{folder} has no {split!r} split, it has {', '.join(splits)}; prepare with a fraction for it")
    known, expected = splits[split]["row_groups"], splits[split]["rows"]
    if (got := sum(map(sum, known.values()))) != expected:
        raise ValueError(
            f"{folder / split}: got {got:,} samples in {len(known)} files, the manifest says {expected:,}; "
            "prepare the data again"
        )
    return RowGroups(folder / split, known)
