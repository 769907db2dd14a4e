"""Target attention: reference = CPU = Triton, forward and every gradient, statistics, ugly shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels import target_attention as module
from placerank.kernels import target_attention_triton as target_attention_triton_module
from placerank.kernels.dice_cpu import sigmoid
from placerank.kernels.target_attention import DiceLinear, target_attention, target_attention_reference
from placerank.kernels.target_attention_triton import target_attention_backward_triton, target_attention_triton
from placerank.kernels.threads import jit
from placerank.kernels.tile_products import FAST, outer, times, width

LENGTHS = [[2], [0, 3, 0], [7, 0, 1, 13], [33, 0, 1, 32, 64, 31], [0, 0, 129, 2]]
TWO = (16, (32, 16), 2)
WIDTHS = [(5, (3,), 2), TWO, (17, (9, 5, 3), 0)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(
    lengths: list[int],
    dim: int,
    hidden: tuple[int, ...],
    gaps: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """Arguments of target_attention up to its layers; all but offsets and statistics ask for gradients."""

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64) / 2).to(dtype).to(device).requires_grad_()

    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device)
    batch, total = len(lengths), sum(lengths)
    layers = [
        DiceLinear(leaf(h), torch.rand(2, h, dtype=torch.float64).to(dtype).to(device) + 0.1, leaf(n, h), leaf(n))
        for h, n in zip(hidden, [*hidden[1:], 1], strict=True)
    ]
    first = leaf(batch, dim), leaf(batch, hidden[0]), leaf(total, dim), leaf(total, gaps)
    return *first, offsets, leaf(hidden[0], 2 * dim + gaps), layers


def leaves(inputs: tuple[Any, ...]) -> list[Tensor]:
    *tensors, layers = inputs
    return [x for x in [*tensors, *(x for layer in layers for x in layer)] if x.requires_grad]


def to(inputs: tuple[Any, ...], dtype: torch.dtype, requires_grad: bool = True) -> tuple[Any, ...]:
    """The same values as leaves of another dtype, which ask for gradients where these did."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype).requires_grad_(requires_grad and x.requires_grad) if x.is_floating_point() else x

    *tensors, layers = inputs
    return *(leaf(x) for x in tensors), [DiceLinear(*(leaf(x) for x in layer)) for layer in layers]


def compare(attend: Callable[..., Any], inputs: tuple[Any, ...], batch_statistics: bool, atol: float = 2e-5) -> None:
    """Interest, statistics and gradients against the reference in float64; atol is a share of each one's largest."""
    exact = to(inputs, torch.float64)
    want, want_used = target_attention_reference(*exact, batch_statistics)
    got, got_used = attend(*inputs, batch_statistics)
    grad = torch.randn_like(want)
    pairs = [(got, want), *zip(got_used, want_used, strict=True)]
    got_grads = torch.autograd.grad(got, leaves(inputs), grad.to(got.dtype), allow_unused=True)
    pairs += zip(got_grads, torch.autograd.grad(want, leaves(exact), grad), strict=True)
    for a, b in pairs:
        assert a is not None and a.shape == b.shape
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=atol * max(1.0, float(b.detach().abs().max()) if b.numel() else 0)
        )


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_cpu_equals_the_reference(lengths: list[int], widths: Any, batch_statistics: bool) -> None:
    compare(target_attention, make(lengths, *widths), batch_statistics)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1]])
def test_next_to_nothing(lengths: list[int]) -> None:
    compare(target_attention, make(lengths, *TWO), False)


def test_many_blocks_on_any_number_of_threads_give_the_same_bits() -> None:
    lengths = torch.randint(0, 60, (200,)).tolist()
    inputs = make(lengths, *TWO)
    compare(target_attention, inputs, True)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, used = target_attention(*inputs, True)
            results.append([out, *used, *torch.autograd.grad(out.sum(), leaves(inputs))])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            assert torch.equal(a, b)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_samples_do_not_see_each_other_but_in_statistics(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    query, bias, keys, gaps, offsets, weight, layers = make(lengths, *TWO)
    out, _ = target_attention(query, bias, keys, gaps, offsets, weight, layers, False)
    for b in range(len(lengths)):
        visits = slice(int(offsets[b]), int(offsets[b + 1]))
        own = torch.tensor([0, lengths[b]])
        args = query[b : b + 1], bias[b : b + 1], keys[visits], gaps[visits], own
        torch.testing.assert_close(out[b : b + 1], target_attention(*args, weight, layers, False)[0])


def test_statistics_of_a_layer_far_from_zero() -> None:
    inputs = list(make([40, 0, 50], *WIDTHS[0]))
    inputs[1] = inputs[1].detach() * 0 + 3000.0
    _, (got,) = target_attention(*inputs, True)
    with torch.no_grad():
        z = torch.cat([inputs[2], inputs[0].repeat_interleave(inputs[4].diff(), 0) * inputs[2], inputs[3]], 1)
        z = z @ inputs[5].t() + 3000
    torch.testing.assert_close(got[1], z.double().var(0, correction=0).float(), rtol=1e-3, atol=0)


def test_a_visit_that_is_no_number_spoils_its_own_sample() -> None:
    inputs = make([3, 2, 4], *TWO)
    with torch.no_grad():
        inputs[2][3, 1] = torch.nan
    out, _ = target_attention(*inputs, False)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


def test_gradcheck_of_the_reference_which_float64_takes() -> None:
    inputs = make([2, 0, 3], 3, (4, 2), 2, torch.float64)
    *tensors, layers = inputs

    def flat(*x: Tensor) -> Tensor:
        it = iter(x)
        first = [next(it) if t.requires_grad else t for t in tensors]
        rest = [DiceLinear(*(next(it) if t.requires_grad else t for t in layer)) for layer in layers]
        return target_attention(*first, rest, True)[0]

    assert torch.autograd.gradcheck(flat, leaves(inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_on_the_cpu(dtype: torch.dtype) -> None:
    compare(target_attention, make([7, 0, 13], *TWO, dtype), False, atol=0.05)


def op_arguments(batch_statistics: bool) -> tuple[Any, ...]:
    *tensors, layers = make([3, 0, 4], *TWO)
    alphas, statistics, weights, biases = ([*column] for column in zip(*layers, strict=True))
    return *tensors, alphas, statistics, weights, biases, batch_statistics, 1e-8, None


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_custom_op(batch_statistics: bool) -> None:
    torch.library.opcheck(module._forward, op_arguments(batch_statistics))


REQUESTS = [
    ([4], [1]),
    ([3], [5]),
    ([3, 0, 40, 7], [2, 3, 9, 1]),
    ([0, 0, 2], [1, 2, 1]),
    ([2, 0, 3], [2, 1, 0]),
    ([300, 500, 1], [7, 11, 3]),
]
"""Visits and candidates of each request."""


def shared(lengths: list[int], candidates: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Where each candidate's keys begin, the row of keys of each of its visits, and how many it has."""
    begin = [sum(lengths[:r]) for r in range(len(lengths))]
    of = [r for r, n in enumerate(candidates) for _ in range(n)]
    rows = [row for r in of for row in range(begin[r], begin[r] + lengths[r])]
    return torch.tensor([begin[r] for r in of]), torch.tensor(rows, dtype=torch.int64), [lengths[r] for r in of]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize(("lengths", "candidates"), REQUESTS)
def test_keys_that_samples_share(
    lengths: list[int], candidates: list[int], batch_statistics: bool, threads: int
) -> None:
    """As if each had its own, values and gradients; also where the loops don't take them."""
    starts, rows, of_samples = shared(lengths, candidates)
    query, bias, _, gaps, offsets, weight, layers = make(of_samples, *TWO)
    keys = torch.randn(sum(lengths), TWO[0]).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float32, torch.float64):
            inputs = to((query, bias, keys, gaps, offsets, weight, layers), dtype)
            exact = to((query, bias, keys, gaps, offsets, weight, layers), torch.float64)
            got, used = target_attention(*inputs, batch_statistics, starts=starts)
            apart = *exact[:2], exact[2][rows], *exact[3:]
            want, want_used = target_attention_reference(*apart, batch_statistics)
            grad = torch.randn_like(want)
            found = torch.autograd.grad(got, leaves(inputs), grad.to(dtype), allow_unused=True)
            wanted = torch.autograd.grad(want, leaves(exact), grad, allow_unused=True)
            pairs = [(got, want), *zip(used, want_used, strict=True), *zip(found, wanted, strict=True)]
            for a, b in pairs:
                a, b = (torch.zeros(1) if x is None else x.double() for x in (a, b))
                assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1) if b.numel() else not a.numel()
    finally:
        torch.set_num_threads(before)


def test_starts_that_do_not_fit_are_told() -> None:
    query, bias, keys, *rest = make([2, 2, 3], *TWO)
    for starts, told in [
        ([0, 0, 5], r"starts: expected rows of 0 to 6"),
        ([-1, 0, 0], r"starts: expected rows of 0 to 6"),
        ([0, 1, 4], r"starts: expected segments that share rows side by side"),
        ([2, 0, 2], r"starts: expected segments that share rows side by side"),
    ]:
        with pytest.raises(ValueError, match=told):
            target_attention(query, bias, keys, *rest, True, starts=torch.tensor(starts))


def test_torch_compile_and_export_pass_through() -> None:
    inputs = make([3, 0, 4], *TWO)
    want, _ = target_attention(*inputs, True)

    def attend(*tensors: Any) -> Tensor:
        return target_attention(*tensors, inputs[-1], True)[0]

    got = torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs[:-1])
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got.sum(), leaves(inputs)), torch.autograd.grad(want.sum(), leaves(inputs)), strict=True
    ):
        torch.testing.assert_close(a, b)

    *plain, layers = to(inputs, torch.float32, requires_grad=False)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return target_attention(*tensors, layers, True)[0]

    torch.testing.assert_close(torch.export.export(Module(), tuple(plain)).module()(*plain), want)


def test_what_does_not_fit_is_told() -> None:
    query, bias, keys, gaps, offsets, weight, layers = make([3, 0, 4], *TWO)
    shorter = torch.tensor([0, 3, 7])
    with pytest.raises(ValueError, match=r"offsets: got \[3\], expected \[B\+1\] = \[4\]"):
        target_attention(query, bias, keys, gaps, shorter, weight, layers, True)
    with pytest.raises(ValueError, match=r"layers\[1\].weight: got \[2, 16\], expected \[1, 16\]"):
        wide = layers[1]._replace(weight=torch.zeros(2, 16))
        target_attention(query, bias, keys, gaps, offsets, weight, [layers[0], wide], True)
    with pytest.raises(ValueError, match="layers is empty"):
        target_attention(query, bias, keys, gaps, offsets, weight, [], True)
    with pytest.raises(ValueError, match="offsets: got int32, expected int64"):
        target_attention(query, bias, keys, gaps, offsets.int(), weight, layers, True)


@jit()
def _sigmoids(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = sigmoid(x[i])


@jit(fastmath=FAST)
def _products(Ks: Any, Hs: Any, x: Any, w: Any, y: Any, n: int, out: Any, sums: Any) -> None:
    times(Ks, Hs, x, 2, n, w, out, 1)
    outer(Ks, Hs, x, 2, n, y, 1, sums)


def test_sigmoid_of_compiled_loops() -> None:
    x = np.array([*np.linspace(-86, 86, 20_001), 200, np.inf, -np.inf, np.nan], dtype=np.float32)
    got = np.empty_like(x)
    _sigmoids(x, got)
    *exact, of_200, of_infinity, of_minus_infinity, of_nan = got.astype(np.float64)
    assert np.abs(exact * (1 + np.exp(-x[:-4].astype(np.float64))) - 1).max() < 3e-7
    assert of_200 == 1 and of_infinity == 1
    assert 0 <= of_minus_infinity < 1e-37 and np.isnan(of_nan)


@pytest.mark.parametrize(("n", "k", "h"), [(1, 1, 1), (5, 9, 3), (32, 16, 17), (3, 8, 32), (6, 7, 20)])
def test_products_of_tiles(n: int, k: int, h: int) -> None:
    rng = np.random.default_rng(0)
    x, y, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((n + 2, k), (n + 1, h), (k, h)))
    out, sums = np.ones((n + 1, h), np.float32), np.ones((k, h), np.float32)
    _products(width(k), width(h), x, w, y, n, out, sums)
    np.testing.assert_allclose(out[1:], 1 + x[2:] @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, 1 + x[2:].T @ y[1:], rtol=1e-5, atol=1e-5)
    assert (out[0] == 1).all()


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation's CPU path is Triton's interpreter, where there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU Triton's kernels are compiled, not interpreted")
    # without what the CPU's loops alone are told, of keys that samples share
    monkeypatch.setattr(module, "target_attention_cpu", lambda *x: target_attention_triton(*x[:-1]))
    monkeypatch.setattr(module, "target_attention_backward_cpu", lambda *x: target_attention_backward_triton(*x[:-1]))


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize(
    ("lengths", "widths", "batch_statistics"),
    [
        ([2], WIDTHS[0], True),
        ([0, 3, 0], TWO, False),
        ([33, 0, 1, 32, 65, 31], TWO, True),
        ([7, 0, 1, 13], WIDTHS[2], True),
        ([5, 18], (40, (33,), 1), True),
        ([5, 18], (3, (130, 20), 33), True),
        ([0], TWO, False),
        ([], TWO, False),
    ],
)
def test_triton_equals_the_reference(lengths: list[int], widths: Any, batch_statistics: bool) -> None:
    compare(target_attention, make(lengths, *widths), batch_statistics)


@pytest.mark.usefixtures("triton_on_cpu")
def test_triton_with_more_samples_and_tiles_than_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_attention_triton_module, "PROGRAMS", 2)
    compare(target_attention, make([40, 60, 0, 50, 45], *TWO), True)


def attend_in_halves(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    """The operation itself with parameters in float32, as on CUDA."""
    query, bias, keys, gaps, offsets, weight, layers, batch_statistics = arguments
    columns = [[x.float() for x in column] for column in zip(*layers, strict=True)]
    out, _, _, used = module._forward(
        query, bias, keys, gaps, offsets, weight.float(), *columns, batch_statistics, 1e-8, None
    )
    return out, used


@pytest.mark.usefixtures("triton_on_cpu")
def test_triton_in_halves() -> None:
    """float16 only: the interpreter multiplies bfloat16 as the integers that it keeps them in."""
    compare(attend_in_halves, make([33, 0, 5], *TWO, torch.float16), True, atol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", WIDTHS)
def test_gpu_equals_the_reference(widths: Any, dtype: torch.dtype) -> None:
    # seen on an H100: 0.053 and 0.018, of three visits, whose variance Dice divides by
    atol = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.03}[dtype]
    for lengths in (*LENGTHS, torch.randint(0, 90, (700,)).tolist()):
        compare(target_attention, make(lengths, *widths, dtype, "cuda"), True, atol)


@pytest.mark.gpu
def test_autocast_on_gpu() -> None:
    inputs = make([33, 0, 5], *TWO, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        compare(target_attention, inputs, True, atol=0.05)


def test_widths_that_triton_leaves_to_the_reference() -> None:
    fits = target_attention_triton_module.fits
    assert fits(64, [64, 64, 16]) and not fits(65, [64]) and not fits(16, [16, 512])
