"""Preference alignment by train: what it learns, killed and resumed, on ranks, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from generators import small
from runs import metrics, train_and_die, train_here
from runs import small as small_tower

from placerank.data.batches.sequences import ALL, SequenceLoader
from placerank.data.manifest import read_manifest
from placerank.kernels.haversine import haversine_km
from placerank.rankers.dense import RankerConfig
from placerank.rankers.generative.config import OneRecConfig, PreferenceConfig, TigerConfig
from placerank.rankers.generative.decoding import Lists
from placerank.rankers.generative.preference import reward_of
from placerank.rankers.generative_ranker import expand, gather
from placerank.training.inference import load_ranker
from placerank.training.model import OptimizerConfig
from placerank.training.preferences import filled
from placerank.training.runtime import runtime
from placerank.training.train import TrainConfig, train

AnyRanks = Callable[..., list[Any]]
KM = 2.0


@pytest.fixture(scope="module")
def reward(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a ranker of candidates."""
    return train(small_tower(world.data, tmp_path_factory.mktemp("reward") / "run", epochs=3))


def aligned(world: SimpleNamespace, reward: Path, run: Path, **changes: Any) -> TrainConfig:
    preference = PreferenceConfig(ranker=reward, candidates=30, within_km=KM, weight=20.0)
    rates = OptimizerConfig(dense_lr=1e-3, table_lr=0.02)
    config = small(world, run, warm_start=world.run, preference=preference, optimizer=rates, epochs=1)
    return replace(config, **changes)


def test_places_that_are_liked_become_probable(world: SimpleNamespace, reward: Path, tmp_path: Path) -> None:
    run = train(aligned(world, reward, tmp_path / "run", epochs=2))
    found = metrics(run, "valid")
    assert found[0]["step"] == 0, "what it began with"
    assert found[-1]["reward"] > found[0]["reward"] + 0.005
    logged = [line["reward"] for line in metrics(run, "train")]
    assert np.mean(logged[-10:]) > np.mean(logged[:10])


def test_the_first_validation_is_a_loops(world: SimpleNamespace, reward: Path, tmp_path: Path, ranks: AnyRanks) -> None:
    """Of the model that it goes on from, on one rank and on two."""
    config = aligned(world, reward, tmp_path / "run")
    ranks(2, train_and_die, config, 0, killed=True)
    found = metrics(config.run, "valid")[0]
    rewards, hits, requests = [], 0, 0
    with runtime(0) as rt:
        ranker, judge = load_ranker(world.run, rt), load_ranker(reward, rt)
        places = ranker.inputs.read_places()
        lat, lon = (torch.from_numpy(places[n].to_numpy().astype(np.float64)) for n in ("lat", "lon"))
        listed = torch.from_numpy(ranker.model.module.dense.index.items).long()
        by = reward_of(judge.score(), read_manifest(world.data, "prepared")["history_length"])
        for batch in SequenceLoader(world.data, "valid", 16, history=ALL, together=1):
            log_p = ranker.model.module.score(expand(ranker.catalog, gather(ranker.catalog, batch)))
            for i in range(batch.valid):
                here = torch.full((len(listed),), float(batch.lat[i])), torch.full((len(listed),), float(batch.lon[i]))
                km = haversine_km(*here, lat[listed].float(), lon[listed].float())
                near = ((km <= KM) & log_p[i].isfinite()).nonzero().squeeze(1)
                top = listed[near[log_p[i][near].argsort(stable=True, descending=True)[:10]]]
                if not len(top):
                    continue
                offsets = torch.zeros(len(batch) + 1).long()
                offsets[i + 1 :] = len(top)
                rewards += by(batch, Lists(offsets, top, torch.zeros(len(top)))).sigmoid().tolist()
                hits += int(batch.target[i] in top)
                requests += 1
    assert requests > 50 and 0 < hits < requests
    assert found["reward"] == pytest.approx(np.mean(rewards), abs=1e-4)
    assert found["hit@10"] == pytest.approx(hits / requests, abs=1.5 / requests)  # a place at the edge


@pytest.mark.parametrize("how", ["policy", "dpo"])
def test_killed_and_resumed(world: SimpleNamespace, reward: Path, how: Any, tmp_path: Path, ranks: AnyRanks) -> None:
    """At the same number of ranks all is that of an undisturbed run; also where it is killed before its first step."""
    whole, broken = (aligned(world, reward, tmp_path / name) for name in ("whole", "broken"))
    for config in (whole, broken):
        config.preference.how = how
    count = 2 if how == "policy" else 1
    for last in (0, 7) if how == "policy" else (7,):
        ranks(count, train_and_die, replace(broken, resume=broken.run.exists()), last, killed=True)
    ranks(count, train_here, replace(broken, resume=True))
    ranks(count, train_here, whole)
    for split in ("train", "valid"):
        assert metrics(broken.run, split) == metrics(whole.run, split)
    assert [line["step"] for line in metrics(whole.run, "valid")][::2] == [0]


@pytest.mark.parametrize("kind", ["tiger", "onerec"])
def test_other_kinds(world: SimpleNamespace, reward: Path, kind: str, tmp_path: Path) -> None:
    """Also with all places within reach."""
    sizes = {"columns": 16, "heads": 2, "layers": 1, "hidden": 32}
    settings = {"tiger": TigerConfig(**sizes, head_columns=8, visits=4), "onerec": OneRecConfig(**sizes)}  # type: ignore[arg-type]
    ranker = RankerConfig(kind=kind, **{kind: settings[kind]})  # type: ignore[arg-type]
    first = train(small(world, tmp_path / "first", ranker=ranker, epochs=1))
    config = aligned(world, reward, tmp_path / "run", ranker=ranker, warm_start=first, batch_size=64)
    config.preference.within_km = math.inf
    found = metrics(train(config), "valid")
    assert len(found) == 2 and found[1]["reward"] > found[0]["reward"]


def test_filled_lists() -> None:
    whole, own = filled(Lists(torch.tensor([0, 2, 2, 5, 5]), torch.tensor([7, 8, 9, 10, 11]), torch.zeros(5)), 3)
    assert whole.offsets.tolist() == [0, 3, 6, 9, 12]
    assert whole.items.tolist() == [7, 8, 8, 1, 1, 1, 9, 10, 11, 1, 1, 1]
    assert whole.items[own].tolist() == [7, 8, 9, 10, 11]
    none, own = filled(Lists(torch.zeros(3).long(), torch.zeros(0).long(), torch.zeros(0)), 2)
    assert none.items.tolist() == [1, 1, 1, 1] and not own.any()


def test_what_cannot_be_aligned(world: SimpleNamespace, reward: Path, tmp_path: Path) -> None:
    config = aligned(world, reward, tmp_path / "run")
    preference = config.preference
    for wrong, message in (
        ({"warm_start": None}, "name its run with warm_start"),
        ({"pipelined": True}, "leave pipelined out"),
        ({"ranker": RankerConfig()}, "aligns generative rankers"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **wrong)
    train(small_tower(world.data, config.run, epochs=1))
    for changes, message in (
        ({"ranker": world.run}, "is a generative ranker"),
        ({"objective": "order"}, "predicts label"),
        ({"ranker": tmp_path / "nothing"}, "not found"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(replace(config, preference=replace(preference, **changes), overwrite=True))
    assert (config.run / "best.json").exists(), "it costs no run"
    with pytest.raises(ValueError, match="choose a larger reach"):
        train(replace(config, preference=replace(preference, within_km=1e-9), overwrite=True))
