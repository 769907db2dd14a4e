"""What tests of training share."""

import hashlib
import shutil
from pathlib import Path

import pytest
from torch import Tensor

from placerank.data.batches.features import Features
from placerank.rankers.dense import Scorer
from placerank.rankers.exported import export_scorer
from placerank.training import export as export_module


def _tensor(x: Tensor) -> bytes:
    return bytes(x.detach().contiguous().numpy().tobytes())


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(autouse=True)
def traced_once(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scorer is traced once a worker: a run is exported in every format, and tracing is 5 to 15 s of each."""

    def export(scorer: Scorer, features: Features, file: Path) -> None:
        found = hashlib.sha256(repr((scorer, vars(scorer), features)).encode())
        for name, value in scorer.state_dict().items():
            found.update(name.encode() + _tensor(value))
        kept = programs / found.hexdigest()
        if not kept.exists():
            export_scorer(scorer, features, kept)
        scorer.eval()
        shutil.copyfile(kept, file)

    monkeypatch.setattr(export_module, "export_scorer", export)
