"""docs/tour.ipynb runs from top to bottom in a clean folder, and what it shows is kept without what differs by run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import PLACES, TIMES, cleaned

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
RUNNER = ROOT / "tests" / "support" / "notebooks.py"
SECONDS = 280


def run(file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), "run", str(file)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)


@pytest.mark.timeout(SECONDS + 20)
def test_the_tour_runs(tmp_path: Path) -> None:
    """In a process of its own and within a running event loop, as in Jupyter."""
    found = run(TOUR, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.splitlines()[-1] == "True"  # the ranker from the hub's folder gives the same list
    assert "Model" in found.stdout and "best auc" in found.stdout


def test_a_cell_that_fails_is_told(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "code", "source": [text]} for text in ("x = 1\nx", "assert x == 2, 'so it was'", "print('no')")
    ]
    (tmp_path / "bad.ipynb").write_text(json.dumps({"cells": cells}))
    found = run(tmp_path / "bad.ipynb", tmp_path)
    assert found.returncode != 0 and "so it was" in found.stderr
    assert found.stdout.splitlines() == ["--- cell 0", "1", "--- cell 1"]


def test_outputs_are_kept_without_paths_and_times() -> None:
    text = TOUR.read_text()
    assert cleaned(text) == text, f"python {RUNNER.relative_to(ROOT)} clean {TOUR.relative_to(ROOT)}"
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), (
        "execute it again, from the top"
    )
    assert all(cell["outputs"] for cell in cells[1:])
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] == "execute_result"
            shown = "".join(output["data"]["text/plain"])
            assert not PLACES.search(json.dumps(output)) and not TIMES.search(shown)


def test_what_is_no_output_of_its_own_is_dropped() -> None:
    stream = {"output_type": "stream", "name": "stderr", "text": ["3 s"]}
    value = {"output_type": "execute_result", "data": {"text/plain": ["1"]}, "metadata": {}, "execution_count": 1}
    cell = {"cell_type": "code", "id": "x", "metadata": {"execution": {}}, "source": [], "outputs": [stream, value]}
    found = json.loads(cleaned(json.dumps({"cells": [cell], "metadata": {"language_info": {"version": "3.11.7"}}})))
    assert found["cells"][0] == {**cell, "id": "cell-00", "metadata": {}, "outputs": [value]}
    assert "3.11.7" not in json.dumps(found)
