"""What the public functions look at before a loop or a kernel reads memory: shapes and types, then numbers.

Shapes, types and devices are known without a look at the data, in microseconds. Numbers (where segments start and end,
which rows are named) cost a pass over the integers, and on CUDA a wait for the device. They are not looked at in
tensors of shapes alone (meta, FakeTensor), nor in an exported program, which holds PyTorch's own operations; in a
compiled program the look is an assertion that runs with it and raises RuntimeError.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Integral, Real

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What the functions take where they say "any floating dtype"."""

Shaped = Mapping[str, tuple[Tensor, str]]


def check_tensors(
    floats: Shaped,
    integers: Shaped | None = None,
    *,
    mixed: bool = False,
    integer_dtypes: tuple[torch.dtype, ...] = (torch.int64,),
) -> dict[str, int]:
    """Shapes, dtypes and devices that fit together.

    Args:
        floats: name to tensor and shape. A shape is sizes side by side: a letter is the same size wherever it stands,
            "B+1" one more, "3H" three times, and a number itself.
        integers: the same for integers.
        mixed: whether floating dtypes may differ.
        integer_dtypes: what integers may be.

    Returns:
        The sizes by letter.

    Raises:
        TypeError: something is no tensor.
        ValueError: a shape, dtype or device that does not fit; names it, what was expected and what it was beside.
    """
    sizes: dict[str, int] = {}
    first: Tensor | None = None
    for group, dtypes in ((floats, FLOATS), (integers or {}, integer_dtypes)):
        same: torch.dtype | None = None
        for name, (x, shape) in group.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}: got {type(x).__name__}, expected a tensor [{', '.join(shape.split())}]")
            terms = shape.split()
            if x.dim() != len(terms) or not all([_fits(*pair, sizes) for pair in zip(x.shape, terms, strict=True)]):
                known = [str(_size(term, sizes)) for term in terms]
                raise ValueError(
                    f"{name}: got {list(x.shape)}, expected [{', '.join(terms)}]"
                    + (f" = [{', '.join(known)}]" if known != terms else "")
                )
            if x.dtype not in dtypes or (same is not None and x.dtype != same and not mixed):
                expected = same if same is not None and not mixed else " or ".join(map(_plain, dtypes))
                raise ValueError(f"{name}: got {_plain(x.dtype)}, expected {_plain(expected)}; convert it first")
            if first is not None and x.device != first.device:
                raise ValueError(f"{name}: got {x.device}, expected {first.device} like the others; move one of them")
            same, first = same or x.dtype, x if first is None else first
    return sizes


def check_floating(**tensors: Tensor) -> None:
    """Floating tensors of one device whose shapes broadcast.

    Raises:
        TypeError, ValueError: something else.
    """
    shape: Sequence[int] = ()
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: got {type(x).__name__}, expected a tensor")
        if x.dtype not in FLOATS:
            raise ValueError(f"{name}: got {_plain(x.dtype)}, expected {' or '.join(map(_plain, FLOATS))}")
        first = next(iter(tensors.values()))
        if x.device != first.device:
            raise ValueError(f"{name}: got {x.device}, expected {first.device} like the others; move one of them")
        if torch.compiler.is_compiling():  # sizes may be symbols, which a comparison with 1 would fix
            continue
        if x.shape == shape:  # what is asked most; the look below takes longer than many a kernel
            continue
        try:
            shape = torch.broadcast_shapes(shape, x.shape) if len(shape) else x.shape
        except RuntimeError as error:
            raise ValueError(f"{name}: got {list(x.shape)}, which does not broadcast with {list(shape)}") from error


def _size(term: str, sizes: dict[str, int]) -> int | str:
    """A term as a number, or as it is where its letter has not been met."""
    factor = int(term[0]) if term[0].isdigit() else 1
    letter = term.removesuffix("+1").lstrip("0123456789")
    if term.isdigit() or letter not in sizes:
        return int(term) if term.isdigit() else term
    return factor * sizes[letter] + (1 if term.endswith("+1") else 0)


def _fits(size: int, term: str, sizes: dict[str, int]) -> bool:
    """Whether a size is what its term says; the first time that a letter is met it says the letter's size."""
    letter = term.removesuffix("+1").lstrip("0123456789")
    if letter and letter not in sizes:
        sizes[letter] = size - 1 if term.endswith("+1") else size // (int(term[0]) if term[0].isdigit() else 1)
    return bool(size == _size(term, sizes))


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def check_number(
    name: str, value: float, least: float, *, most: float | None = None, whole: bool = False, above: bool = False
) -> None:
    """A finite number, ``least`` (or with ``above`` more than that) to ``most``; ``whole``: an integer.

    Raises:
        TypeError: no number, or no whole one.
        ValueError: out of range.
    """
    kinds = (int, torch.SymInt, Integral) if whole else (int, float, Real)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name}: got {value!r}, expected a {'whole ' if whole else ''}number")
    if not value >= least or (above and value == least) or (most is not None and value > most):
        bounds = f"more than {least}" if above else f"at least {least}"
        raise ValueError(f"{name}: got {value}, expected {bounds}" + ("" if most is None else f", at most {most}"))
    if not whole and not isfinite(value):
        raise ValueError(f"{name}: got {value}, expected a finite number")


def _no_numbers(x: Tensor) -> bool:
    return x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_exporting()


def _refuse_where(bad: Tensor, message: str) -> bool:
    """Whether a bool tensor [] is true; False in a program that is being compiled, which gets an assertion instead."""
    if torch.compiler.is_compiling():
        torch._assert_async(~bad, message)
        return False
    return bool(bad)


def check_offsets(offsets: Tensor, rows: Tensor | int) -> None:
    """Offsets that cut rows 0 .. T into segments: int64 [B+1], first 0, last T, never decreasing.

    Args:
        offsets: of the segments.
        rows: T, or a tensor with that many rows.

    Raises:
        TypeError, ValueError: something else; says what and where.
    """
    check_tensors({}, {"offsets": (offsets, "B+1")})
    if isinstance(rows, Tensor):
        total = rows.shape[0] if rows.dim() else 0
    else:
        check_number("rows", rows, 0, whole=True)
        total = rows
    if offsets.shape[0] == 0:
        raise ValueError("offsets: got [0], expected [B+1]: the end of no segment at all is one number too, 0")
    if _no_numbers(offsets):
        return
    back = offsets[1:] < offsets[:-1]  # not a difference, which could overflow
    expected = "expected 0 first, the number of rows last, never decreasing"
    if _refuse_where((offsets[0] != 0) | (offsets[-1] != total) | back.any(), f"offsets: {expected}"):
        got = f"{int(offsets[0])} first, {int(offsets[-1])} last"
        if bool(back.any()):
            b = int(back.nonzero()[0])
            got += f", {int(offsets[b])} before {int(offsets[b + 1])} at {b}"
        raise ValueError(f"offsets: got {got}; {expected}: {total} rows")


def check_segments(segments: Tensor, offsets: Tensor, rows: Tensor) -> None:
    """Segments [T] that are those of offsets, which have been checked with the same rows.

    Raises:
        TypeError, ValueError: something else.
    """
    check_tensors({}, {"segments": (segments, "T"), "offsets": (offsets, "B+1")})
    if not isinstance(rows, Tensor) or rows.shape[:1] != segments.shape:
        got = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"segments: got {list(segments.shape)} for rows {got}, expected one a row")
    if _no_numbers(segments) or segments.shape[0] == 0:
        return
    batch = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    own = torch.repeat_interleave(batch, offsets.diff(), output_size=segments.shape[0])
    message = "segments: they are not those of offsets; segment_ids(offsets, T) makes them"
    if _refuse_where((segments != own).any(), message):
        raise ValueError(message)


def check_ids(name: str, ids: Tensor, total: int, least: int = 0) -> None:
    """Numbers of rows, ``least`` to ``total`` - 1.

    Raises:
        IndexError: another number.
        ValueError: no integers.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: got {_plain(ids.dtype)}, expected int64")
    if _no_numbers(ids) or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    message = f"{name}: expected rows {least} to {total - 1}"
    if _refuse_where((low < least) | (high >= total), message):
        raise IndexError(f"{message}, got {int(low)} to {int(high)}")


def check_starts(starts: Tensor, offsets: Tensor, rows: Tensor) -> None:
    """Where segments find their rows when some share them: int64 [B], all of segment b's rows from starts[b] on there.

    Segments with the same start lie side by side, and others' rows come after theirs.

    Raises:
        TypeError, ValueError: something else.
    """
    check_tensors({}, {"offsets": (offsets, "B+1"), "starts": (starts, "B")})
    if _no_numbers(starts) or not len(starts):
        return
    ends = starts + offsets.diff()
    total = rows.shape[0] if rows.dim() else 0
    message = f"starts: expected rows of 0 to {total - 1}"
    if _refuse_where(((starts < 0) | (ends > total)).any(), message):
        raise ValueError(message)
    before = ends.cummax(0).values[:-1]
    message = "starts: expected segments that share rows side by side, from the same first row on, in ascending order"
    if _refuse_where(((starts[1:] != starts[:-1]) & (starts[1:] < before)).any(), message):
        raise ValueError(message)


def check_chosen(rows: Tensor, total: int) -> None:
    """Rows [B, k] that were chosen among ``total``: each once in all, and -1 after the last of a sample.

    Raises:
        IndexError: a row that is not there.
        TypeError, ValueError: something else.
    """
    check_tensors({}, {"rows": (rows, "B k")})
    if _no_numbers(rows):
        return
    check_ids("rows", rows, total, -1)
    found = rows >= 0
    message = "rows: expected -1 only after a sample's last row"
    if _refuse_where((found[:, 1:] & ~found[:, :-1]).any(), message):
        raise ValueError(message)
    chosen = torch.zeros(total + 1, dtype=torch.bool, device=rows.device)
    chosen.index_fill_(0, torch.where(found, rows, total).flatten(), True)
    message = "rows: expected each row once in the whole batch"
    if _refuse_where(chosen[:total].sum() < found.sum(), message):
        raise ValueError(message)
