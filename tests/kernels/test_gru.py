"""The recurrent unit against its equations and against torch.nn.GRU."""

import pytest
import torch
from torch import Tensor

from placerank.kernels.gru import _backward, _forward, gru, gru_reference, host_lengths

H = 5
LENGTHS = [[], [0], [1], [0, 0], [3, 0, 1], [2, 7, 0, 31, 1], [1] * 40, [40, *[3] * 37, 0], [1500, *[2] * 30]]


def inputs(lengths: list[int], attended: bool, dtype: torch.dtype = torch.float32, h: int = H) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    attention = torch.rand(total, generator=g, dtype=torch.float64).to(dtype) if attended else None
    return make(total, 3 * h), make(3 * h, h) / h**0.5, make(3 * h), offsets, attention


def leaves(case: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.requires_grad_() for x in case if x is not None and x.is_floating_point()]


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["loops", "steps"])
@pytest.mark.parametrize("lengths", LENGTHS[:-1], ids=lambda x: f"{len(x)}x{max(x, default=0)}")
def test_states_and_gradients_equal_the_equations(lengths: list[int], dtype: torch.dtype, attended: bool) -> None:
    case = inputs(lengths, attended, dtype)
    got, want = gru(*case), gru_reference(*case)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    variables = leaves(case)
    touched = 0 * torch.cat([v.flatten() for v in variables]).sum()  # an empty loop touches nothing
    fast = torch.autograd.grad((gru(*case) * weights).sum(), variables)
    slow = torch.autograd.grad((gru_reference(*case) * weights).sum() + touched, variables)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_equals_torch_gru() -> None:
    lengths, features = [9, 4, 4, 1], 7
    module = torch.nn.GRU(features, H)
    data = [torch.randn(n, features) for n in lengths]
    packed = torch.nn.utils.rnn.pack_sequence(data)
    want = torch.nn.utils.rnn.unpack_sequence(module(packed)[0])
    sign = torch.ones(3 * H, 1)
    sign[H : 2 * H] = -1  # u = 1 - z
    x = torch.nn.functional.linear(torch.cat(data), module.weight_ih_l0 * sign, module.bias_ih_l0 * sign[:, 0])
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    got = gru(x, module.weight_hh_l0 * sign, module.bias_hh_l0 * sign[:, 0], offsets)
    torch.testing.assert_close(got, torch.cat(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("h", [1, 33])
def test_loops_equal_steps_on_skewed_lengths(h: int) -> None:
    case = inputs(LENGTHS[-1], True, h=h)
    double = tuple(x.double() if x.is_floating_point() else x for x in case)
    lengths = host_lengths(case[3])
    states = _forward(*case, lengths)
    torch.testing.assert_close(states.double(), _forward(*double, lengths), rtol=1e-4, atol=1e-5)
    grad = torch.randn(states.shape)
    slow = _backward(grad.double(), *double, lengths, states.double())
    for a, b in zip(_backward(grad, *case, lengths, states), slow, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def test_gradcheck() -> None:
    case = inputs([3, 0, 2], True, torch.float64, h=2)
    leaves(case)
    assert torch.autograd.gradcheck(gru, case)


def test_an_attention_of_zero_keeps_the_state_and_one_changes_nothing() -> None:
    x, weight, bias, offsets, _ = inputs([4, 2], False)
    assert not gru(x, weight, bias, offsets, torch.zeros(6)).any()
    torch.testing.assert_close(gru(x, weight, bias, offsets, torch.ones(6)), gru(x, weight, bias, offsets))


def test_the_operation_is_as_pytorch_expects() -> None:
    x, weight, bias, offsets, attention = inputs([3, 0, 2], True)
    torch.library.opcheck(_forward, (x, weight, bias, offsets, attention, torch.tensor([3, 0, 2])))


def test_bfloat16_is_computed_in_float32() -> None:
    case = inputs([5, 2], True)
    low = [v.bfloat16() if v.is_floating_point() else v for v in case]
    got = gru(*low)
    exact = gru(*(v.float() if v.is_floating_point() else v for v in low))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, exact.bfloat16(), rtol=0, atol=0)


def test_what_does_not_fit_is_told() -> None:
    x, weight, bias, offsets, attention = inputs([2, 1], True)
    with pytest.raises(ValueError, match=r"x: got \[3, 14\], expected \[T, 3H\] = \[3, 15\]"):
        gru(x[:, 1:], weight, bias, offsets)
    with pytest.raises(ValueError, match=r"attention: got \[2\], expected \[T\] = \[3\]"):
        gru(x, weight, bias, offsets, attention[1:])
    with pytest.raises(ValueError, match="offsets: got int32, expected int64"):
        gru(x, weight, bias, offsets.int())
