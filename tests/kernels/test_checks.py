"""What the public functions refuse, and that ugly arguments are none of it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_calls import NAMES, calls, with_tensors
from torch import Tensor

from placerank.kernels import jagged
from placerank.kernels.gru import gru
from placerank.kernels.row_adagrad import row_adagrad_
from placerank.kernels.search_attention import search_attention
from placerank.kernels.simhash import segment_hamming
from placerank.kernels.target_attention import target_attention

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("PLACERANK_FUZZ", "400"))


def test_wrong_arguments_are_refused_and_nothing_crashes(tmp_path: Path) -> None:
    """Random wrong calls of every function on every path, in a process whose death would be seen."""
    told = tmp_path / "last"
    command = [sys.executable, ROOT / "tests/support/kernel_calls.py", str(EXAMPLES), told]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, f"ended with {run.returncode} at {told.read_text()}\n{run.stdout}\n{run.stderr}"
    assert f"{EXAMPLES} wrong calls of {len(NAMES)} functions refused" in run.stdout


def answer(name: str, lengths: list[int] | None = None, strided: bool = False) -> Any:
    """What a valid call gives, with the arguments that it changes in place."""

    def own(x: Tensor) -> Tensor:
        return torch.stack([x, x], dim=-1)[..., 0] if strided else x.clone()

    call = calls(lengths)[name]
    arguments = {n: with_tensors(own, argument.value) for n, argument in call.arguments.items()}
    return call.function(**arguments), [x for x in arguments.values() if isinstance(x, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_strided_arguments_give_the_same(name: str) -> None:
    torch.testing.assert_close(answer(name, strided=True), answer(name))


@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 0, 2]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_next_to_nothing_is_valid(name: str, lengths: list[int]) -> None:
    def finite(x: Tensor) -> Tensor:
        assert not x.is_floating_point() or x.isfinite().all()
        return x

    with_tensors(finite, answer(name, lengths)[0])


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 3, 3, 8], "got 0 first, 8 last; expected 0 first, the number of rows last, never decreasing: 7 rows"),
        ([0, 3, 3, 6], "got 0 first, 6 last"),
        ([1, 3, 3, 7], "got 1 first, 7 last"),
        ([0, 5, 3, 7], "got 0 first, 7 last, 5 before 3 at 1"),
        ([0, -3, 3, 7], "got 0 first, 7 last, 0 before -3 at 0"),
        ([0, 2**63 - 1, -2, 7], "before -2 at 1"),  # whose differences overflow to positive ones
        (
            [0, 7],
            r"vectors: got \[3, 16\], expected \[B, D\] = \[1, 16\]|offsets: got \[2\], expected \[B\+1\] = \[4\]",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offsets_are_told(offsets: list[int], message: str, dtype: torch.dtype) -> None:
    values, vectors = torch.randn(7, 16, dtype=dtype), torch.randn(3, 16, dtype=dtype)
    for function in (jagged.segment_dot, jagged.segment_linear_attention):
        with pytest.raises(ValueError, match=message):
            function(values, vectors, torch.tensor(offsets))


def test_segments_of_other_offsets_are_told() -> None:
    offsets = torch.tensor([0, 2, 3])
    with pytest.raises(ValueError, match="segments: they are not those of offsets"):
        jagged.weighted_segment_sum(torch.ones(3, 2), torch.ones(3), offsets, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[0, 7]], IndexError, "rows: expected rows -1 to 6, got 0 to 7"),
        ([[0, -2]], IndexError, "got -2 to 0"),
        ([[-1, 3]], ValueError, "-1 only after a sample's last row"),
        ([[3, 3]], ValueError, "each row once in the whole batch"),
    ],
)
def test_chosen_rows_are_told(rows: list[list[int]], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search_attention(torch.ones(1, 3, 16), torch.ones(7, 6), torch.ones(7, 2), torch.tensor(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_an_id_that_names_no_row_changes_nothing(bad: int, dtype: torch.dtype) -> None:
    weights, states = torch.zeros(5, 4, dtype=dtype), torch.zeros(5, dtype=dtype)
    grad = torch.ones(2, 4, dtype=dtype)
    with pytest.raises(IndexError, match="ids: expected rows 0 to 4"):
        row_adagrad_(weights, states, torch.tensor([2, bad]), grad, 0.1, 1e-8)
    with pytest.raises(ValueError, match=r"grad: got \[1, 4\]|ids: got \[2\], expected \[T\] = \[1\]"):
        row_adagrad_(weights, states, torch.tensor([2, 3]), grad[:1], 0.1, 1e-8)
    assert not weights.any() and not states.any()


def test_a_table_without_rows_is_left_alone() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    row_adagrad_(torch.zeros(0, 4), torch.zeros(0), none, torch.zeros(0, 4), 0.1, 1e-8)


def test_parameters_as_projections() -> None:
    query, keys, projections = torch.randn(1, 7), torch.randn(3, 7), torch.randn(7, 12)
    offsets = torch.tensor([0, 3])
    want = segment_hamming(query, keys, projections, offsets)
    assert torch.equal(segment_hamming(query, keys, torch.nn.Parameter(projections), offsets), want)


def test_a_compiled_program_asserts_what_it_is_given() -> None:
    run = torch.compile(gru, fullgraph=True, backend="aot_eager")
    x, weight, bias = torch.randn(7, 15), torch.randn(15, 5), torch.randn(15)
    offsets = torch.tensor([0, 3, 3, 7])
    torch.testing.assert_close(run(x, weight, bias, offsets), gru(x, weight, bias, offsets))
    with pytest.raises(RuntimeError, match="offsets: expected 0 first, the number of rows last"):
        run(x, weight, bias, torch.tensor([0, 3, 3, 8]))


class Exported(torch.nn.Module):
    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        segments = jagged.segment_ids(offsets, values.shape[0])
        return jagged.weighted_segment_sum(values, values[:, 0], offsets, segments)


def test_checked_functions_are_exported_for_any_size() -> None:
    B, T = torch.export.Dim("B", min=0), torch.export.Dim("T", min=0)
    example = torch.randn(5, 2), torch.tensor([0, 2, 2, 5])
    program = torch.export.export(
        Exported(), example, dynamic_shapes=({0: T}, {0: B + 1}), prefer_deferred_runtime_asserts_over_guards=True
    ).module()
    for lengths in ([], [0], [1], [3, 0, 4]):
        inputs = torch.randn(sum(lengths), 2), torch.tensor([0, *lengths]).cumsum(0)
        torch.testing.assert_close(program(*inputs), Exported()(*inputs))


def test_what_is_made_here_calls_the_unchecked_entries() -> None:
    """On CUDA each check of numbers would wait for the device, in every step."""
    modules = [path for path in (ROOT / "src/placerank/kernels").glob("*.py")]
    checked = {n for path in modules for n in re.findall(r"^def (\w+?)_unchecked_?\(", path.read_text(), re.M)}
    assert {"segment_ids", "gru", "target_attention", "search_attention", "row_adagrad"} <= checked
    for folder in ("rankers", "embeddings", "training", "data"):
        for path in (ROOT / "src/placerank" / folder).rglob("*.py"):
            imported = re.findall(r"^from \.+kernels\.\w+ import (.+)$", path.read_text(), re.M)
            names = {name.strip().rstrip("_") for line in imported for name in line.split(",")}
            assert not names & checked, f"{path} calls {names & checked}: name the unchecked entries"


def test_target_attention_tells_gaps_that_are_too_few() -> None:
    arguments = {n: a.value for n, a in calls()["target_attention"].arguments.items()}
    with pytest.raises(ValueError, match=r"gaps: got \[6, 2\], expected \[T, G\] = \[7, 2\]"):
        target_attention(**arguments | {"gaps": arguments["gaps"][:6]})
