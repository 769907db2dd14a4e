"""The table of ranked lists on a few visits: every scorer, way and part, and what each was asked."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from raw_tables import run, visits, write

from placerank.benchmarks import bench_lists as bench
from placerank.data.batches.batch import SampleBatch
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
    monkeypatch.setattr(bench, "AGAIN", 3)
    unlike = -knows  # all others before it, the lower row first
    again = {"ordered": ("knows", "knows"), "of others": ("knows", "unlike"), "turned": ("unlike", "knows")}
    found = bench.measure(prepared, wanted, 4.0, codes, {"knows": knows, "unlike": unlike}, again)
    ways = ("all", "reach", "sampled", "codes")
    scorers = [(s, w) for s in (*Floors.NAMES, "knows", "unlike") for w in ways]
    assert list(found) == scorers + [(s, w) for s in again for w in ways[:2]]
    hits = {s: found[s, "all"].metrics.result()["all"]["hit@50"] for s in again}
    assert hits == {"ordered": 1.0, "of others": 0.0, "turned": 1.0}
    first = {s: found[s, "all"].metrics.result()["all"]["hit@1"] for s in again}
    assert first == {"ordered": 1.0, "of others": 0.0, "turned": 0.0}
    lines = bench.lines_of("tiny", 15, 4.0, found)
    own = {(x["way"], x["part"]): x for x in lines if x["scorer"] == "knows"}
    assert {way for way, _ in own} == {"all", "reach", "sampled", "codes"}
    assert all(x["hit@1"] == x["mrr"] == x["hit@10_low"] == x["hit@10_high"] == 1 for x in own.values())
    assert own["all", "all"]["asked"] == 15 > own["reach", "all"]["asked"] > 0
    parts = [own["all", p]["asked"] for p in bench.SHOWN[1:] if ("all", p) in own]
    assert sum(parts) == 15
    assert all(x["hit@10_low"] <= x["hit@10"] <= x["hit@10_high"] for x in lines)
    text = bench.markdown([x for x in lines if x["scorer"] not in again])
    assert text.count("| knows |") == 4 and "tiny, reach (" in text and "1.000 (1.000 to 1.000)" in text


def test_the_best_are_ordered_again() -> None:
    found = torch.tensor([[0.0, 3.0, 2.0, -torch.inf], [5.0, -torch.inf, -torch.inf, -torch.inf]])
    scores = torch.tensor([[9.0, 1.0, 2.0, 8.0]] * 2)
    inf = torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "AGAIN", 2)
        assert bench.of_best(scores, found).tolist() == [[-inf, 1.0, 2.0, -inf], [9.0, -inf, -inf, -inf]]
        patch.setattr(bench, "AGAIN", 50)
        assert bench.of_best(scores, found).tolist() == [[9.0, 1.0, 2.0, -inf], [9.0, -inf, -inf, -inf]]


def test_twin_scores_all_items_of_the_wanted_visits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ranker is asked: each item once, with the visits of it before; row 0 is none; kept, not asked again."""
    prepared_ = run(write(tmp_path / "raw", visits(rows=200, users=9)), reach_km=4.0, history_length=5)
    loader = SequenceLoader(prepared_, "test", 7, history=bench.ALL, together=1)
    wanted = torch.from_numpy(chosen(loader.rows, 9))
    asked = []

    def score(sample: SampleBatch) -> torch.Tensor:
        asked.append(int(sample.offsets.diff().max()))
        return sample.item * 100.0 + sample.visits

    place = SimpleNamespace(prepared=lambda: prepared_, tokens=lambda *_, **__: tmp_path)
    monkeypatch.setattr(bench, "twin", lambda *_: tmp_path)
    monkeypatch.setattr(bench, "load_ranker", lambda *_: SimpleNamespace(score=lambda: score))
    monkeypatch.setattr(bench, "TWIN_BATCH", 7)
    found = bench.twin_scores(place, wanted, tmp_path, 0)  # type: ignore[arg-type]
    want = []
    for batch in loader:
        for t in range(len(batch)):
            seen = batch.item[batch.offsets[batch.stretch[t]] :][: batch.seen[t]].bincount(minlength=13)
            want.append([-np.inf, *(100.0 * i + int(seen[i]) for i in range(1, 13))])
    assert found.tolist() == [row for row, here in zip(want, wanted.tolist(), strict=True) if here]
    assert max(asked) == 5
    calls = len(asked)
    assert np.array_equal(bench.twin_scores(place, wanted, tmp_path, 0), found) and len(asked) == calls  # type: ignore[arg-type]
