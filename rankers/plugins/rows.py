"""Rows that count: chosen on the CPU, masked on a GPU."""

import torch
from torch import Tensor


def rows_to_take(mask: Tensor) -> Tensor:
    """int64 rows that hold all that the mask [N] names: those alone on the CPU, elsewhere all N.

    A GPU would wait for their number longer than it computes what is masked afterwards.
    """
    return mask.nonzero().squeeze(1) if mask.device.type == "cpu" else torch.arange(len(mask), device=mask.device)
