"""Settings stand in modules that import nothing large; names that they repeat are those of the code."""

from typing import get_args

import pytest

from placerank.benchmarks.kernels.run import bench_kernels
from placerank.benchmarks.kernels.settings import BenchKernelsConfig
from placerank.data.raw import settings as of_raw
from placerank.data.raw.columns import INTERACTIONS
from placerank.embeddings import settings as of_exports
from placerank.embeddings.export import WRITERS
from placerank.tokenization.alignment.gdpo import LADDER
from placerank.tokenization.codes import settings as of_codes
from placerank.tokenization.codes.tokenizers import HGIT, RQVAE, ResidualKMeans, RQVAENgram, UnifiedSID
from placerank.tokenization.settings import Rung


def test_names_are_those_of_the_code() -> None:
    assert tuple(column.name for column in INTERACTIONS) == of_raw.INTERACTIONS
    assert tuple(WRITERS) == of_exports.FORMATS
    assert ("none", *LADDER) == get_args(Rung)
    assert tuple(t.name for t in (HGIT, ResidualKMeans, RQVAE, UnifiedSID, RQVAENgram)) == of_codes.TOKENIZERS


def test_a_device_that_is_not_there_is_told_when_the_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device: got cuda, but torch sees no CUDA device"):
        bench_kernels(BenchKernelsConfig(device="cuda"))
