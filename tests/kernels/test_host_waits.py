"""What CUDA runs around its kernels, and inside of PyTorch's own operations, waits for no device.

On the meta device tensors have no numbers: what asks for one, or for a size that hangs on numbers, raises there. What
is left are copies between the host and the device, and those are told.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from host_waits import host_waits, on_host
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from placerank.kernels import codebook, gru, jagged, pairwise_within_triton
from placerank.kernels.codebook import residual_encode, residual_lookup
from placerank.kernels.codebook_triton import residual_encode_triton
from placerank.kernels.hard_negatives import arguments, solve
from placerank.kernels.hard_negatives_triton import hard_negatives_triton
from placerank.kernels.haversine import unit_vectors
from placerank.kernels.pairwise_within import _limits, pairwise_within_reference
from placerank.kernels.places import Places
from placerank.kernels.search_attention import search_attention_unchecked
from placerank.kernels.simhash import segment_hamming_unchecked
from placerank.kernels.target_attention import DiceLinear, target_attention_unchecked
from placerank.kernels.tiles import curve_keys, curve_order

B, T, D, H = 23, 211, 16, 8
INT = torch.int64


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype == torch.float32)


class Copied(AssertionError):
    """A copy between the host and the device."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if func.overloadpacket.__name__ in ("_to_copy", "copy_") and len({x.device for x in tensors}) > 1:
            raise Copied(str(func))
        return out


class _Functions(TorchFunctionMode):
    """A number or a list of the host made a tensor of the device, which is no operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "meta":
            raise Copied(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def without_waits() -> Iterator[None]:
    """Within, kernels are not started, and copies are refused."""
    curve_order(torch.empty(3, 3, device="meta"))  # the curve's table is on the device once it has been asked for
    no_autocast = patch.object(torch, "is_autocast_enabled", lambda *_: False)  # it knows no such device
    with no_autocast, patch.object(GridExecutor, "__call__", lambda *_, **__: None), _Functions(), _Operators():
        yield


def negatives(others: int = 0, **options: Any) -> None:
    def places(rows: int) -> Places:
        ids = [empty(rows, dtype=INT) for _ in range(3)]
        return Places(ids[0], empty(rows, 3), empty(rows, D), *ids[1:])

    defaults = {"k": 9, "negative_km": 10.0, "positive_km": 30.0, "different_category": True}
    defaults |= {"negatives": "hardest", "positives": "hardest", "seed": 2**40 + 7}
    solve(hard_negatives_triton, *arguments(places(T), places(others) if others else None, **defaults | options))


def differentiate(out: Tensor | tuple[Tensor, ...]) -> None:
    sum(x.sum() for x in ([out] if isinstance(out, Tensor) else out) if x.requires_grad).backward()  # type: ignore[union-attr]


def encode(metric: Any) -> None:
    with patch.object(codebook, "_encode", residual_encode_triton):
        residual_encode(empty(T, D), empty(3, 7, D), metric=metric, sizes=[7, 5, 3])


def recurrent(attention: Tensor) -> None:
    lengths = torch.tensor([0, 1, 70, 0, *[7] * 20])  # on the host
    given = empty(T, 3 * H), empty(3 * H, H), empty(3 * H), empty(len(lengths) + 1, dtype=INT), attention, lengths
    gru._gru_steps_backward(empty(T, H), *given, gru._gru_steps(*given))


def attention() -> Tensor:
    layer = DiceLinear(empty(H), empty(2, H), empty(1, H), empty(1))
    unit = empty(B, D), empty(B, H), empty(T, D), empty(T, 2), empty(B + 1, dtype=INT), empty(H, 2 * D + 2)
    return target_attention_unchecked(*unit, [layer], True)[0]


def offsets() -> Tensor:
    return empty(B + 1, dtype=INT)


def segments() -> Tensor:
    return jagged.segment_ids_unchecked(offsets(), T)


CALLS: dict[str, Callable[[], Any]] = {
    "hard_negatives": negatives,
    "hard_negatives among others": lambda: negatives(others=2 * T),
    "hard_negatives at random": lambda: negatives(negatives="random", positives="random", different_category=False),
    "hard_negatives by radius": lambda: negatives(negative_km=empty(T), positive_km=empty(T)),
    "segment_sum": lambda: differentiate(jagged.segment_sum_unchecked(empty(T, D).detach(), offsets(), empty(T))),
    "weighted_segment_sum": lambda: differentiate(
        jagged.weighted_segment_sum_unchecked(empty(T, D), empty(T), offsets(), segments())
    ),
    "segment_dot": lambda: differentiate(jagged.segment_dot_unchecked(empty(T, D), empty(B, D), offsets())),
    "segment_linear_attention": lambda: differentiate(
        jagged.segment_linear_attention_unchecked(empty(T, D), empty(B, D), offsets())
    ),
    "segment_softmax": lambda: differentiate(jagged.segment_softmax_unchecked(empty(T, 4), offsets(), segments())),
    "segment_topk": lambda: jagged.segment_topk_unchecked(empty(T), offsets(), 5),
    "all_fit": lambda: jagged.all_fit(offsets(), 5),
    "segment_hamming": lambda: segment_hamming_unchecked(empty(B, D), empty(T, D), empty(D, 12), offsets()),
    "gru": lambda: recurrent(empty(0)),
    "gru with attention": lambda: recurrent(empty(T)),
    "residual_encode": lambda: encode("euclidean"),
    "residual_encode by cosine": lambda: encode(["cosine", "cosine", "euclidean"]),
    "residual_lookup": lambda: differentiate(residual_lookup(empty(T, 3, dtype=INT), empty(3, 7, D))),
    "target_attention": lambda: differentiate(attention()),
    "search_attention": lambda: differentiate(
        search_attention_unchecked(empty(B, 4, D + 26), empty(T, D), empty(T, 2), empty(B, 5, dtype=INT))
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits(name: str) -> None:
    with without_waits():
        CALLS[name]()


FILES = [path for path in Path(jagged.__file__).parent.glob("*_triton.py") if "\nVARIANTS = " in path.read_text()]


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES))
def test_no_launcher_waits(name: str) -> None:
    with without_waits():
        for case in importlib.import_module(f"placerank.kernels.{name}").VARIANTS.cases.values():
            case()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.tensor(1, device=x.device),
        lambda x: torch.as_tensor(1.0, device=x.device),
        lambda x: jagged.segment_topk(x, offsets(), 3).tolist(),
    ],
)
def test_waits_are_seen(call: Callable[[Tensor], Any]) -> None:
    with pytest.raises((Copied, RuntimeError, NotImplementedError)), without_waits():
        call(empty(T))


@pytest.mark.parametrize(("sorted_at_once", "waits"), [(1 << 22, 1), (50, 2)])
def test_pairwise_within_waits_for_the_size_of_its_result(sorted_at_once: int, waits: int) -> None:
    """And where more pairs are found than it sorts at once, for where rows end."""
    run, points = GridExecutor.__call__, unit_vectors(torch.rand(70), torch.rand(70))

    def unseen(*arguments: Any, **options: Any) -> None:
        with on_host():
            run(*arguments, **options)

    limits = _limits(points, points, 30.0)
    with (
        patch.object(pairwise_within_triton, "SORTED", sorted_at_once),
        patch.object(pairwise_within_triton, "curve_order", lambda x: curve_keys(x).argsort(stable=True)),  # CUDA's way
        patch.object(GridExecutor, "__call__", unseen),
        host_waits() as found,
    ):
        got = pairwise_within_triton.pairwise_within_triton(points, None, limits)
    assert len(found) == waits, str(found)
    for a, b in zip(got, pairwise_within_reference(points, None, 30.0), strict=True):
        assert torch.equal(a, b)
