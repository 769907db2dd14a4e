"""SimHash distances against the reference and against the angle they stand for."""

import math

import pytest
import torch

from placerank.kernels.jagged import segment_ids
from placerank.kernels.simhash import segment_hamming, segment_hamming_reference


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


def test_distance_is_the_angle() -> None:
    m = 320 * 64
    angles = torch.linspace(0, math.pi, 9)
    plane = torch.zeros(9, 16)
    plane[:, 0], plane[:, 1] = angles.cos(), angles.sin()
    projections = torch.randn(16, m, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 9])
    differ = sum(segment_hamming(plane[:1], plane, part, offsets) for part in projections.split(64, dim=1))
    torch.testing.assert_close(differ / m * math.pi, angles, atol=0.05, rtol=0)
