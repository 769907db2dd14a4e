"""Errors as one line, which error of which rank is told, and signals as exceptions."""

import json
import os
import signal
from pathlib import Path

import pytest

from placerank.cli import main as command
from placerank.cli.ending import ERRORS, RankError, Terminated, end, ended_by_signals, first_error, one_line
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


def test_the_first_cause_is_told_and_not_who_fell_over_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks leave their errors in the launcher's folder: a lost connection is told only where nothing else is."""
    monkeypatch.setenv(ERRORS, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert first_error(tmp_path) is None
    (tmp_path / "2.json").write_text('{"half')  # killed while it wrote
    monkeypatch.setenv("RANK", "0")
    assert end(LOST, with_traceback=False) == 1
    lost = first_error(tmp_path)
    assert lost is not None and lost.text.startswith("the connection to another rank is lost: [../third_party")
    assert "\n" not in lost.text and lost.follows
    monkeypatch.setenv("RANK", "1")
    assert end(KeyError("bug"), with_traceback=False) == 1, "a bug is left for the launcher too, with its traceback"
    told = first_error(tmp_path)
    assert told is not None and told.rank == 1 and told.text == "KeyError: 'bug'"
    earlier = RankError(False, told.time - 1, 0, "x")
    (tmp_path / "0.json").write_text(json.dumps(vars(earlier)))
    assert first_error(tmp_path) == earlier


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
