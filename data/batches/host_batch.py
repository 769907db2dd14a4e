"""What of a batch is found out on the host, before a device sees it."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass
class HostBatch:
    """Made by ``Catalog.gather``: pieces by name, of two types, each side by side in one tensor, so that two copies
    take them to a device.

    Attributes:
        whole: the pieces that are whole numbers, int64 [N].
        real: those that are not, float32 [M].
        whole_sizes, real_sizes: how many numbers each piece has, by name, in their order.
        lengths: of each candidate's history, int64 [B]; stays on the host.
        path_rows: rows of category paths that the targets have in all.
        pairs: visits of the candidates' histories in all, one that several candidates share counted for each.
    """

    whole: Tensor
    real: Tensor
    whole_sizes: dict[str, int]
    real_sizes: dict[str, int]
    lengths: Tensor
    path_rows: int
    pairs: int

    @classmethod
    def of(cls, whole: dict[str, Tensor], real: dict[str, Tensor], lengths: Tensor, path_rows: int) -> Self:
        """Put pieces side by side: ``whole`` integers or bool, ``real`` float32 or integers, each of one dimension."""
        wholes, whole_sizes = _side_by_side(whole, torch.int64)
        reals, real_sizes = _side_by_side(real, torch.float32)
        return cls(wholes, reals, whole_sizes, real_sizes, lengths, path_rows, int(lengths.sum()))

    def pieces(self, device: torch.device) -> dict[str, Tensor]:
        """All pieces on a device, by name; int64 and float32."""
        whole, real = (x.to(device, non_blocking=True) for x in (self.whole, self.real))
        found = dict(zip(self.whole_sizes, whole.split([*self.whole_sizes.values()]), strict=True))
        return found | dict(zip(self.real_sizes, real.split([*self.real_sizes.values()]), strict=True))

    def pin_memory(self) -> Self:
        """The same in memory from which a GPU copies by itself."""
        return replace(self, whole=self.whole.pin_memory(), real=self.real.pin_memory())


def _side_by_side(pieces: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, dict[str, int]]:
    sizes = {name: x.numel() for name, x in pieces.items()}
    out = torch.empty(sum(sizes.values()), dtype=dtype)
    for piece, place in zip(pieces.values(), out.split([*sizes.values()]), strict=True):
        place.copy_(piece)
    return out, sizes
