"""The peers of the kernel benchmarks do the same task as the kernels: on a small case all give the same."""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from placerank.benchmarks.kernels import (
    bench_hard_negatives,
    bench_pairwise_within,
    bench_residual_encode,
    bench_residual_lookup,
    bench_search_attention,
    bench_target_attention,
)
from placerank.benchmarks.kernels.harness import Case, Suite
from placerank.benchmarks.kernels.run import load
from placerank.benchmarks.kernels.settings import KERNELS
from placerank.kernels.codebook import residual_encode
from placerank.kernels.pairwise_within import pairwise_within

CPU = torch.device("cpu")


def answers(suite: Suite, inputs: Any) -> Iterator[tuple[str, Any]]:
    """What each peer that is installed gives; torch.compile runs the eager functions and takes too long here."""
    for name, peer in suite.peers.items():
        try:
            call = None if name == "torch.compile" else peer(inputs)
        except ImportError:
            continue
        if call is not None:
            yield name, call()


def test_every_benchmark_is_known() -> None:
    for kernel in KERNELS:
        suite = load(kernel)
        assert suite.kernel == kernel
        assert next(iter(suite.peers)) == "placerank"
        assert any(case.quick for case in suite.cases)
        assert all(suite.size in case.sizes for case in suite.cases)
        identities = [str(case) for case in suite.cases]
        assert len(set(identities)) == len(identities)


def test_pairwise_within() -> None:
    bench = bench_pairwise_within
    for case in (Case("city", B=700), Case("one_block", B=90)):
        inputs = bench.setup(case, CPU)
        exact = inputs._replace(single=inputs.double)  # no pair of these is on the rim to float64
        expected = pairwise_within(inputs.double, None, bench.KM)
        for name, (offsets, indices) in answers(bench.SUITE, exact):
            assert np.array_equal(np.asarray(offsets), expected[0].numpy()), name
            rows = [set(row.tolist()) for row in np.split(np.asarray(indices), np.asarray(offsets)[1:-1])]
            assert rows == [set(row.tolist()) for row in expected[1].tensor_split(expected[0][1:-1])], name
        assert bench.work(case).bytes >= 8 * len(expected[1])


def test_hard_negatives() -> None:
    """On a city all choose the same; rows at the rim, where roundings differ, are few."""
    bench = bench_hard_negatives
    inputs = bench.setup(Case("city", B=300), CPU)
    ours = bench.placerank(inputs)()
    assert ours.negatives_valid.float().mean() > 0.9
    assert ours.positives_valid.float().mean() > 0.5
    for name, found in answers(bench.SUITE, inputs):
        for a, b in ((found.negatives_valid, ours.negatives_valid), (found.positives_valid, ours.positives_valid)):
            assert (a == b).float().mean() > 0.99, name
        assert ((found.negatives == ours.negatives) | ~ours.negatives_valid).float().mean() > 0.99, name
        assert ((found.positives == ours.positives) | ~ours.positives_valid).float().mean() > 0.99, name


def test_residual_encode() -> None:
    bench = bench_residual_encode
    inputs = bench.setup(bench.CASES[0], CPU)
    expected = residual_encode(inputs.rows, inputs.codebooks)
    for name, (codes,) in answers(bench.SUITE, inputs):
        if name == "FAISS ResidualQuantizer":
            codes = torch.from_numpy(faiss.unpack_bitstrings(codes, 3, 6).astype("int64"))
        if name != "matrix product only":
            torch.testing.assert_close(codes, expected, msg=name)


@pytest.mark.parametrize("case", [bench_residual_lookup.CASES[0], bench_residual_lookup.CASES[4]], ids=str)
def test_residual_lookup(case: Case) -> None:
    bench = bench_residual_lookup
    inputs = bench.setup(case, CPU)
    expected = bench.placerank(inputs)()
    for name, found in answers(bench.SUITE, inputs):
        if inputs.grad is None or name != "FBGEMM TBE":  # whose backward updates its weights and returns nothing
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lengths", ["full_histories", "skewed"])
def test_target_attention(lengths: str) -> None:
    """The padded peer knows Dice statistics of real visits only where no history is padded."""
    bench = bench_target_attention
    inputs = bench.setup(Case(f"step_{lengths}", B=5, D=bench.D), CPU)
    ours = bench.placerank(inputs)()
    peers = [bench.eager(inputs)()] + ([bench.padded(inputs)()] if lengths == "full_histories" else [])
    for peer in peers:
        for a, b in zip(ours, peer, strict=True):
            torch.testing.assert_close(a, b.view_as(a), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lengths", ["full_histories", "skewed", "long"])
def test_search_attention(lengths: str) -> None:
    bench = bench_search_attention
    for mode in ("forward", "step"):
        inputs = bench.setup(Case(f"{mode}_{lengths}", B=5, D=bench.D), CPU)
        want = bench.placerank(inputs)()
        for _, found in answers(bench.SUITE, inputs):
            torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)
