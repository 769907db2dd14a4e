"""One valid call of each public function of the kernels, and the ways in which its arguments can be wrong.

    python tests/support/kernel_calls.py 2000 /tmp/last    # so many random wrong calls; each must be refused

Before a call is made, what is wrong with it is written to the file named last, so that what crashed is known.
"""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.kernels import (
    codebook,
    codebook_triton,
    dice,
    haversine,
    jagged,
    pairwise_within,
    search_attention,
    search_attention_triton,
    simhash,
    target_attention,
    target_attention_triton,
    tiles,
    tree_attention,
    trie_topk,
)
from placerank.kernels.gru import gru
from placerank.kernels.hard_negatives import hard_negatives
from placerank.kernels.places import Places
from placerank.kernels.row_adagrad import row_adagrad_

LENGTHS = [3, 0, 4]
HUGE = [2**31, 2**62, 2**63 - 1, -(2**63)]
NOT_A_TENSOR = [[1.0], "values", 3, {}]


class Bad(NamedTuple):
    """A way to be wrong.

    Attributes:
        label: what is wrong.
        value: what is given instead.
        seen: whether it can be seen without a look at numbers.
    """

    label: str
    value: Any
    seen: bool = True


class Argument(NamedTuple):
    """A valid value, and what draws a wrong one."""

    value: Any
    wrong: Callable[[st.DataObject], Bad]


class Call(NamedTuple):
    """A function and valid arguments of it, by name."""

    function: Callable[..., Any]
    arguments: dict[str, Argument]


def number(value: float, least: float | None, whole: bool = False) -> Argument:
    wrong = ["3", None, [1], float("nan")] + ([] if least is None else [least - 1, -1e30]) + ([1.5] if whole else [])
    return Argument(value, lambda data: Bad("number", data.draw(st.sampled_from(wrong))))


def choice(value: str) -> Argument:
    return Argument(value, lambda data: Bad("choice", data.draw(st.sampled_from(["nearest", None, 3, ""]))))


def resized(x: Tensor, axis: int, size: int) -> Tensor:
    """x with another size of an axis: the first ones of it, or all again and again."""
    return x.index_select(axis, torch.arange(size) % x.shape[axis])


def shape_or_type(
    x: Tensor, bound: tuple[int, ...], dtypes: list[torch.dtype], data: st.DataObject, alone: bool = False
) -> Bad:
    """Another number of dimensions, another size of an axis that others share, another dtype, no tensor; unless it
    comes alone another device."""
    kinds = ["none", "dims", "dtype", *["size"] * len(bound), *([] if alone else ["device"])]
    kind = data.draw(st.sampled_from(kinds))
    if kind == "none":
        return Bad("no tensor", data.draw(st.sampled_from(NOT_A_TENSOR)))
    if kind == "dims":
        return Bad("dimensions", data.draw(st.sampled_from([x[None], x[..., None], x.sum(), x[..., 0]])))
    if kind == "dtype":
        return Bad("dtype", x.to(data.draw(st.sampled_from(dtypes))))
    if kind == "device":
        return Bad("device", x.to("meta"), seen=False)
    axis = data.draw(st.sampled_from(bound))
    size = data.draw(
        st.sampled_from([n for n in (0, 1, x.shape[axis] - 1, x.shape[axis] + 1, 100) if n != x.shape[axis]])
    )
    return Bad(f"axis {axis} of {size}", resized(x, axis, size))


def floats(x: Tensor, *bound: int, same: bool = False, alone: bool = False) -> Argument:
    """A floating tensor; ``bound``: axes whose size others share; ``same``: others must have the same dtype."""
    other = [torch.float64 if x.dtype == torch.float32 else torch.float32] if same else []
    return Argument(
        x, lambda data: shape_or_type(x, bound, [torch.int64, torch.bool, torch.complex64, *other], data, alone)
    )


def broadcast(x: Tensor, *bound: int) -> Argument:
    """A floating tensor of any number of dimensions that has to broadcast with others along the bound axes."""

    def wrong(data: st.DataObject) -> Bad:
        bad = shape_or_type(x, bound, [torch.int64, torch.bool, torch.complex64], data, alone=not bound)
        return wrong(data) if bad.label == "dimensions" or bad.label.endswith("of 1") else bad

    return Argument(x, wrong)


def integers(x: Tensor, *bound: int, numbers: Callable[[list[int]], bool], near: int, alone: bool = False) -> Argument:
    """An integer tensor whose numbers are wrong where ``numbers`` says so; wrong ones lie about 0 and ``near``."""

    def wrong(data: st.DataObject) -> Bad:
        if data.draw(st.integers(0, 3)) == 0:
            return shape_or_type(x, bound, [torch.float32, torch.bool, torch.int16, torch.complex64], data, alone)
        one = st.one_of(st.integers(-2, near + 2), st.sampled_from(HUGE))
        flat = x.flatten().tolist()
        if data.draw(st.booleans()):  # one number is wrong, or all are anything
            flat[data.draw(st.integers(0, len(flat) - 1))] = data.draw(one)
        else:
            flat = data.draw(st.lists(one, min_size=len(flat), max_size=len(flat)))
        return Bad(f"numbers {flat}", torch.tensor(flat).view(x.shape), seen=False) if numbers(flat) else wrong(data)

    return Argument(x, wrong)


def calls(lengths: list[int] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Call]:
    """A valid call of each public function, by its name; small, of widths that other tests compile too."""
    lengths = LENGTHS if lengths is None else lengths
    g = torch.Generator().manual_seed(0)
    B, T = len(lengths), sum(lengths)
    ends = torch.tensor([0, *lengths]).cumsum(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    def bad_offsets(x: list[int]) -> bool:
        return x[0] != 0 or x[-1] != T or x != sorted(x)

    own = jagged.segment_ids(ends, T)
    offsets = integers(ends, 0, numbers=bad_offsets, near=T)
    segments = (
        integers(own, 0, numbers=lambda x: x != own.tolist(), near=B) if T else Argument(own, lambda _: Bad("-", 0))
    )
    values, vectors = floats(some(T, 16), 0, 1, same=True), floats(some(B, 16), 0, 1, same=True)
    narrow, weights = floats(some(T, 5), 0, same=True), floats(some(T), 0, same=True)

    totals = [T - 1, T + 1, 2**62, "3", None, T + 0.5]
    total = Argument(T, lambda data: Bad("total", data.draw(st.sampled_from(totals)), seen=False))
    k = 4
    chosen = jagged.segment_topk_reference(torch.zeros(T), ends, k)

    def bad_rows(x: list[int]) -> bool:
        found = [r for r in x if r >= 0]
        gaps = any(x[i] < 0 <= x[i + 1] for i in range(len(x) - 1) if (i + 1) % k)
        return min(x) < -1 or max(x) >= T or len(set(found)) < len(found) or gaps

    dim, heads, gaps_, knots, hidden = 6, 3, 2, 5, 3
    statistics = torch.rand(2, hidden, generator=g).to(dtype)
    layer = target_attention.DiceLinear(some(hidden), statistics, some(1, hidden), some(1))

    def bad_layers(data: st.DataObject) -> Bad:
        field = data.draw(st.sampled_from(layer._fields))
        x = getattr(layer, field)
        bad = shape_or_type(x, tuple(range(x.dim())), [torch.int64, torch.complex64], data)
        broken = [layer._replace(**{field: bad.value})]
        value = data.draw(st.sampled_from([broken, broken, broken, [], None, [tuple(layer)]]))
        return bad._replace(label=f"{field} {bad.label}", value=value)

    rows, columns = 9, 4
    lat, lon = 90 * torch.rand(8, generator=g).to(dtype), 90 * torch.rand(8, generator=g).to(dtype)
    points = haversine.unit_vectors(lat.double(), lon.double()).float()
    named = torch.arange(8), points, torch.randn(8, 3, generator=g), torch.arange(8) % 3, torch.arange(8) % 2
    places = Places(*named)

    def bad_places(data: st.DataObject) -> Bad:
        field = data.draw(st.sampled_from(Places._fields))
        wrong = [torch.complex64, torch.bool, torch.float64]
        x = getattr(places, field)
        bad = shape_or_type(x, (0, 1) if field == "positions" else (0,), wrong, data)
        broken = places._replace(**{field: bad.value})
        value = data.draw(st.sampled_from([broken, broken, broken, tuple(named), 3]))
        return bad._replace(label=f"{field} {bad.label}", value=value)

    books = torch.randn(2, 7, 16, generator=g).to(dtype)
    halves = dtype if dtype != torch.float64 else torch.float32
    x, half_books = some(11, 16).to(halves), books.to(halves)
    codes = torch.randint(-1, 7, (11, 2), generator=g)
    counts = torch.arange(4)
    centres, radii = tiles.tile_bounds(points, 3)
    km = Argument(
        10.0, lambda data: Bad("km", data.draw(st.sampled_from([-1.0, float("nan"), "1", None, torch.ones(5)])))
    )
    kids = [n for n in lengths if n]  # nodes with children
    upto, most_codes = torch.tensor([0, *kids]).cumsum(0), max([7, *kids])
    last, first = upto[1:].tolist(), upto[:-1].tolist()
    requests = [torch.tensor(x) for x in ([0, len(kids) + 1], [1, len(kids)], [0, 3, len(kids)], [0])]
    children = {
        "logits": floats(some(len(kids), most_codes), 0),
        "starts": integers(
            upto[:-1], 0, numbers=lambda x: any(not 0 <= a <= b for a, b in zip(x, last, strict=True)), near=T
        ),
        "stops": integers(
            upto[1:], 0, numbers=lambda x: any(not a <= b <= T for a, b in zip(first, x, strict=True)), near=T
        ),
        "codes": integers(
            torch.tensor([i for n in kids for i in range(n)], dtype=torch.int64),
            numbers=lambda x: min(x) < 0 or max(x) >= most_codes, near=most_codes,
        ),
    }  # fmt: skip
    encoded = {
        "x": floats(x, 1),
        "codebooks": floats(half_books, 2),
        "metric": choice("cosine"),
        "precision": choice("fp32"),
        "sizes": Argument(
            [7, 3], lambda data: Bad("sizes", data.draw(st.sampled_from([[7], [8, 1], [0, 1], [7, "a"], 3])))
        ),
    }
    return {
        "segment_ids": Call(
            jagged.segment_ids, {"offsets": integers(ends, 0, numbers=bad_offsets, near=T, alone=True), "total": total}
        ),
        "segment_sum": Call(jagged.segment_sum, {"values": narrow, "offsets": offsets, "weights": weights}),
        "weighted_segment_sum": Call(
            jagged.weighted_segment_sum,
            {"values": narrow, "weights": weights, "offsets": offsets, "segments": segments},
        ),
        "segment_dot": Call(jagged.segment_dot, {"values": values, "vectors": vectors, "offsets": offsets}),
        "segment_linear_attention": Call(
            jagged.segment_linear_attention, {"values": values, "vectors": vectors, "offsets": offsets}
        ),
        "segment_softmax": Call(
            jagged.segment_softmax, {"logits": floats(some(T, 3), 0), "offsets": offsets, "segments": segments}
        ),
        "segment_topk": Call(
            jagged.segment_topk, {"scores": floats(some(T), 0), "offsets": offsets, "k": number(3, 1, whole=True)}
        ),
        "all_fit": Call(
            jagged.all_fit,
            {
                "offsets": Argument(ends, lambda data: shape_or_type(ends, (), [torch.float32], data, alone=True)),
                "k": number(3, 1, True),
            },
        ),
        "target_attention": Call(
            target_attention.target_attention,
            {
                "query": floats(some(B, 5), 0, 1),
                "bias": floats(some(B, hidden), 0, 1),
                "keys": floats(some(T, 5), 0, 1),
                "gaps": floats(some(T, gaps_), 0, 1),
                "offsets": offsets,
                "weight": floats(some(hidden, 10 + gaps_), 0, 1),
                "layers": Argument([layer], bad_layers),
                "batch_statistics": Argument(False, lambda data: Bad("a string", "yes")),
                "eps": number(1e-8, 0),
            },
        ),
        "search_attention": Call(
            search_attention.search_attention,
            {
                "queries": floats(some(B, heads, dim + gaps_ * knots), 0),
                "keys": floats(some(T, dim), 0),
                "gaps": floats(some(T, gaps_), 0),
                "rows": integers(chosen, 0, numbers=bad_rows, near=T) if B else Argument(chosen, lambda _: Bad("-", 0)),
            },
        ),
        "trie_topk": Call(
            trie_topk.trie_topk,
            children
            | {
                "logits": floats(some(len(kids), most_codes), 0, same=True),
                "totals": floats(some(len(kids)), 0, same=True),
                "offsets": Argument(
                    torch.tensor([0, len(kids)]),
                    lambda data: Bad("numbers", data.draw(st.sampled_from(requests)), seen=False),
                ),
                "k": number(3, 1, whole=True),
            },
        ),
        "trie_logsumexp": Call(trie_topk.trie_logsumexp, children),
        "tree_attention": Call(
            tree_attention.tree_attention,
            {
                "queries": floats(some(B, 2, 8), 0, 1, 2, same=True),
                "keys": floats(some(T, 2, 8), 0, 1, 2, same=True),
                "values": floats(some(T, 2, 8), 0, 1, 2, same=True),
                "rows": integers(chosen, 0, 1, numbers=lambda x: min(x) < -1 or max(x) >= T, near=T),
                "bias": floats(some(2, k), 0, 1, same=True),
            },
        ),
        "memory_attention": Call(
            tree_attention.memory_attention,
            {
                "queries": floats(some(B, 2, 8), 1, 2, same=True),
                "keys": floats(some(T, 2, 8), 0, 1, 2, same=True),
                "values": floats(some(T, 2, 8), 0, 1, 2, same=True),
                "offsets": integers(
                    torch.arange(B + 1), 0, numbers=lambda x: x[0] != 0 or x[-1] != B or x != sorted(x), near=B
                ),
                "memory_offsets": offsets,
            },
        ),
        "hats": Call(search_attention.hats, {"gaps": broadcast(some(T, gaps_)), "knots": number(knots, 1, whole=True)}),
        "interpolate": Call(
            search_attention.interpolate, {"gaps": floats(some(T, gaps_), 1), "table": floats(some(gaps_, knots), 0)}
        ),
        "gru": Call(
            gru,
            {
                "x": floats(some(T, 15), 0, 1),
                "weight": floats(some(15, 5), 0, 1),
                "bias": floats(some(15), 0),
                "offsets": offsets,
                "attention": floats(some(T), 0),
            },
        ),
        "segment_hamming": Call(
            simhash.segment_hamming,
            {
                "query": floats(some(B, 7), 0, 1, same=True),
                "keys": floats(some(T, 7), 0, 1, same=True),
                "projections": floats(some(7, 12), 0, same=True),
                "offsets": offsets,
                "beyond": number(0, 0, whole=True),
            },
        ),
        "row_adagrad_": Call(
            row_adagrad_,
            {
                "weights": floats(some(rows, columns), 0, 1, same=True),
                "states": floats(some(rows).abs(), 0, same=True),
                "ids": integers(torch.arange(T) % rows, 0, numbers=lambda x: min(x) < 0 or max(x) >= rows, near=rows)
                if T
                else Argument(own, lambda _: Bad("-", 0)),
                "grad": floats(some(T, columns), 0, 1, same=True),
                "lr": number(0.1, 0),
                "eps": number(1e-8, 0),
            },
        ),
        "residual_encode": Call(codebook.residual_encode, encoded),
        "residual_quantize": Call(codebook.residual_quantize, encoded),
        "residual_lookup": Call(
            codebook.residual_lookup,
            {"codes": integers(codes, 1, numbers=lambda x: max(x) >= 7, near=7), "codebooks": floats(books, 0)},
        ),
        "soft_usage": Call(
            codebook.soft_usage,
            {"x": floats(some(11, 16), 1), "centres": floats(books[0], 1), "temperature": number(0.5, 1)},
        ),
        "hard_negatives": Call(
            hard_negatives,
            {
                "queries": Argument(places, bad_places),
                "candidates": Argument(places, bad_places),
                "k": number(2, 1, whole=True),
                "negative_km": km,
                "positive_km": km,
                "negatives": choice("hardest"),
                "positives": choice("random"),
                "seed": Argument(0, lambda data: Bad("seed", data.draw(st.sampled_from([2**63, 1.5, "0", None])))),
            },
        ),
        "pairwise_within": Call(
            pairwise_within.pairwise_within, {"queries": floats(points, 1), "candidates": floats(points, 1), "km": km}
        ),
        "within_mask": Call(
            pairwise_within.within_mask, {"queries": floats(points, 1), "candidates": floats(points, 1), "km": km}
        ),
        "curve_order": Call(tiles.curve_order, {"places": floats(points, 1, alone=True)}),
        "tile_bounds": Call(
            tiles.tile_bounds, {"places": floats(points, 1, alone=True), "tile": number(3, 1, whole=True)}
        ),
        "reachable_tiles": Call(
            tiles.reachable_tiles,
            {
                "centres_a": floats(centres, 0, 1),
                "radii_a": floats(radii, 0),
                "centres_b": floats(centres, 0, 1),
                "radii_b": floats(radii, 0),
                "chord": Argument(
                    0.1, lambda data: Bad("chord", data.draw(st.sampled_from(["a", None, torch.ones(2)])))
                ),
            },
        ),
        "chord_of_km": Call(
            tiles.chord_of_km,
            {"km": Argument(3.0, lambda data: Bad("km", data.draw(st.sampled_from(["3", None, [3]]))))},
        ),
        "dice_reference": Call(
            dice.dice_reference,
            {
                "s": floats(some(T, hidden), 1),
                "mean": floats(some(hidden), 0),
                "variance": floats(some(hidden).abs(), 0),
                "alpha": floats(some(hidden), 0),
                "eps": Argument(1e-8, lambda data: Bad("eps", data.draw(st.sampled_from(["0", None, [1]])))),
            },
        ),
        "pool_statistics": Call(
            dice.pool_statistics,
            {
                "counts": Argument(counts, lambda data: shape_or_type(counts, (0,), [torch.float32, torch.bool], data)),
                "means": floats(some(4, hidden), 0, 1),
                "squares": floats(some(4, hidden), 0, 1),
            },
        ),
        "haversine_km": Call(
            haversine.haversine_km,
            {n: broadcast(x, 0) for n, x in zip(("lat1", "lon1", "lat2", "lon2"), (lat, lon, lat, lon), strict=True)},
        ),
        "unit_vectors": Call(haversine.unit_vectors, {"lat": broadcast(lat, 0), "lon": broadcast(lon, 0)}),
        "unit_vectors_km": Call(haversine.unit_vectors_km, {"u": broadcast(points, 1), "v": broadcast(points, 1)}),
    }


NAMES = sorted(calls())
PATHS = ["loops", "steps", "triton", "shapes"]
"""float32 on the CPU; float64, which takes PyTorch's operations; Triton's interpreter; meta tensors."""
ON_TRITON = {
    # without what the CPU's loops alone are told, of keys that samples share
    target_attention: {"target_attention_cpu": lambda *x: target_attention_triton.target_attention_triton(*x[:-1])},
    search_attention: {"search_attention_cpu": lambda *x: search_attention_triton.search_attention_triton(*x[:4])},
    codebook.codebook_cpu: {"residual_encode_cpu": codebook_triton.residual_encode_triton},
}


def with_tensors(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """x with every tensor changed, also inside of tuples and lists."""
    if isinstance(x, tuple | list):
        parts = [with_tensors(change, y) for y in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return change(x) if isinstance(x, Tensor) else x


def fuzz(examples: int, told: Path) -> None:
    """Make so many wrong calls; AssertionError if one is answered, or refused by another error than it should be."""
    made = {path: calls(dtype=torch.float64 if path == "steps" else torch.float32) for path in PATHS}
    seen: dict[str, int] = {}

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data(), st.sampled_from(NAMES), st.sampled_from(PATHS))
    def wrong_call(data: st.DataObject, name: str, path: str) -> None:
        call = made[path][name]
        which = data.draw(st.sampled_from(sorted(call.arguments)))
        bad = call.arguments[which].wrong(data)
        if path == "shapes" and not bad.seen:
            path = "loops"
        arguments = {n: argument.value for n, argument in call.arguments.items()} | {which: bad.value}
        what = f"{name} ({path}): {which} with wrong {bad.label}"
        told.write_text(what)
        if path == "shapes":
            arguments = {n: with_tensors(lambda y: y.to("meta"), x) for n, x in arguments.items()}
        with ExitStack() as stack:
            for module, replaced in (ON_TRITON if path == "triton" else {}).items():
                stack.enter_context(patch.multiple(module, **replaced))
            try:
                answer = call.function(**arguments)
            except (ValueError, TypeError, IndexError) as error:
                assert str(error), what
            except Exception as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
            else:  # offsets alone say how many rows there are, and of shapes alone their numbers are not known
                assert path == "shapes" and bad.label.startswith("axis 0"), f"{what} was answered: {answer}"
        seen[name] = seen.get(name, 0) + 1

    wrong_call()
    print(f"{sum(seen.values())} wrong calls of {len(seen)} functions refused")


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), Path(sys.argv[2]))
