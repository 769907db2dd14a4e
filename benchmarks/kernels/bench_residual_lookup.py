"""Sums of L chosen centres a row: forward alone, and with the gradient of the codebooks.

FBGEMM's tables have no gradient to return: their backward takes a step of SGD on the rows that were looked up, in
place, which saves it writing L x K x D zeros and costs it a pass over those rows. The codebooks are one table of L x K
rows, a bag of L of them for each sum, which is its best way.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from placerank.kernels.codebook import residual_lookup

from .harness import Case, Suite, Work


class Inputs(NamedTuple):
    """codes int64 [N, L], codebooks [L, K, D] and, where the gradient is asked for, that of the output [N, D]."""

    codes: Tensor
    codebooks: Tensor
    grad: Tensor | None


CASES = [
    Case("forward", quick=True, N=1_000, D=64, K=512, L=3),
    Case("forward", quick=True, N=10_240, D=64, K=512, L=3),
    Case("forward", N=100_000, D=64, K=512, L=3),
    Case("forward_wide", N=20_000, D=384, K=512, L=3),
    Case("full", quick=True, N=1_000, D=64, K=512, L=3),
    Case("full", quick=True, N=10_240, D=64, K=512, L=3),
    Case("full", N=100_000, D=64, K=512, L=3),
    Case("full_wide", N=20_000, D=384, K=512, L=3),
    Case("full_many_centres", N=20_000, D=64, K=65_536, L=3),
]


def setup(case: Case, device: torch.device) -> Inputs:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(case.K, (case.N, case.L), generator=g).to(device)
    codebooks = torch.randn(case.L, case.K, case.D, generator=g).to(device)
    grad = torch.randn(case.N, case.D, generator=g).to(device) if case.name.startswith("full") else None
    return Inputs(codes, codebooks, grad)


def work(case: Case) -> Work:
    """Every centre is added once, either way; centres, codes and rows go to or from memory once."""
    full = case.name.startswith("full")
    read = 4 * case.L * case.K * case.D + 8 * case.N * case.L + 4 * case.N * case.D
    return Work(flops=(1 + full) * case.N * case.L * case.D, bytes=(1 + full) * read)


def _timed(inputs: Inputs, lookup: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """The lookup, and the gradient of the codebooks if it is asked for."""
    if inputs.grad is None:
        with torch.no_grad():
            return lambda: lookup(inputs.codebooks)
    codebooks = inputs.codebooks.clone().requires_grad_()
    return lambda: torch.autograd.grad(lookup(codebooks), codebooks, inputs.grad)


def placerank(inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, lambda codebooks: residual_lookup(inputs.codes, codebooks))


def placerank_deterministic(inputs: Inputs) -> Callable[[], object] | None:
    """On CPUs it always is."""
    if not inputs.codes.is_cuda or inputs.grad is None:
        return None
    return _timed(inputs, lambda codebooks: residual_lookup(inputs.codes, codebooks, deterministic=True))


def _embedding_sum(codes: Tensor, codebooks: Tensor) -> Tensor:
    total = F.embedding(codes[:, 0], codebooks[0])
    for level in range(1, codes.shape[1]):
        total = total + F.embedding(codes[:, level], codebooks[level])
    return total


def embeddings(inputs: Inputs) -> Callable[[], object]:
    return _timed(inputs, lambda codebooks: _embedding_sum(inputs.codes, codebooks))


def compiled(inputs: Inputs) -> Callable[[], object]:
    lookup = torch.compile(_embedding_sum, dynamic=False)
    return _timed(inputs, lambda codebooks: lookup(inputs.codes, codebooks))


def bags(inputs: Inputs) -> Callable[[], object]:
    """One table of all levels; adding where each level begins in it is part of the work."""
    begins = torch.arange(inputs.codes.shape[1], device=inputs.codes.device) * inputs.codebooks.shape[1]
    return _timed(inputs, lambda codebooks: F.embedding_bag(inputs.codes + begins, codebooks.flatten(0, 1), mode="sum"))


def fbgemm(inputs: Inputs) -> Callable[[], object]:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    levels, count, dim = inputs.codebooks.shape
    cuda = inputs.codes.is_cuda
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(levels * count, dim, *place)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1e-9,
        device=inputs.codes.device,
    )
    table.split_embedding_weights()[0].copy_(inputs.codebooks.flatten(0, 1))
    begins = torch.arange(levels, device=inputs.codes.device) * count
    offsets = torch.arange(len(inputs.codes) + 1, device=inputs.codes.device) * levels

    def call() -> Tensor:
        out: Tensor = table((inputs.codes + begins).flatten(), offsets)
        if inputs.grad is not None:
            out.backward(inputs.grad)
        return out

    return call


SUITE = Suite(
    kernel="residual_lookup",
    cases=CASES,
    setup=setup,
    work=work,
    peers={
        "placerank": placerank,
        "placerank, deterministic": placerank_deterministic,
        "nn.Embedding sums": embeddings,
        "torch.compile": compiled,
        "embedding_bag": bags,
        "FBGEMM TBE": fbgemm,
    },
    size="N",
)
