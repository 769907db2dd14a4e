"""SimHash distances against the reference and against the angle they stand for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from placerank.kernels import simhash
from placerank.kernels.jagged import segment_ids
from placerank.kernels.simhash import segment_hamming, segment_hamming_reference, segment_hamming_unchecked


@pytest.mark.parametrize("lengths", [[], [0], [1], [70, 0, 3, 33]])
@pytest.mark.parametrize(("dim", "m"), [(1, 1), (7, 12), (48, 64)])
def test_equals_the_reference(lengths: list[int], dim: int, m: int) -> None:
    g = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    # whole numbers are added exactly in any order, so that no sign depends on rounding; many projections are 0
    query, keys, projections = (
        torch.randint(-2, 3, shape, generator=g).float()
        for shape in ((len(lengths), dim), (sum(lengths), dim), (dim, m))
    )
    got = segment_hamming(query, keys, projections, offsets)
    assert got.dtype == torch.int64
    assert torch.equal(got, segment_hamming_reference(query, keys, projections, offsets))
    long = offsets.diff()[segment_ids(offsets, sum(lengths))] > 5
    assert torch.equal(segment_hamming(query, keys, projections, offsets, beyond=5)[long], got[long])
    by_hand = [
        sum((float(k @ p) < 0) != (float(query[b] @ p) < 0) for p in projections.t())
        for b in range(len(lengths))
        for k in keys[offsets[b] : offsets[b + 1]]
    ]
    assert got.tolist() == by_hand


@pytest.mark.parametrize("numbers", [1, 12, 500, 10**6])
@pytest.mark.parametrize("lengths", [[], [0], [70, 0, 3, 33]])
def test_steps_are_the_reference(lengths: list[int], numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA runs, a few visits at a time; float64 takes it on the CPU."""
    monkeypatch.setattr(simhash, "NUMBERS", numbers)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    query, keys, projections = (
        torch.randint(-2, 3, shape).double() for shape in ((len(lengths), 7), (sum(lengths), 7), (7, 12))
    )
    want = segment_hamming_reference(query, keys, projections, offsets)
    assert torch.equal(segment_hamming(query, keys, projections, offsets), want)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and not func.is_view]
        self.bytes = max([self.bytes, *(x.numel() * x.element_size() for x in made)])
        return out


def test_memory_does_not_grow_with_projections_times_visits() -> None:
    """10 M visits, on the meta device: at most 64 MB, or what is a number a visit. [T, 64] would be 2.6 GB."""
    T, D, m = 10_000_000, 16, 64
    query, keys, projections = (torch.empty(*s, device="meta") for s in ((1000, D), (T, D), (D, m)))
    offsets = torch.empty(1001, dtype=torch.int64, device="meta")
    with Largest() as largest:
        segment_hamming_unchecked(query, keys, projections, offsets)
    assert largest.bytes == T * 8


def test_distance_is_the_angle() -> None:
    m = 320 * 64
    angles = torch.linspace(0, math.pi, 9)
    plane = torch.zeros(9, 16)
    plane[:, 0], plane[:, 1] = angles.cos(), angles.sin()
    projections = torch.randn(16, m, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 9])
    differ = sum(segment_hamming(plane[:1], plane, part, offsets) for part in projections.split(64, dim=1))
    torch.testing.assert_close(differ / m * math.pi, angles, atol=0.05, rtol=0)
