"""How made-up samples are skewed: few items are met often, few users have long histories."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def popularity(items: int) -> NDArray[np.float64]:
    """How often each of the items is met, the most popular first; sums to 1."""
    share = 1 / (10 + np.arange(items)) ** 0.8
    popular: NDArray[np.float64] = share / share.sum()
    return popular


def history_lengths(rng: np.random.Generator, samples: int, longest: int) -> Tensor:
    """int64 [samples]: log-normal, median a third of the longest, cut there."""
    return torch.from_numpy((rng.lognormal(size=samples) * longest / 3).astype(np.int64).clip(max=longest))
