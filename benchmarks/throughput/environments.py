"""One virtual environment per peer, made from PyPI under a cache folder, with one version of torch for all."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How a peer is installed and which worker script runs it.

    Attributes:
        script: worker in `peers/`.
        package: requirement of the peer itself, pinned.
        needs: requirements installed before it, pinned where the peer is old.
        alone: install the peer without its dependencies (its metadata asks for what its DIN never imports).
    """

    script: str
    package: str
    needs: tuple[str, ...] = ()
    alone: bool = False


PEERS: dict[str, Peer] = {
    "fuxictr": Peer(script="fuxictr_din.py", package="fuxictr==2.3.10"),
    # it imports requests without asking for it
    "deepctr-torch": Peer(script="deepctr_torch_din.py", package="deepctr-torch==0.3.0", needs=("requests",)),
    "recbole": Peer(
        script="recbole_din.py",
        package="recbole==1.2.1",
        needs=(
            "numpy==1.26.4",  # it uses names that numpy 2 removed
            "pandas<2.2",
            "scipy<1.14",
            "scikit-learn<1.6",
            "colorlog==4.7.2",
            "colorama==0.4.4",
            "tqdm",
            "pyyaml",
            "tensorboard",
            "thop",
            "tabulate",
            "plotly",
            "texttable",
            "psutil",
        ),
        alone=True,  # ray<=2.6.3 is for its hyper-parameter search and has no build for recent Pythons
    ),
    "torch-rechub": Peer(script="torch_rechub_din.py", package="torch-rechub==0.9.0"),
}

LISTS: dict[str, Peer] = {
    "cornac": Peer(script="cornac_sasrec.py", package="cornac==3.0.1"),
    # its TIGER stands on transformers, which its metadata doesn't ask for
    "cornac-tiger": Peer(script="cornac_tiger.py", package="cornac==3.0.1", needs=("transformers==5.23.0",)),
}
"""Peers of ``bench_lists.py`` and ``bench_tiger.py``, whose scripts are in `../peers/`."""


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


def environment(name: str, cache: Path, peers: dict[str, Peer] = PEERS) -> Path:
    """Return the Python of the peer's environment, making the environment when it is missing or out of date.

    torch is installed first and held by a constraint, so that no peer can replace it.

    Raises:
        subprocess.CalledProcessError: pip could not install a requirement; its own output says which.
    """
    peer = peers[name]
    folder = cache / name
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join((TORCH, *peer.needs, peer.package)) + "\n"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"making the environment of {name} in {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    constraint = folder / "constraint.txt"
    constraint.write_text(TORCH + "\n")
    _pip(python, TORCH)
    if peer.needs:
        _pip(python, "--constraint", str(constraint), *peer.needs)
    _pip(python, "--constraint", str(constraint), *(("--no-deps",) if peer.alone else ()), peer.package)
    stamp.write_text(wanted)
    return python
