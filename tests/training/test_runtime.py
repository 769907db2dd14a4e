"""What a process of a run asks of its system."""

import ctypes
import resource

import pytest
import torch

from placerank.training.runtime import keep_freed_memory


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_a_buffer_that_was_freed_is_taken_again_without_faults() -> None:
    keep_freed_memory()
    torch.ones(6_000_000)
    before = faults()
    for _ in range(5):
        torch.ones(6_000_000)  # 24 MB, 5,860 pages
    assert faults() - before < 1000
