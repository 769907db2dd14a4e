"""Codes of N rows at L levels of K centres. Every peer returns the same codes, of the same float32 codebooks.

What can be made ready once for a codebook (an index, a module) is made ready outside what is timed. "matrix product
only" is no peer but the floor: the products of all levels without looking for a maximum or subtracting anything, by
plain ``torch.mm`` into a buffer.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from placerank.kernels.codebook import residual_encode

from .harness import Case, Suite, Work

BUFFER = 2**17  # rows in memory at once: longer inputs pass through, as they do when they are read from a file
SCORES = {"cpu": 2**21, "cuda": 2**27}  # numbers that PyTorch compares at once: the fastest of several on the CPU


class Inputs(NamedTuple):
    """A buffer of rows [n, D], how many rows are taken from it in all (again from its start), codebooks [L, K, D]."""

    rows: Tensor
    total: int
    codebooks: Tensor


CASES = [
    Case("tiny", quick=True, N=256, D=32, K=64, L=3),
    Case("levels", N=1_000, D=384, K=512, L=3),
    Case("levels", quick=True, N=20_000, D=384, K=512, L=3),
    Case("levels", N=100_000, D=384, K=512, L=3),
    Case("narrow", quick=True, N=20_000, D=64, K=256, L=4),
    Case("wide", N=10_000, D=1024, K=512, L=3),
    Case("many_centres", N=10_000, D=384, K=8192, L=3),
    Case("paper", N=2_325_266, D=384, K=512, L=3),
]


def setup(case: Case, device: torch.device) -> Inputs:
    """Rows and centres from normal distributions, each level finer than the one before."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(min(case.N, BUFFER), case.D, generator=g)
    scales = 0.6 ** torch.arange(case.L)[:, None, None]
    codebooks = torch.randn(case.L, case.K, case.D, generator=g) * scales
    return Inputs(rows.to(device), case.N, codebooks.to(device))


def work(case: Case) -> Work:
    """Products of every row with every centre; rows and centres are read once, codes written once."""
    flops = 2 * case.N * case.K * case.D * case.L
    return Work(flops=flops, bytes=4 * case.N * case.D + 4 * case.L * case.K * case.D + 8 * case.N * case.L)


def _streamed(inputs: Inputs, encode: Callable[[Tensor], object]) -> Callable[[], object]:
    """``encode`` called with the buffer until ``total`` rows have been through."""
    starts = range(0, inputs.total, BUFFER)
    return lambda: [encode(inputs.rows[: inputs.total - start]) for start in starts]


def _by_chunks(rows: Tensor, numbers: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([encode(chunk) for chunk in rows.split(max(1, numbers))])


def placerank(inputs: Inputs) -> Callable[[], object]:
    return _streamed(inputs, lambda rows: residual_encode(rows, inputs.codebooks))


def placerank_bf16(inputs: Inputs) -> Callable[[], object] | None:
    """Not made for CPUs."""
    if not inputs.rows.is_cuda:
        return None
    return _streamed(inputs, lambda rows: residual_encode(rows, inputs.codebooks, precision="bf16"))


def product(inputs: Inputs) -> Callable[[], object]:
    centres = min(512 if inputs.rows.device.type == "cpu" else 8192, inputs.codebooks.shape[1])
    chunk = 2 * SCORES[inputs.rows.device.type] // centres
    tiles = [tile.t() for codebook in inputs.codebooks for tile in codebook.split(centres)]
    out = torch.empty(chunk, centres, device=inputs.rows.device)

    def multiply(rows: Tensor) -> None:
        for part in rows.split(chunk):
            for tile in tiles:
                torch.mm(part, tile, out=out[: len(part), : tile.shape[1]])

    return _streamed(inputs, multiply)


def _loop(rows: Tensor, codebooks: Tensor, half_norms: Tensor) -> Tensor:
    """|r - c|^2 is smallest where |c|^2 / 2 - r . c is."""
    codes = []
    for centres, half_norm in zip(codebooks, half_norms, strict=True):
        code = torch.addmm(half_norm, rows, centres.t(), alpha=-1).argmin(dim=1)
        rows = rows - centres[code]
        codes.append(code)
    return torch.stack(codes, dim=1)


def eager(inputs: Inputs) -> Callable[[], object]:
    half_norms = inputs.codebooks.square().sum(dim=2) / 2
    numbers = SCORES[inputs.rows.device.type] // inputs.codebooks.shape[1]
    return _streamed(
        inputs, lambda rows: _by_chunks(rows, numbers, lambda chunk: _loop(chunk, inputs.codebooks, half_norms))
    )


def compiled(inputs: Inputs) -> Callable[[], object]:
    half_norms = inputs.codebooks.square().sum(dim=2) / 2
    numbers = SCORES[inputs.rows.device.type] // inputs.codebooks.shape[1]
    loop = torch.compile(_loop, dynamic=False)
    return _streamed(
        inputs, lambda rows: _by_chunks(rows, numbers, lambda chunk: loop(chunk, inputs.codebooks, half_norms))
    )


def faiss_quantizer(inputs: Inputs) -> Callable[[], object] | None:
    """ResidualQuantizer, beam 1, by its tables of products between centres, which is its faster way."""
    if inputs.rows.is_cuda:
        return None
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    levels, count, dim = inputs.codebooks.shape
    quantizer = faiss.ResidualQuantizer(dim, levels, count.bit_length() - 1)
    quantizer.max_beam_size = 1
    faiss.copy_array_to_vector(inputs.codebooks.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    quantizer.use_beam_LUT = 1
    quantizer.compute_codebook_tables()  # type: ignore[attr-defined]  # added to the class when it is imported

    def encode(rows: Tensor) -> np.ndarray:
        packed: np.ndarray = quantizer.compute_codes(rows.numpy())  # bits of all levels laid end to end
        return packed

    return _streamed(inputs, encode)


def residual_vq(inputs: Inputs, numbers: int | None = None) -> Callable[[], object]:
    """vector-quantize-pytorch's ResidualVQ in evaluation, which also returns the reconstruction.

    All rows of the buffer in one call, as its users would, or so many that as many numbers are compared at once.
    """
    from vector_quantize_pytorch import ResidualVQ

    levels, count, dim = inputs.codebooks.shape
    module = ResidualVQ(dim=dim, codebook_size=count, num_quantizers=levels).to(inputs.rows.device).eval()
    for layer, centres in zip(module.layers, inputs.codebooks, strict=True):
        layer._codebook.embed.data.copy_(centres[None])
        layer._codebook.initted.fill_(True)
    chunk = len(inputs.rows) if numbers is None else numbers // count

    @torch.no_grad()
    def encode(rows: Tensor) -> Tensor:
        return _by_chunks(rows, chunk, lambda part: module(part[None])[1][0])

    return _streamed(inputs, encode)


def residual_vq_in_chunks(inputs: Inputs) -> Callable[[], object]:
    """Chunks that stay in cache, which its users would have to know to make."""
    return residual_vq(inputs, SCORES[inputs.rows.device.type])


SUITE = Suite(
    kernel="residual_encode",
    cases=CASES,
    setup=setup,
    work=work,
    peers={
        "placerank": placerank,
        "placerank bf16": placerank_bf16,
        "matrix product only": product,
        "eager PyTorch": eager,
        "torch.compile": compiled,
        "FAISS ResidualQuantizer": faiss_quantizer,
        "vector-quantize-pytorch": residual_vq,
        "vector-quantize-pytorch in chunks": residual_vq_in_chunks,
    },
    size="N",
)
