"""The ranks of ``data.ranks``, and the device of each."""

import os

import torch

from ..data.ranks import Ranks, joined

__all__ = ["Ranks", "joined", "rank_device"]


def rank_device(name: str) -> torch.device:
    """ "auto" is this rank's GPU where there is one, else the CPU; other names are torch's own.

    Raises:
        ValueError: no device's name, or a CUDA device on a machine without CUDA.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: {str(error).splitlines()[0]}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch sees no CUDA here; use auto or cpu")
    return device
