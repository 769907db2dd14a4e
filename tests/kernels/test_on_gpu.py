"""Every public function of the kernels on a GPU: the CPU's numbers in float64, at any strides, on any device.

What one kernel alone has (widths, options, long inputs) is in its own file.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from kernel_calls import NAMES, calls, with_tensors
from torch import Tensor

DEVICE = "cuda"
LONG = [33, 0, 70, 0, 1, 0]
LENGTHS = [[], [0], [1], [3, 0, 4], LONG]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of what float64 gives for the same inputs, as a share of its largest number, or of 1."""
LOOSER = {"gru": 100}  # with random weights each visit multiplies the rounding of the one before
TRITON = {
    "hard_negatives", "pairwise_within", "within_mask", "residual_encode", "residual_lookup", "residual_quantize",
    "search_attention", "target_attention",
}  # fmt: skip
"""Those with kernels of their own; the others are PyTorch's operations on a GPU, so float32 is enough to see."""
CHOICES = {"residual_encode", "residual_quantize", "hard_negatives", "segment_hamming", "segment_topk", "trie_topk"}
"""Whose answer jumps where two candidates are as good: float32 of the same numbers decides as the GPU does."""
NO_GRADIENT = {"tile_bounds"}  # for floats nobody trains; it writes where autograd still wants to look


def arguments(name: str, lengths: list[int], dtype: torch.dtype) -> dict[str, Any]:
    return {n: argument.value for n, argument in calls(lengths, dtype)[name].arguments.items()}


def tensors(x: Any) -> list[Tensor]:
    """The tensors of what a function took or gave, in order."""
    if isinstance(x, tuple | list):
        return [y for part in x for y in tensors(part)]
    return [x] if isinstance(x, Tensor) else []


def outcome(name: str, given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What a function returns for changed inputs, in float64 on the CPU, and the gradients of its floating inputs.

    A tensor that it changes in place counts as returned.
    """
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        y = change(x)
        if y.is_floating_point() and name not in NO_GRADIENT and not in_place and id(x) not in averages:
            leaves.append(y.requires_grad_())
        return y

    in_place = name.endswith("_")
    averages = {id(layer.statistics) for layer in given.get("layers", [])}  # running ones, which are not trained
    changed = {n: with_tensors(leaf, x) for n, x in given.items()}
    got = calls()[name].function(**changed)
    outputs = tensors(list(changed.values()) if in_place else got)
    smooth = [x for x in outputs if x.requires_grad]
    grads: tuple[Tensor, ...] = ()
    if smooth:
        up = [change(torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)) for x in smooth]
        grads = torch.autograd.grad(smooth, leaves, up, allow_unused=True, materialize_grads=True)
    found = [*outputs, *grads]
    return [x.detach().cpu().double() if x.is_floating_point() else x.detach().cpu() for x in found]


def exact(name: str, x: Tensor) -> Tensor:
    return (x.float() if name in CHOICES else x.double()) if x.is_floating_point() else x.clone()


def compare(name: str, got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        finite = b[b.isfinite()]
        largest = max(1.0, finite.abs().max().item()) if finite.numel() and b.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_gpu_is_held_against_can_be_had(name: str) -> None:
    for lengths in LENGTHS:
        outcome(name, arguments(name, lengths, torch.float32), partial(exact, name))


@pytest.mark.gpu
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, torch.float32) for n in NAMES), *((n, torch.bfloat16) for n in sorted(TRITON))]
)
def test_the_numbers_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    for lengths in LENGTHS:
        given = arguments(name, lengths, dtype)
        if name == "search_attention":  # at a knot a hat has two slopes, and numbers of 16 bits are often at one
            given["gaps"] = torch.where(given["gaps"] == given["gaps"].round(), given["gaps"] + 0.25, given["gaps"])
        want = outcome(name, given, partial(exact, name))
        got = outcome(name, given, lambda x: x.to(DEVICE, copy=True))
        compare(name, got, want, TOLERANCE[dtype] * LOOSER.get(name, 1))


OF_ROWS = {
    "hard_negatives": "queries", "pairwise_within": "queries", "within_mask": "queries", "residual_encode": "x",
    "residual_lookup": "codebooks", "residual_quantize": "x", "search_attention": "keys", "target_attention": "keys",
}  # fmt: skip
"""An argument that holds numbers by row."""


@pytest.mark.gpu
@pytest.mark.timeout(60)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", sorted(TRITON))
def test_a_row_that_is_no_number(name: str, value: float) -> None:
    """Spoils on a GPU what it spoils on the CPU, and nothing else."""
    given = arguments(name, LONG, torch.float32)
    given = {n: with_tensors(torch.clone, x) for n, x in given.items()}
    for x in tensors([given[OF_ROWS[name]]]):
        if x.is_floating_point():
            x[0] = value
    with torch.no_grad():
        got, want = (
            tensors(calls()[name].function(**{n: with_tensors(change, x) for n, x in given.items()}))
            for change in (lambda x: x.to(DEVICE), torch.clone)
        )
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4, equal_nan=True)


def spread(x: Tensor) -> Tensor:
    """The same numbers, with others between them in memory, from an address that no power of two divides."""
    wide = torch.full((x.numel() * 2 + 1,), 3, dtype=x.dtype, device=DEVICE)[1:].view(*x.shape, 2)
    wide[..., 0] = x
    return wide[..., 0]


@pytest.mark.gpu
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES)
def test_strides_change_nothing(name: str) -> None:
    given = arguments(name, LONG, torch.float32)
    want = outcome(name, given, lambda x: x.to(DEVICE, copy=True))
    compare(name, outcome(name, given, spread), want, 1e-5 * LOOSER.get(name, 1))


@pytest.mark.gpu
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES)
def test_on_a_device_that_is_not_the_current_one(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    given = arguments(name, LONG, torch.float32)
    want = outcome(name, given, lambda x: x.to("cuda:0", copy=True))
    with torch.cuda.device(0):
        compare(name, outcome(name, given, lambda x: x.to("cuda:1", copy=True)), want, 1e-5)
