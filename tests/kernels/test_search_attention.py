"""Attention over chosen visits: a loop from its definition, the reference, the compiled loops."""

from collections.abc import Callable, Iterator
from math import log

import pytest
import torch
from torch import Tensor

from placerank.kernels import search_attention as module
from placerank.kernels.jagged import segment_topk
from placerank.kernels.search_attention import hats, interpolate, search_attention, search_attention_reference
from placerank.kernels.search_attention_triton import (
    fits,
    search_attention_backward_triton,
    search_attention_triton,
)

KNOTS, G = 5, 2
CASES = [([], 1), ([0], 2), ([1], 4), ([3, 0, 2], 4), ([0, 90, 7, 1, 30], 16)]


def make(lengths: list[int], k: int, dim: int = 6, heads: int = 3) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(sum(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    T, B = sum(lengths), len(lengths)
    gaps = torch.rand(T, G, generator=g) * (KNOTS + 1) - 0.5  # some lie outside of the knots
    rows = segment_topk(torch.randn(T, generator=g), offsets, k)
    queries = torch.randn(B, heads, dim + G * KNOTS, generator=g)
    return queries, torch.randn(T, dim, generator=g), gaps, rows


def by_hand(queries: Tensor, keys: Tensor, gaps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A sample, a head, a visit at a time."""
    out, log_total = torch.zeros_like(queries), torch.zeros(queries.shape[:2])
    for b, chosen in enumerate(rows.tolist()):
        visits = []
        for t in (t for t in chosen if t >= 0):
            knots = [max(0.0, 1 - abs(min(max(float(g), 0), KNOTS - 1) - i)) for g in gaps[t] for i in range(KNOTS)]
            visits.append(torch.cat([keys[t], torch.tensor(knots)]))
        for a in range(queries.shape[1] if visits else 0):
            weights = torch.stack([z @ queries[b, a] for z in visits]).exp()
            total = 1 + weights.sum()
            out[b, a] = sum(w / total * z for w, z in zip(weights, visits, strict=True))
            log_total[b, a] = total.log()
    return out, log_total


@pytest.mark.parametrize(("lengths", "k"), CASES)
@pytest.mark.parametrize("attend", [search_attention, search_attention_reference])
def test_forward_equals_the_loop(attend: Callable[..., tuple[Tensor, Tensor]], lengths: list[int], k: int) -> None:
    inputs = make(lengths, k)
    torch.testing.assert_close(attend(*inputs), by_hand(*inputs))


@pytest.mark.parametrize(("lengths", "k"), CASES)
@pytest.mark.parametrize(("dim", "heads"), [(1, 3), (6, 3), (16, 4), (5, 1), (9, 6)])
def test_values_and_gradients_are_those_of_the_reference(lengths: list[int], k: int, dim: int, heads: int) -> None:
    queries, keys, gaps, rows = make(lengths, k, dim, heads)
    for a, b in zip(
        search_attention(queries, keys, gaps, rows),
        search_attention_reference(queries, keys, gaps, rows),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    leaves = [x.requires_grad_() for x in (queries, keys, gaps)]
    grad = torch.randn(queries.shape), torch.randn(queries.shape[:2])
    got = torch.autograd.grad(search_attention(*leaves, rows), leaves, grad)
    want = torch.autograd.grad(search_attention_reference(*leaves, rows), leaves, grad)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def triton_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operation's CPU path is Triton's interpreter, where there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU Triton's kernels are compiled, not interpreted")
    # without what the CPU's loops alone are told, of keys that samples share
    monkeypatch.setattr(module, "search_attention_cpu", lambda *x: search_attention_triton(*x[:4]))
    monkeypatch.setattr(module, "search_attention_backward_cpu", lambda *x: search_attention_backward_triton(*x[:8]))


def computed(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and gradients of the operation itself, each with those of the reference in float64."""
    queries, keys, gaps, rows = inputs
    leaves = [x.detach().requires_grad_() for x in (queries, keys, gaps)]
    exact = [x.detach().double().requires_grad_() for x in (queries, keys, gaps)]
    got, want = module._forward(*leaves, rows, None, None)[:2], search_attention_reference(*exact, rows)
    grad = [torch.randn_like(x) for x in got]
    found = torch.autograd.grad(got, leaves, grad)
    wanted = torch.autograd.grad(want, exact, [x.double() for x in grad])
    for a, b in zip((*got, *found), (*want, *wanted), strict=True):
        assert a.dtype == queries.dtype
        yield a.double(), b


def compare(inputs: tuple[Tensor, ...], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for a, b in computed(inputs):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize(("lengths", "k"), CASES)
@pytest.mark.parametrize(("dim", "heads"), [(1, 3), (16, 4), (5, 1), (70, 5)])
def test_triton_equals_the_reference(lengths: list[int], k: int, dim: int, heads: int) -> None:
    queries, *others = make(lengths, k, dim, heads)
    compare((queries / dim**0.5, *others))


@pytest.mark.usefixtures("triton_on_cpu")
def test_triton_of_long_lists_and_large_logits() -> None:
    queries, keys, gaps, rows = make([0, 90, 7, 70], 80, 16, 4)
    for a, b in computed((20 * queries, keys, gaps, rows)):
        # A logit of 300 is known to 3e-5 and so is its weight, so sums of them are to 3e-5 of what they add up
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.usefixtures("triton_on_cpu")
def test_triton_in_halves() -> None:
    inputs = (x.half() if x.is_floating_point() else x for x in make([33, 0, 5], 9, 16, 4))
    compare(tuple(inputs), rtol=0.01, atol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "heads"), [(1, 3), (48, 4), (64, 4), (200, 8)])
def test_gpu_equals_the_reference(dim: int, heads: int, dtype: torch.dtype) -> None:
    atol = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for lengths, k in (*CASES, (torch.randint(0, 90, (700,)).tolist(), 50)):
        queries, keys, gaps, rows = make(lengths, k, dim, heads)
        gaps = gaps.to(dtype)
        gaps = torch.where(gaps == gaps.round(), gaps + 0.25, gaps)  # at a knot a hat has two slopes
        inputs = (queries / dim**0.5).to(dtype), keys.to(dtype), gaps, rows
        compare(tuple(x.cuda() for x in inputs), rtol=atol, atol=atol)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("lengths", "candidates"), [([4], [5]), ([3, 0, 90, 7], [2, 3, 40, 1]), ([0, 2, 5] * 60, [1, 2, 3] * 60)]
)
def test_keys_that_samples_share(lengths: list[int], candidates: list[int], threads: int) -> None:
    """As if each had its own, values and gradients."""
    of = [r for r, n in enumerate(candidates) for _ in range(n)]
    starts = torch.tensor([sum(lengths[:r]) for r in of])
    key_rows = torch.tensor([sum(lengths[:r]) + i for r in of for i in range(lengths[r])])
    queries, _, gaps, rows = make([lengths[r] for r in of], 16, 16, 4)
    offsets = torch.tensor([0, *(lengths[r] for r in of)]).cumsum(0)
    keys = torch.randn(sum(lengths), 16)
    leaves = [x.requires_grad_() for x in (queries, keys, gaps)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = search_attention(*leaves, rows, offsets, starts)
        want = search_attention_reference(queries, keys[key_rows], gaps, rows)
        grad = [torch.randn_like(x) for x in want]
        found, wanted = torch.autograd.grad(got, leaves, grad), torch.autograd.grad(want, leaves, grad)
        for a, b in zip((*got, *found), (*want, *wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)
    if len(lengths) > 1:
        with pytest.raises(ValueError, match="rows: got some of another sample's visits"):
            search_attention(*leaves, rows.flip(0), offsets, starts)
    with pytest.raises(ValueError, match="offsets, starts: got one of the two"):
        search_attention(*leaves, rows, offsets)


def test_what_triton_leaves_to_the_reference() -> None:
    assert fits(4, 512, 26) and fits(8, 256, 26) and not fits(9, 256, 26) and not fits(4, 513, 26)


def test_gradcheck() -> None:
    queries, keys, gaps, rows = make([3, 0, 5], 3)
    leaves = [x.double().requires_grad_() for x in (queries, keys, gaps)]
    assert torch.autograd.gradcheck(lambda *x: search_attention(*x, rows), leaves)


def test_visits_that_were_not_chosen_do_not_matter() -> None:
    queries, keys, gaps, rows = make([40, 7], 5)
    others = torch.ones(len(keys), dtype=torch.bool)
    others[rows.flatten()] = False
    broken, broken_gaps = keys.clone(), gaps.clone()
    broken[others], broken_gaps[others] = torch.nan, torch.nan
    got = search_attention(queries, broken, broken_gaps, rows)
    for a, b in zip(got, search_attention(queries, keys, gaps, rows), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("heads", range(1, 10))
def test_a_visit_that_is_no_number_spoils_its_own_sample(heads: int, bad: float) -> None:
    """Values and gradients, also where heads do not fill a group of those that share a load."""
    results = []
    for key in (1.0, bad):
        queries, keys, gaps, rows = make([3, 4, 0, 2], 4, heads=heads)
        keys[3:7] *= key
        leaves = [x.requires_grad_() for x in (queries, keys, gaps)]
        pooled, log_total = search_attention(*leaves, rows)
        grads = torch.autograd.grad(pooled.sum() + log_total.sum(), leaves)
        of_visits = torch.tensor([0, 1, 2, 7, 8])
        others = torch.tensor([0, 2, 3])
        results.append([pooled[others], log_total[others], grads[0][others], *(g[of_visits] for g in grads[1:])])
    for clean, beside in zip(*results, strict=True):
        assert torch.equal(clean, beside)


def test_a_gap_that_is_no_number() -> None:
    queries, keys, gaps, rows = make([3, 2], 3)
    gaps[1, 0] = torch.nan
    for attend in (search_attention, search_attention_reference):
        pooled, log_total = attend(queries, keys, gaps, rows)
        assert pooled[0, :, :-KNOTS].isnan().any(dim=1).all() and log_total[0].isnan().all()
        assert pooled[1].isfinite().all() and log_total[1].isfinite().all()
    assert interpolate(gaps, torch.randn(G, KNOTS)).isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("attend", [search_attention, search_attention_reference])
def test_logits_that_are_very_large_or_small(attend: Callable[..., tuple[Tensor, Tensor]]) -> None:
    _, keys, gaps, rows = make([6], 6)
    queries = torch.zeros(1, 2, 6 + G * KNOTS)
    queries[0, :, 6 : 6 + KNOTS] = torch.tensor([[300.0], [-300.0]])  # hats of a gap add up to 1
    pooled, log_total = attend(queries, keys, gaps, rows)
    torch.testing.assert_close(pooled[0, 0, :6], keys.mean(dim=0))
    torch.testing.assert_close(log_total[0], torch.tensor([300 + log(6), 0.0]))
    assert pooled[0, 1].abs().max() < 1e-30


def test_half_precision() -> None:
    inputs = make([9, 0, 4], 5)
    want = search_attention(*inputs)
    rounded = search_attention(*(x.bfloat16() if x.is_floating_point() else x for x in inputs))
    for a, b in zip(rounded, want, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert search_attention(*inputs)[0].dtype == torch.bfloat16


def test_interpolation_is_the_product_with_hats() -> None:
    gaps, table = torch.rand(200, G) * (KNOTS + 1) - 0.5, torch.randn(G, KNOTS)
    want = hats(gaps, KNOTS) @ table.flatten()
    torch.testing.assert_close(interpolate(gaps, table), want)
    torch.testing.assert_close(interpolate(gaps, table.clone().requires_grad_()).detach(), want)  # without the loop
    at_knots = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
    torch.testing.assert_close(interpolate(at_knots, table), table[0, [0, 3]] + table[1, [4, 1]])
    torch.testing.assert_close(hats(gaps, KNOTS).sum(1), torch.full((200,), float(G)))


def test_what_does_not_fit_is_told() -> None:
    queries, keys, gaps, rows = make([3, 2], 2)
    with pytest.raises(ValueError, match=r"queries: got \[2, 3, 15\] beside keys .* expected \[B, A, D \+ G K\]"):
        search_attention(queries[..., :-1], keys, gaps, rows)
    with pytest.raises(ValueError, match="rows: got int32, expected int64"):
        search_attention(queries, keys, gaps, rows.int())
