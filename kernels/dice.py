"""Dice in plain PyTorch, and statistics that were taken in parts.

Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018 (arXiv 1706.06978), equation 3.
"""

import torch
from torch import Tensor

from .checks import check_tensors


def dice_reference(s: Tensor, mean: Tensor, variance: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """p s + (1 - p) alpha s with p = sigmoid((s - mean) / sqrt(variance + eps)); s [N, H], the others [H]."""
    own = {"mean": (mean, "H"), "variance": (variance, "H"), "alpha": (alpha, "H")}
    check_tensors({"s": (s, "N H"), **own}, mixed=True)
    p = torch.sigmoid((s - mean) * (variance + eps).rsqrt())
    return s * (alpha + (1 - alpha) * p)


def pool_statistics(counts: Tensor, means: Tensor, squares: Tensor) -> Tensor:
    """Mean and biased variance of all rows from those of its parts, summed in float64.

    Args:
        counts: rows of each part, [P]; empty parts are legal.
        means, squares: each part's mean and sum of squared differences from it, [P, H].

    Returns:
        float32 [2, H]; NaN if there is no row.

    Raises:
        TypeError, ValueError: shapes or dtypes don't fit together.
    """
    check_tensors({"means": (means, "P H"), "squares": (squares, "P H")}, {"counts": (counts, "P")}, mixed=True)
    n, means = counts[:, None].double(), means.double()
    mean = (means * n).sum(0) / n.sum()
    variance = (squares.double() + n * (means - mean).square()).sum(0) / n.sum()
    return torch.stack([mean, variance]).float()
