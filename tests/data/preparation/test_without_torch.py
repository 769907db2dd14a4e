"""``prepare`` does not wait for torch, nor for compiled loops."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from raw_tables import impressions, visits, write

CODE = """
import sys
from placerank.cli.main import main
for name in sys.argv[1:]:
    assert main(["prepare", "--input", name, "--out", name + "-out", "--nproc", "2"]) == 0
assert not {"torch", "numba", "triton"} & sys.modules.keys()
"""


def test_prepare_loads_no_torch(tmp_path: Path) -> None:
    own = impressions(users=30) | {"fee": np.linspace(0, 1, 400)}
    raw = [str(write(tmp_path / name, source)) for name, source in (("shown", own), ("visited", visits(users=30)))]
    run = subprocess.run([sys.executable, "-P", "-c", CODE, *raw], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
