"""Residual codebooks: reference = CPU = Triton, ties, rows that cannot be encoded, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels import codebook_cpu
from placerank.kernels.codebook import (
    Metric,
    Precision,
    _metrics,
    _prepare,
    residual_encode,
    residual_encode_reference,
    residual_lookup,
    residual_lookup_reference,
    residual_quantize,
    soft_usage,
    soft_usage_reference,
)
from placerank.kernels.codebook_triton import (
    residual_encode_triton,
    residual_lookup_backward_triton,
    residual_lookup_triton,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the Triton kernels run: on CPUs, interpreted

# N, D, K, L: nothing, one, primes, one over a block of the CPU and of Triton, D that is and isn't a multiple of 16
SHAPES = [(0, 5, 3, 2), (1, 1, 1, 1), (2, 3, 2, 8), (37, 16, 17, 3), (65, 33, 129, 2), (97, 129, 31, 2)]
HALVES = [torch.float16, torch.bfloat16]


def integers(*shape: int, high: int = 4) -> Tensor:
    """Small whole numbers: every path computes their scores exactly, so codes must be the same, ties included."""
    return torch.randint(-high, high + 1, shape).float()


def triton_encode(
    x: Tensor,
    codebooks: Tensor,
    metric: Metric | list[Metric] = "euclidean",
    precision: Precision = "fp32",
    sizes: list[int] | None = None,
) -> Tensor:
    prepared = _prepare(codebooks.to(DEVICE), _metrics(metric, len(codebooks)), precision, sizes)
    codes, _ = residual_encode_triton(x.to(DEVICE), *prepared, False)
    return codes.cpu()


def triton_lookup(codes: Tensor, codebooks: Tensor) -> Tensor:
    return residual_lookup_triton(codes.to(DEVICE), codebooks.to(DEVICE)).cpu()


def triton_lookup_backward(grad: Tensor, codes: Tensor, count: int, deterministic: bool) -> Tensor:
    return residual_lookup_backward_triton(grad.to(DEVICE), codes.to(DEVICE), count, deterministic).cpu()


def distances(x: Tensor, codebooks: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row at each level, in float64: the distance of the chosen centre, and the smallest one; [N, L]."""
    residual, chosen, smallest = x.double(), [], []
    for centres, code in zip(codebooks.double(), codes.t(), strict=True):
        d = torch.cdist(residual, centres, compute_mode="donot_use_mm_for_euclid_dist")
        chosen.append(d.gather(1, code[:, None])[:, 0])
        smallest.append(d.min(dim=1).values)
        residual = residual - centres[code]
    return torch.stack(chosen, 1), torch.stack(smallest, 1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_codes_on_every_path_ties_to_the_lowest(shape: tuple[int, int, int, int]) -> None:
    n, d, k, levels = shape
    x, codebooks = integers(n, d), integers(levels, k, d, high=1)
    codebooks[:, k - k // 2 :] = codebooks[:, : k // 2]  # every centre twice: ties everywhere
    expected = residual_encode_reference(x, codebooks)
    assert (expected < k - k // 2).all()
    torch.testing.assert_close(residual_encode(x, codebooks), expected, rtol=0, atol=0)
    torch.testing.assert_close(triton_encode(x, codebooks), expected, rtol=0, atol=0)
    torch.testing.assert_close(triton_encode(x, codebooks, precision="bf16"), expected, rtol=0, atol=0)
    for half in HALVES:
        torch.testing.assert_close(residual_encode(x.to(half), codebooks.to(half)), expected, rtol=0, atol=0)
        torch.testing.assert_close(triton_encode(x.to(half), codebooks.to(half)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_chunks_and_tiles(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_cpu, "MIN_WORK", 0)
    n, k = 2 * codebook_cpu.CHUNK_ROWS + 1, codebook_cpu.TILE_CENTRES + 1
    x, codebooks = integers(n, 7, high=9), integers(3, k, 7, high=9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = residual_encode(x, codebooks)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, residual_encode_reference(x, codebooks), rtol=0, atol=0)


def test_all_rows_and_centres_at_one_point() -> None:
    x, codebooks = torch.full((70, 20), 3.0), torch.full((2, 130, 20), 3.0)
    for codes in (residual_encode(x, codebooks), triton_encode(x, codebooks)):
        assert (codes == 0).all()


@pytest.mark.parametrize("path", [residual_encode, triton_encode])
def test_fp32_finds_the_nearest_centre(path) -> None:  # type: ignore[no-untyped-def]
    x, codebooks = torch.randn(97, 100), torch.randn(3, 67, 100) * torch.tensor([1, 0.5, 0.2])[:, None, None]
    chosen, smallest = distances(x, codebooks, path(x, codebooks))
    assert (chosen - smallest).max() <= 1e-5 * smallest.max()


@pytest.mark.parametrize("path", [residual_encode, triton_encode])
def test_bf16_keeps_the_bound_it_states(path) -> None:  # type: ignore[no-untyped-def]
    x, codebooks = torch.randn(257, 20), torch.randn(1, 400, 20)  # many centres, some about as near
    codes = path(x, codebooks, precision="bf16")
    chosen, smallest = distances(x, codebooks, codes)
    bound = 2**-7 * (x.norm(dim=1, keepdim=True) + codebooks.norm(dim=2).max())
    assert ((chosen - smallest) <= bound).all()
    rounded = residual_encode_reference(x.bfloat16(), codebooks.bfloat16())
    assert (codes == rounded).float().mean() > 0.98 and (codes != path(x, codebooks)).any()


@pytest.mark.parametrize("metric", ["cosine", ["cosine", "euclidean"], ["euclidean", "cosine"]])
def test_cosine_levels(metric: Metric | list[Metric]) -> None:
    x, codebooks = torch.randn(97, 16), torch.randn(2, 67, 16) * torch.rand(2, 67, 1)
    codebooks[:, 5] = 0  # a centre of zeros has cosine 0
    expected = residual_encode_reference(x, codebooks, metric=metric)
    torch.testing.assert_close(residual_encode(x, codebooks, metric=metric), expected)
    torch.testing.assert_close(triton_encode(x, codebooks, metric), expected)
    assert (expected != residual_encode_reference(x, codebooks)).any()
    scaled = residual_encode(x * torch.logspace(-3, 3, 97)[:, None], codebooks[:1], metric="cosine")
    if metric != ["euclidean", "cosine"]:
        torch.testing.assert_close(scaled, expected[:, :1])


def test_levels_of_different_sizes() -> None:
    x, codebooks = integers(70, 8), integers(3, 40, 8)
    sizes = [40, 7, 1]
    expected = residual_encode_reference(x, codebooks, sizes=sizes)
    codebooks[1, 7:], codebooks[2, 1:] = x[:33], torch.nan  # padding may hold anything
    for path in (residual_encode, triton_encode):
        torch.testing.assert_close(path(x, codebooks, sizes=sizes), expected, rtol=0, atol=0)


@pytest.mark.parametrize("path", [residual_encode, triton_encode, residual_encode_reference])
def test_nan_is_never_chosen(path) -> None:  # type: ignore[no-untyped-def]
    x, codebooks = integers(70, 8), integers(2, 40, 8)
    clean = path(x, codebooks)
    x[3, 5], x[69] = torch.nan, -torch.nan
    codes = path(x, codebooks)
    assert (codes[[3, 69]] == -1).all()
    rest = torch.ones(70, dtype=torch.bool)
    rest[[3, 69]] = False
    torch.testing.assert_close(codes[rest], clean[rest])
    codebooks[0, clean[0, 0]] = torch.nan
    assert (path(x, codebooks)[:, 0] != clean[0, 0]).all()
    assert (path(x, torch.full_like(codebooks, torch.nan)) == -1).all()


INFINITE = [[torch.inf] * 8, [-torch.inf] * 8, [0, 0, torch.inf, 1, 0, 2, 0, 0], [-torch.inf, torch.inf, *[0] * 6]]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("path", [residual_encode, triton_encode, residual_encode_reference])
def test_an_infinite_row_is_near_no_centre(path, metric: Metric) -> None:  # type: ignore[no-untyped-def]
    """Centres of both signs and with zeros, whose products with infinity are infinite of either sign, or no number."""
    x, codebooks = integers(70, 8), integers(2, 40, 8)
    codebooks[:, 3], codebooks[:, 4] = 1, -1
    clean = path(x, codebooks, metric=metric)
    x[30:34] = torch.tensor(INFINITE)
    precisions = [{}] if path is residual_encode_reference else [{"precision": p} for p in ("fp32", "bf16")]
    for precision in precisions:
        codes = path(x, codebooks, metric=metric, **precision)
        assert (codes[30:34] == -1).all()
        rest = torch.ones(70, dtype=torch.bool)
        rest[30:34] = False
        assert precision == {"precision": "bf16"} or torch.equal(codes[rest], clean[rest])


@pytest.mark.parametrize("path", [residual_encode, triton_encode, residual_encode_reference])
def test_a_row_too_large_for_products_in_float32(path) -> None:  # type: ignore[no-untyped-def]
    x, codebooks = torch.full((3, 8), 1e30), torch.full((2, 4, 8), 1e30)
    x[1] = 1
    assert path(x, codebooks)[:, 0].tolist() == [-1, -1, -1]  # also |c|^2 is too large
    assert path(x, codebooks / 1e30)[1].tolist() == [0, 0]


def test_quantizing_an_infinite_row() -> None:
    x, codebooks = torch.randn(5, 8), torch.randn(2, 4, 8)
    x[2, 3] = torch.inf
    got = residual_quantize(x, codebooks)
    assert got.codes[2].tolist() == [-1, -1] and got.norms[2].isinf() and not got.reconstruction[2].any()
    assert got.norms[[0, 1, 3, 4]].isfinite().all()
    assert soft_usage(x, codebooks[0], 1.0).isnan().all()


def test_quantize_returns_what_is_left() -> None:
    x, codebooks = torch.randn(70, 33), torch.randn(3, 40, 33)
    x[7, 0] = torch.nan
    got = residual_quantize(x, codebooks)
    expected = residual_encode_reference(x, codebooks)
    torch.testing.assert_close(got.codes, expected)
    torch.testing.assert_close(got.reconstruction, residual_lookup_reference(expected, codebooks))
    norms = (x - got.reconstruction).norm(dim=1)
    torch.testing.assert_close(got.norms, norms, equal_nan=True)
    prepared = _prepare(codebooks.to(DEVICE), ["euclidean"] * 3, "fp32", None)
    torch.testing.assert_close(residual_encode_triton(x.to(DEVICE), *prepared, True)[1].cpu(), norms, equal_nan=True)


def test_rows_of_any_layout() -> None:
    x, codebooks = integers(66, 20), integers(2, 9, 40)
    expected = residual_encode_reference(x, codebooks[:, :, ::2])
    for view in (x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, :20]):
        torch.testing.assert_close(residual_encode(view, codebooks[:, :, ::2]), expected)
        torch.testing.assert_close(triton_encode(view, codebooks[:, :, ::2]), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_encode_undoes_lookup(n: int, d: int, k: int, levels: int, seed: int) -> None:
    """Levels whose centres are 1000 times as fine as the level's before: sums of centres have only one encoding."""
    g = torch.Generator().manual_seed(seed)
    codebooks = torch.stack([torch.randperm(40, generator=g)[:k] * 100.0**-level for level in range(min(levels, 2))])
    codebooks = codebooks[:, :, None].expand(-1, -1, d).contiguous()
    codes = torch.randint(k, (n, len(codebooks)), generator=g)
    torch.testing.assert_close(residual_encode(residual_lookup(codes, codebooks), codebooks), codes)


def make_codes(n: int, k: int, levels: int) -> Tensor:
    codes = torch.randint(k, (n, levels))
    codes[::5, 0] = -1
    codes[1::3] = 0  # one centre that many rows share
    return codes


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_lookup_and_its_gradient(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    n, d, k, levels = shape
    codes, codebooks = make_codes(n, k, levels), torch.randn(levels, k, d).to(dtype).requires_grad_()
    grad = torch.randn(n, d).to(dtype)
    expected = residual_lookup_reference(codes, codebooks)
    out = residual_lookup(codes, codebooks)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(triton_lookup(codes, codebooks.detach()), expected)
    # the reference in float32: autograd of a gather sums 16-bit gradients in 16 bits
    wide = codebooks.detach().float().requires_grad_()
    residual_lookup_reference(codes, wide).backward(grad.float())
    assert wide.grad is not None
    (got,) = torch.autograd.grad(out, codebooks, grad)
    torch.testing.assert_close(got, wide.grad.to(dtype))
    for deterministic in (False, True):
        torch.testing.assert_close(triton_lookup_backward(grad, codes, k, deterministic), wide.grad.to(dtype))


def test_lookup_gradient_is_the_same_on_any_number_of_threads() -> None:
    codes, grad = make_codes(3000, 5, 2), torch.randn(3000, 100)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(codebook_cpu.residual_lookup_backward_cpu(grad, codes, 5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_lookup_gradcheck() -> None:
    codes, codebooks = make_codes(6, 4, 2), torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: residual_lookup(codes, c), codebooks)
    assert torch.autograd.gradgradcheck(lambda c: residual_lookup(codes, c), codebooks)


def test_triton_lookup_marks_a_code_out_of_range() -> None:
    codes, codebooks = torch.tensor([[0], [3]]), torch.randn(1, 3, 5)
    out = triton_lookup(codes, codebooks)
    assert out[0].equal(codebooks[0, 0]) and out[1].isnan().all()
    for deterministic in (False, True):
        grad = triton_lookup_backward(torch.ones(2, 5), codes, 3, deterministic)
        assert grad[0, 0].eq(1).all() and grad[0, 1:].eq(0).all()


@pytest.mark.parametrize("n", [1, 3, 50])
def test_soft_usage(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, centres = torch.randn(n, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    monkeypatch.setattr("placerank.kernels.codebook._SOFT_NUMBERS_CPU", 7 * 8)  # chunks of 8 rows
    got, expected = soft_usage(x, centres, 0.7), soft_usage_reference(x, centres, 0.7)
    torch.testing.assert_close(got, expected)
    grad = torch.randn(7)
    for a, b in zip(*(torch.autograd.grad(y, [x, centres], grad) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_soft_usage_of_rows_without_gradient() -> None:
    """As HGIT trains: the centres' gradient is the same, and none of the size of the rows is made."""
    x, centres, grad = torch.randn(50, 5), torch.randn(7, 5, requires_grad=True), torch.randn(7)
    with_x = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(soft_usage(with_x, centres, 0.7), centres, grad)
    (got,) = torch.autograd.grad(soft_usage(x, centres, 0.7), centres, grad)
    assert torch.equal(got, expected)
    grad_x, _ = torch.ops.placerank.soft_usage_backward(grad, x, centres.detach(), 0.7, False)
    assert grad_x.shape == (0, 5)
    (fixed,) = torch.autograd.grad(soft_usage(with_x, centres.detach(), 0.7), with_x, grad)
    (both,) = torch.autograd.grad(soft_usage_reference(with_x, centres, 0.7), with_x, grad)
    torch.testing.assert_close(fixed, both)


def test_soft_usage_gradcheck_and_limits() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: soft_usage(a, b, 0.5), (x, centres))
    codes = residual_encode(x.detach().float(), centres.detach().float()[None])[:, 0]
    histogram = torch.bincount(codes, minlength=4) / 6
    torch.testing.assert_close(soft_usage(x, centres, 1e-6).float(), histogram.float())
    torch.testing.assert_close(soft_usage(x, centres, 1e9).float(), torch.full((4,), 0.25))
    assert soft_usage(x.detach()[:0], centres.detach(), 1.0).isnan().all()


@pytest.mark.parametrize("half", HALVES)
def test_soft_usage_of_16_bit_rows(half: torch.dtype) -> None:
    x, centres = torch.randn(50, 5).to(half).requires_grad_(), torch.randn(7, 5).to(half).requires_grad_()
    wide = x.detach().float().requires_grad_(), centres.detach().float().requires_grad_()
    got, expected = soft_usage(x, centres, 0.7), soft_usage_reference(*wide, 0.7)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    grad = torch.randn(7)
    grads, expected_grads = torch.autograd.grad(got, [x, centres], grad), torch.autograd.grad(expected, wide, grad)
    for a, b in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b.to(half))


def test_bad_input_is_told() -> None:
    x, codebooks, codes = torch.randn(4, 3), torch.randn(2, 5, 3), torch.zeros(4, 2, dtype=torch.int64)
    for call, message in (
        (lambda: residual_encode(x, codebooks[0]), r"got x \[4, 3\] and codebooks \[5, 3\]"),
        (lambda: residual_encode(x.double(), codebooks), "x: got torch.float64"),
        (lambda: residual_encode(x, codebooks, metric=["cosine"]), "a list of 2 of them"),
        (lambda: residual_encode(x, codebooks, metric="dot"), "got 'dot'"),  # type: ignore[arg-type]
        (lambda: residual_encode(x, codebooks, precision="tf32"), "got 'tf32'"),  # type: ignore[arg-type]
        (lambda: residual_encode(x, codebooks, sizes=[6, 1]), r"sizes: got \[6, 1\]"),
        (lambda: residual_lookup(codes.int(), codebooks), "expected int64"),
        (lambda: residual_lookup(codes[:, :1], codebooks), r"codes \[4, 1\]"),
        (lambda: residual_lookup(codes + 5, codebooks), "got 5, expected less than K = 5"),
        (lambda: soft_usage(x, codebooks, 1.0), r"centres \[2, 5, 3\]"),
        (lambda: soft_usage(x, codebooks[0], 0.0), "temperature: got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_ops_are_registered_as_torch_expects() -> None:
    x, codebooks = torch.randn(9, 3), torch.randn(2, 5, 3)
    prepared = _prepare(codebooks, ["euclidean", "cosine"], "fp32", None)
    codes, grad, ops = make_codes(9, 5, 2), torch.randn(9, 3, requires_grad=True), torch.ops.placerank
    torch.library.opcheck(ops.residual_encode.default, (x, *prepared, True))
    torch.library.opcheck(ops.residual_lookup.default, (codes, codebooks.clone().requires_grad_(), False))
    torch.library.opcheck(ops.residual_lookup_backward.default, (grad, codes, 5, False))
    rows, centres = x.clone().requires_grad_(), codebooks[0].clone().requires_grad_()
    torch.library.opcheck(ops.soft_usage.default, (rows, centres, 0.5))
    for want_x in (True, False):
        torch.library.opcheck(ops.soft_usage_backward.default, (torch.randn(5), x, codebooks[0], 0.5, want_x))


class _Quantizer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebooks = torch.nn.Parameter(torch.randn(2, 5, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = residual_quantize(x, self.codebooks)
        return found.reconstruction, found.norms, soft_usage(x, self.codebooks[0], 1.0)


def test_compile_and_export() -> None:
    model, x = _Quantizer(), torch.randn(9, 3)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for got in (compiled(x), torch.export.export(model, (x,)).module()(x)):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    compiled(x)[0].sum().backward()
    codes = residual_encode(x, model.codebooks)
    counts = torch.stack([torch.bincount(c, minlength=5) for c in codes.t()])
    torch.testing.assert_close(model.codebooks.grad, counts[..., None].expand(2, 5, 3).float())


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (5000, 384, 512, 3), (300, 1024, 8192, 2)])
def test_on_the_gpu(shape: tuple[int, int, int, int]) -> None:
    n, d, k, levels = shape
    x, codebooks = integers(n, d), integers(levels, k, d, high=1)
    expected = residual_encode_reference(x, codebooks)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        got = residual_encode(x.cuda(), codebooks.cuda(), precision=precision)
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0)
    x, codebooks = torch.randn(n, d), torch.randn(levels, k, d)
    found = residual_quantize(x.cuda(), codebooks.cuda())
    chosen, smallest = distances(x, codebooks, found.codes.cpu())
    assert n == 0 or (chosen - smallest).max() <= 1e-5 * smallest.max()
    torch.testing.assert_close(found.norms.cpu(), (x - found.reconstruction.cpu()).norm(dim=1))
    codes, grad = make_codes(n, k, levels), torch.randn(n, d)
    table = codebooks.clone().requires_grad_()
    residual_lookup_reference(codes, table).backward(grad)
    for deterministic in (False, True):
        on_device = codebooks.cuda().requires_grad_()
        residual_lookup(codes.cuda(), on_device, deterministic=deterministic).backward(grad.cuda())
        torch.testing.assert_close(on_device.grad.cpu(), table.grad, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
