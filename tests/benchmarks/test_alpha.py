"""What the benchmark of ReST's alpha compares, against loops; and that it measures what a training left."""

import math
from pathlib import Path

import pytest
import torch

from placerank.benchmarks import bench_alpha as bench
from placerank.data.manifest import write_json
from placerank.rankers.dense import RankerConfig
from placerank.rankers.plugins.rest import rest_preset
from placerank.training.run_files import CONFIG
from placerank.training.train import TrainConfig, train


def test_mean_of_others_is_the_loop() -> None:
    vectors, weight = torch.randn(9, 4), torch.tensor([1, 0, 3, 2, 0, 0, 5, 1, 1])
    group = torch.tensor([1, 1, 1, 0, 0, 2, 3, 3, 5])  # unknown twice, alone in 2 and 5, the other of 3 weighs 1
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    for w in (weight, torch.ones_like(weight)):
        found = bench.mean_of_others(vectors, group, w)
        for i in range(len(vectors)):
            others = [j for j in range(len(vectors)) if j != i and group[j] == group[i] > 0 and w[j] > 0]
            if not others:
                assert found[i].isnan().all()
            else:
                torch.testing.assert_close(found[i], torch.stack([unit[j] * w[j] for j in others]).sum(0))
    none = torch.zeros(0, dtype=torch.int64)
    assert bench.mean_of_others(torch.zeros(0, 4), none, none).shape == (0, 4)


def test_distance_by_hand() -> None:
    x = torch.tensor([[2.0, 0], [2.0, 0], [2.0, 0], [2.0, 0]])
    y = torch.tensor([[3.0, 0], [0, 1.0], [-1.0, 0], [math.nan, 0]])
    torch.testing.assert_close(bench.distance(x, y), torch.tensor([0, 0.5, 1, math.nan]), equal_nan=True)


def test_summary_is_of_seeds() -> None:
    same = {"dataset": "d", "training": "faint", "passes": 1, "measure": "alpha", "items": 4000}
    told = bench.summary([same | {"std": s, "spearman": r} for s, r in ((0.1, -0.2), (0.3, 0.1))])
    assert told.splitlines()[2:] == ["| d | faint | 1 | alpha | 2 | 4,000 | 0.200 ± 0.141 | -0.050 ± 0.212 |"]


def config(data: Path, run: Path, preset: str) -> TrainConfig:
    ranker = RankerConfig(tower="din", mlp=[8], rest=rest_preset(preset))
    return TrainConfig(data=data, run=run, ranker=ranker, batch_size=256, epochs=2, seed=3)


def test_lines_of_a_training(prepared: Path, tmp_path: Path) -> None:
    found = list(bench.lines("whole", train(config(prepared, tmp_path / "run", "rest"))))
    assert {line["passes"] for line in found} == {1, 2} and {line["seed"] for line in found} == {3}
    last = {line["measure"]: line for line in found if line["passes"] == 2}
    assert len(last) * 2 == len(found) and "others of the category, by positives" in last
    for line in found:
        assert 0 <= line["mean"] <= 1 and line["std"] > 0 and -1 <= line["spearman"] <= 1, line
    assert last["warm-up's output"]["mean"] < last["alpha"]["mean"]  # a vector is nearer to what it is a sum of


def test_a_run_without_alpha_is_refused(prepared: Path, tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG, config(prepared, tmp_path, "rest-1"))
    with pytest.raises(ValueError, match=r"has no alpha: train with rest\.enabled, rest\.align"):
        bench.distances(tmp_path, 1)
