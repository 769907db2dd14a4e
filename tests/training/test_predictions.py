"""Scoring a split: what is kept, what is refused, and that the number of ranks changes nothing."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from made_up import write_split
from manifests import write_prepared

from placerank.data.batches.loader import SampleLoader
from placerank.training.predictions import Predictions, gather, predict, sampling_shift, validate
from placerank.training.runtime import runtime


def score(batch):
    """A stand-in for a model: any function of a sample, the same on every rank."""
    item, user = batch.item, batch.user[batch.request]
    return torch.sin(item.double() * 12.9898 + user.double() * 78.233) + batch.visits * 0.1


def scored_by_ranks(data, scratch):
    with runtime(0) as rt:
        loader = lambda: SampleLoader(data, "test", 700, rank=rt.rank, world_size=rt.world_size)  # noqa: E731
        mine = predict(score, loader())
        whole = gather(mine, scratch / "parts")
        values = validate(score, loader(), scratch / "parts")
        dist.barrier()
        assert not (scratch / "parts").exists()
        return len(mine), None if whole is None else whole.columns(), values


def assert_equal(got, want):
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_every_row_comes_back_scored(fabricated):
    want = fabricated.predictions
    got = predict(score, SampleLoader(fabricated.data, "test", 512))
    logit = np.sin(want.item_row * 12.9898 + want.user_row * 78.233) + want.visits * 0.1
    np.testing.assert_allclose(got.logit, logit, atol=1e-3)
    assert_equal(dataclasses.replace(got, logit=want.logit).columns(), want.columns())
    assert {n: c.dtype for n, c in got.columns().items()} == {n: c.dtype for n, c in want.columns().items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_many_ranks_equal_one(fabricated, ranks, tmp_path, world_size):
    ((n, whole, values),) = ranks(1, scored_by_ranks, fabricated.data, tmp_path)
    several = ranks(world_size, scored_by_ranks, fabricated.data, tmp_path)
    assert sum(mine for mine, _, _ in several) == n == len(fabricated.predictions)
    assert_equal(several[0][1], whole)
    assert all(columns is None for _, columns, _ in several[1:])
    assert all(v == values for _, _, v in several) and set(values) == {"auc", "gauc", "log_loss"}


def more_ranks_than_rows(data, scratch):
    with runtime(0) as rt:
        whole = gather(predict(score, SampleLoader(data, "few", 4, rank=rt.rank, world_size=rt.world_size)), scratch)
        return whole and whole.columns()


def test_a_rank_without_rows(fabricated, ranks, tmp_path):
    few = fabricated.predictions.take(np.arange(2))
    (tmp_path / "data").mkdir()
    groups = write_split(tmp_path / "data" / "few", few)
    write_prepared(tmp_path / "data", {"few": {"rows": 2, "row_groups": groups}})
    whole, *others = ranks(3, more_ranks_than_rows, tmp_path / "data", tmp_path / "parts")
    np.testing.assert_array_equal(whole["item_row"], few.sort().item_row)
    assert "probability" in whole and others == [None, None]


def test_padding_is_dropped_and_scored(fabricated):
    batch = next(iter(SampleLoader(fabricated.data, "test", 10)))
    batch.valid = 7
    seen = []
    got = predict(lambda b: seen.append(len(b)) or score(b), [batch])
    assert len(got) == 7 and seen == [10]


def test_bad_scores_are_told(fabricated):
    batch = next(iter(SampleLoader(fabricated.data, "test", 10)))
    with pytest.raises(ValueError, match="10 of 10 logits in a batch are NaN or infinite; the model diverged"):
        predict(lambda b: score(b) * math.nan, [batch])
    with pytest.raises(ValueError, match=r"returned shape \(10, 1\) for 10 rows, expected one logit a row"):
        predict(lambda b: score(b)[:, None], [batch])
    batch.valid = 3
    assert len(predict(lambda b: score(b).masked_fill(torch.arange(10) >= 3, math.nan), [batch])) == 3


def test_order_does_not_depend_on_the_order_of_arrival(fabricated):
    p = fabricated.predictions
    shuffled = p.take(np.random.default_rng(1).permutation(len(p)))
    assert_equal(shuffled.sort().columns(), p.sort().columns())
    assert (np.diff(p.sort().request) >= 0).all()


def test_file_and_back(fabricated, tmp_path: Path):
    p = fabricated.predictions
    p.write(tmp_path / "a.parquet")
    assert_equal(Predictions.read(tmp_path / "a.parquet").columns(), p.columns())
    without = dataclasses.replace(p, probability=None)
    without.write(tmp_path / "b.parquet")
    assert Predictions.read(tmp_path / "b.parquet").probability is None


def test_columns_of_different_length_are_told(fabricated):
    with pytest.raises(ValueError, match=r"columns differ in length: .*expected one row per candidate"):
        dataclasses.replace(fabricated.predictions, time=np.zeros(3, np.int64))


def test_predicted_is_the_sigmoid(fabricated):
    p = dataclasses.replace(fabricated.predictions.take(np.arange(4)), logit=np.float32([-90, 0, 20, 90]))
    np.testing.assert_allclose(p.predicted(), [np.exp(-90.0), 0.5, 1 / (1 + np.exp(-20.0)), 1.0], rtol=1e-12)


@pytest.mark.parametrize(("source", "shift"), [("check-ins", math.log(4 / 49)), ("impressions", 0.0)])
def test_drawn_negatives_shift_the_logits(source, shift):
    splits = {"train": {"rows": 500, "positives": 100}, "test": {"rows": 5000, "positives": 100}}
    manifest = {"splits": splits, "source": source}
    assert sampling_shift(manifest, "test") == pytest.approx(shift)
    assert sampling_shift(manifest, "train") == 0
