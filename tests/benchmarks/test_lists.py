"""The table of ranked lists on a few visits: every scorer, way and part, and what each was asked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from raw_tables import run, visits, write

from placerank.benchmarks import bench_lists as bench
from placerank.data.batches.sequences import SequenceLoader
from placerank.evaluation.floors import Floors
from placerank.evaluation.lists import chosen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(write(tmp_path_factory.mktemp("bench") / "raw", visits(rows=400, users=20)), reach_km=4.0)


def test_the_table(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that knows the answer is first everywhere; visits that were not chosen are not asked."""
    monkeypatch.setattr(bench, "BATCH", 7)
    targets = torch.cat([b.target for b in SequenceLoader(prepared, "test", 7)])
    wanted = torch.from_numpy(chosen(len(targets), 15))
    knows = np.zeros((15, 13), np.float32)
    knows[np.arange(15), targets[wanted].numpy()] = 1
    codes = torch.tensor([[-1, -1], *([i // 2, 0] for i in range(12))])
    found = bench.measure(prepared, wanted, 4.0, codes, {"knows": knows})
    assert list(found) == [(s, w) for s in (*Floors.NAMES, "knows") for w in ("all", "reach", "sampled", "codes")]
    lines = bench.lines_of("tiny", 15, 4.0, found)
    own = {(x["way"], x["part"]): x for x in lines if x["scorer"] == "knows"}
    assert {way for way, _ in own} == {"all", "reach", "sampled", "codes"}
    assert all(x["hit@1"] == x["mrr"] == x["hit@10_low"] == x["hit@10_high"] == 1 for x in own.values())
    assert own["all", "all"]["asked"] == 15 > own["reach", "all"]["asked"] > 0
    parts = [own["all", p]["asked"] for p in bench.SHOWN[1:] if ("all", p) in own]
    assert sum(parts) == 15
    assert all(x["hit@10_low"] <= x["hit@10"] <= x["hit@10_high"] for x in lines)
    text = bench.markdown(lines)
    assert text.count("| knows |") == 4 and "tiny, reach (" in text and "1.000 (1.000 to 1.000)" in text
