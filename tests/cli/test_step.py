"""A step as a subcommand: printed settings, ranks, exit codes and errors in one line."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from placerank.cli import main as command
from placerank.cli.launch import threads_per_rank
from placerank.cli.step import run_step, run_step_on_ranks


@dataclass(kw_only=True)
class Config:
    """Make something."""

    out: Path
    rows: int = 3


def make(config: Config) -> Path:
    config.out.write_text(str(config.rows))
    return config.out


def test_runs_the_step_and_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    assert run_step("make", Config, make, ["--out", str(out), "--rows", "4"]) == 0
    assert out.read_text() == "4"
    assert f"placerank make: {out}, " in capsys.readouterr().err


def test_print_config_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    assert run_step_on_ranks("make", Config, make, ["--out", str(out), "--print-config", "--nproc", "2"]) == 0
    assert capsys.readouterr().out == f'out = "{out}"\nrows = 3\n'
    assert not out.exists()


def test_nproc_starts_torchrun_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[list[str], int]] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("placerank.cli.step.launch", lambda argv, nproc: started.append((argv, nproc)) or 7)
    argv = ["--out", str(tmp_path / "x"), "--nproc", "2"]
    assert run_step_on_ranks("make", Config, make, argv) == 7
    assert started == [(["make", *argv], 2)]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert run_step_on_ranks("make", Config, make, argv) == 0
    assert (tmp_path / "x").exists() and len(started) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="nproc: got 2 under a torchrun that started 4 ranks here"):
        run_step_on_ranks("make", Config, make, argv)


def test_threads_per_rank() -> None:
    assert [threads_per_rank(cores, 2) for cores in (1, 2, 16, 17)] == [1, 1, 8, 8]


def fake(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make ``placerank simulate`` fail with ``error``."""

    class Module:
        @staticmethod
        def main(argv: list[str]) -> int:
            raise error

    monkeypatch.setattr(command.importlib, "import_module", lambda *_: Module)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("lat: got 91"), "lat: got 91"),
        (FileNotFoundError(2, "No such file or directory", "x"), "[Errno 2] No such file or directory: 'x'"),
        (
            ImportError("No module named 'torchrec'"),
            "No module named 'torchrec' (placerank doctor tells what is missing)",
        ),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    fake(monkeypatch, error)
    assert command.main(["simulate"]) == 1
    assert capsys.readouterr().err == f"placerank: error: {line}\n"
    with pytest.raises(type(error)):
        command.main(["simulate", "--traceback"])


def test_error_names_the_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    fake(monkeypatch, ValueError("x"))
    command.main(["simulate"])
    assert capsys.readouterr().err == "placerank: error: rank 3: x\n"


@pytest.mark.parametrize("bug", [RuntimeError("a bug"), ImportError("no such module", name="placerank.dta")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    fake(monkeypatch, bug)
    with pytest.raises(type(bug)):
        command.main(["simulate"])


def test_unknown_command_names_the_near_match(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trian"]) == 2
    assert "no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert command.main([]) == 2


def test_help_lists_every_command_and_does_not_load_torch() -> None:
    code = "import sys; from placerank.cli.main import main; main(['--help']); assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    folder = Path(command.__file__).parent
    for name in command.COMMANDS:
        assert f"  {name} " in run.stdout
        assert (folder / f"{name}.py").is_file()


REFUSED_FLAG = """
import sys
from placerank.cli.launch import launch
sys.exit(launch(["doctor", "--run", "x"], 2))
"""


def test_launch_returns_the_code_of_the_rank_that_failed() -> None:
    """doctor refuses the flag with code 2 on each rank; torchrun neither takes it for its own nor adds its summary."""
    run = subprocess.run([sys.executable, "-P", "-c", REFUSED_FLAG], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "placerank doctor: error: unrecognized arguments: --run x" in run.stderr
    assert "Traceback" not in run.stderr and "ChildFailedError" not in run.stderr
