"""Loads torch, fbgemm and torchrec and prints as JSON what they can do.

``placerank doctor`` runs it in a process of its own: versions that do not fit can end a process without a Python error.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any


def attempt(what: Callable[[], Any]) -> tuple[Any, str]:
    """The value and "", or None and the error in one line."""
    try:
        return what(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


def torch_facts() -> dict[str, Any]:
    """What torch was built for and sees; importing it is part of the test."""
    import torch
    import torch.distributed as dist

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cuda_build": torch.version.cuda or torch.version.hip,
        "devices": [f"{d.name}, {d.total_memory / 2**30:.0f} GiB, sm_{d.major}{d.minor}" for d in devices],
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
        "threads": torch.get_num_threads(),
    }


def fbgemm_op() -> None:
    """Call one C++ operator: an fbgemm that imports may still have failed to load its library."""
    import torch

    importlib.import_module("fbgemm_gpu")
    _cumsum(torch.tensor([1, 2]))


def fbgemm_on_devices() -> None:
    """Call it on each device: a wheel has machine code for some architectures only."""
    import torch

    for i in range(torch.cuda.device_count()):
        _cumsum(torch.tensor([1, 2], device=f"cuda:{i}"))


def _cumsum(x: Any) -> None:
    import torch

    got = torch.ops.fbgemm.asynchronous_complete_cumsum(x).tolist()
    if got != [0, 1, 3]:
        raise RuntimeError(f"asynchronous_complete_cumsum([1, 2]) gave {got}, expected [0, 1, 3]")


def main() -> None:
    """Print one JSON object: torch's facts, and an error (or "") for each of the three."""
    facts, torch_error = attempt(torch_facts)
    errors = {"torch": torch_error}
    on_devices = ""
    if not torch_error:
        errors["fbgemm"] = attempt(fbgemm_op)[1]
        errors["torchrec"] = attempt(lambda: importlib.import_module("torchrec"))[1]
        if not errors["fbgemm"]:
            on_devices = attempt(fbgemm_on_devices)[1]
    json.dump({**(facts or {}), "errors": errors, "fbgemm_on_devices": on_devices}, sys.stdout)


if __name__ == "__main__":
    main()
