"""Errors as one line, which error of which rank is told, and signals as exceptions."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from placerank.cli import main as command
from placerank.cli.ending import ERRORS, LAUNCHER, RankError, Terminated, end, ended_by_signals, one_line, rank_errors
from placerank.cli.launch import _tell
from placerank.cli.settings import SettingsError

LOST = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1\nat")
FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: 9 bytes\nstack")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("lat: got 91"), "lat: got 91"),
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (MemoryError(), "not enough memory: nothing is left; smaller tables"),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory: Unable to allocate 9 GiB; smaller tables"),
        (
            FULL,
            "not enough memory: [enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory: 9",
        ),
        (OverflowError("too large for C long"), "a number is too large to compute with: too large for C long"),
        (KeyboardInterrupt(), "interrupted"),
        (Terminated(), "terminated"),
        (KeyError("bug"), None),
        (RuntimeError("bug"), None),
    ],
)
def test_what_a_person_reads(error: BaseException, line: str | None) -> None:
    said = one_line(error)
    assert said is None if line is None else said is not None and said.startswith(line) and "\n" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), 1), (SettingsError("x"), 2), (KeyboardInterrupt(), 130), (Terminated(), 143)],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ERRORS, raising=False)
    assert end(error, with_traceback=False) == code


def test_ranks_leave_their_errors_to_the_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ERRORS, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert rank_errors(tmp_path) == {}
    (tmp_path / "2.json").write_text('{"half')  # killed while it wrote
    monkeypatch.setenv("RANK", "0")
    assert end(LOST, with_traceback=False) == 1
    monkeypatch.setenv("RANK", "1")
    assert end(KeyError("bug"), with_traceback=False) == 1, "a bug is left too, with its traceback"
    found = rank_errors(tmp_path)
    assert found.keys() == {0, 1} and found[0].follows and not found[1].follows
    assert found[0].text.startswith("the connection to another rank is lost: [../third_party")
    assert "\n" not in found[0].text and found[1].text == "KeyError: 'bug'"


@pytest.mark.parametrize(
    ("codes", "said", "line", "code"),
    [
        ({0: 1, 1: 1}, {0: (5, True), 1: (9, False)}, "rank 1: said by 1", 1),
        ({0: 1, 1: 2}, {0: (9, False), 1: (5, False)}, "rank 1: said by 1", 2),
        ({1: -9, 0: 143}, {0: (5, True)}, "rank 1 was killed by SIGKILL (most often by the system, out of memory)", 1),
        ({1: -11, 0: 143}, {}, "rank 1 was killed by SIGSEGV", 1),
        ({0: 1, 1: 1}, {0: (5, True), 1: (6, True)}, "rank 0: said by 0", 1),  # the network itself
        ({0: 2, 1: 143}, {1: (5, True)}, None, 2),  # wrong flags: rank 0 has printed its usage
    ],
)
def test_the_first_cause_is_told_and_not_who_fell_over_it(
    codes: dict[int, int],
    said: dict[int, tuple[float, bool]],
    line: str | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for rank, (time, follows) in said.items():
        (tmp_path / f"{rank}.json").write_text(json.dumps(vars(RankError(f"said by {rank}", time, follows))))
    failures = {r: SimpleNamespace(local_rank=r, exitcode=c, timestamp=7) for r, c in codes.items()}
    assert _tell(failures, tmp_path) == code  # type: ignore[arg-type]
    assert capsys.readouterr().err == ("" if line is None else f"placerank: error: {line}\n")


def test_a_lost_connection_is_no_excuse_for_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ERRORS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        end(LOST, with_traceback=False)


def test_signals_are_exceptions_within_the_block_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_ends_with_the_code_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Module:
        @staticmethod
        def main(argv: list[str]) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
            return 0

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(command.importlib, "import_module", lambda *_: Module)
    assert command.main(["simulate"]) == 143
    assert capsys.readouterr().err == "placerank: error: terminated\n"


def test_a_rank_whose_launcher_is_gone_already_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks to be told of the launcher's death, and is not told of one that was before."""
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    with ended_by_signals():
        pass
    monkeypatch.setenv(LAUNCHER, "1" if os.getppid() != 1 else "2")
    with pytest.raises(SystemExit), ended_by_signals():
        pass
