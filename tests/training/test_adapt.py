"""Adapting end to end: teacher, student, advisor; ended and taken up; damaged files and wrong settings; questions."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from placerank.cli.main import main
from placerank.data.batches.sequences import ALL, SequenceLoader
from placerank.rankers.adapter.advisor import Advisor
from placerank.rankers.adapter.config import AdapterConfig, LanguageConfig
from placerank.rankers.adapter.inputs import Places, Requests
from placerank.rankers.adapter.queries import INTENTS
from placerank.rankers.adapter.world import World, by_length, read_catalog
from placerank.training import adapt as adapt_module
from placerank.training.adapt import adapt, trained, world_of
from placerank.training.inference import read_config
from placerank.training.settings import AdaptConfig

SMALL = {"columns": 16, "layers": 1, "heads": 2, "hidden": 16}


def small(data: Path, run: Path, **changes: Any) -> AdaptConfig:
    settings: dict[str, Any] = {
        "teacher": LanguageConfig(**(SMALL | {"layers": 2})),
        "student": LanguageConfig(**SMALL),
        "adapter": AdapterConfig(columns=8, heads=2, history=6),
        "steps": 6,
        "batch_size": 8,
        "reasons": 4,
        "checkpoint_every": 2,
    }
    return AdaptConfig(data=data, run=run, **(settings | changes))


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Every step is logged, and little is looked at beside training."""
    with mock.patch.multiple(adapt_module, _LOGGED=1, _OF_LIFTS=64, _VALIDATED=20):
        yield


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt") / "run"
    adapt(small(prepared, folder))
    return folder


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_a_run_that_is_ended_goes_on_to_the_same_losses(prepared: Path, run: Path, tmp_path: Path) -> None:
    config, learn = small(prepared, tmp_path / "b"), adapt_module._Course._learn
    for name, ends in (("teacher", 3), ("student", 5)):

        def deadly(self: Any, asking: Any, name: str = name, ends: int = ends) -> Any:
            if self.name == name and self.step == ends:
                raise KeyboardInterrupt
            return learn(self, asking)

        with mock.patch.object(adapt_module._Course, "_learn", deadly), pytest.raises(KeyboardInterrupt):
            adapt(config)
        config.resume = True
        assert (config.run / f"{name}.pt").is_file() and not (config.run / "advisor").exists()
    adapt(config)
    for name in ("teacher", "student"):
        assert lines(config.run, name) == lines(run, name)
        steps = {s: [x["step"] for x in lines(run, name) if x["split"] == s] for s in ("train", "valid")}
        assert steps == {"train": [1, 2, 3, 4, 5, 6], "valid": [0, 2, 4, 6]}
        assert not (run / f"{name}.pt").exists()
    assert (
        all("kl" in x for x in lines(run, "student") if x["split"] == "train") and "kl" not in lines(run, "teacher")[1]
    )
    files = [(folder / "advisor" / "model.safetensors").read_bytes() for folder in (run, config.run)]
    assert files[0] == files[1]


def test_what_does_not_fit_is_told(prepared: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="has a run in it; choose another --run, --resume or --overwrite"):
        adapt(small(prepared, run))
    with pytest.raises(ValueError, match="resume: steps is 7, the run has 6"):
        adapt(small(prepared, run, steps=7, resume=True))
    with pytest.raises(
        ValueError, match=r"resume: student.columns is 24, the run has \d+; go on with the same settings"
    ):
        adapt(small(prepared, run, student=LanguageConfig(columns=24), resume=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds files that are no run of placerank adapt; choose another --run"):
        adapt(small(prepared, tmp_path / "mine", overwrite=True))
    settings = {"data": "d", "run": "r", "ranker": {"tower": "twin"}}  # of placerank train
    (tmp_path / "mine" / "config.json").write_text(json.dumps(settings))
    for how in ("overwrite", "resume"):
        with pytest.raises(FileExistsError, match="no run of placerank adapt"):
            adapt(small(prepared, tmp_path / "mine", **{how: True}))
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(FileNotFoundError, match="'prepared' folder"):
        adapt(small(tmp_path, tmp_path / "c"))
    with pytest.raises(FileNotFoundError, match=r"student: language\.model='.*' cannot be loaded"):
        nothing = LanguageConfig(model=str(tmp_path / "none"))
        adapt(small(prepared, tmp_path / "d", student=nothing, distillation_weight=0.0))
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["config.json"]
    with pytest.raises(
        FileNotFoundError, match=r"student: language\.model='.*other' cannot be loaded"
    ):  # and is tried again
        nothing = LanguageConfig(model=str(tmp_path / "other"))
        adapt(small(prepared, tmp_path / "d", student=nothing, distillation_weight=0.0))
    for bad, said in (
        ({"reasons": 9}, "reasons=9: expected at most batch_size=8"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: expected a positive"),
        ({"distillation_weight": -1.0}, "distillation_weight=-1.0: expected 0 or more"),
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"run": Path("s3://b/x")}, "expected a folder on this machine"),
    ):
        with pytest.raises(ValueError, match=said):
            small(prepared, **({"run": tmp_path / "e"} | bad))
    for settings, said in ((LanguageConfig, "multiple of twice"), (AdapterConfig, "multiple of")):
        with pytest.raises(ValueError, match=said):
            settings(columns=50, heads=4)


def test_a_loss_that_is_no_number_ends_the_run(prepared: Path, tmp_path: Path) -> None:
    def broken(self: Any, lesson: Any) -> Any:
        return dict.fromkeys(("place", "reason", "intent"), torch.tensor(torch.nan, requires_grad=True))

    config = small(prepared, tmp_path / "a", distillation_weight=0.0)
    with (
        mock.patch.object(adapt_module._Course, "_losses", broken),
        pytest.raises(FloatingPointError, match="student: the loss is nan at step 0"),
    ):
        adapt(config)


def test_batches_are_of_about_equal_lengths_and_have_each_visit_once() -> None:
    rng = np.random.default_rng(0)
    lengths = torch.from_numpy(rng.integers(0, 50, 1000))
    batches = by_length(lengths, 64, rng)
    assert sorted(torch.cat(batches).tolist()) == list(range(1000))
    spread = [int(lengths[b].max() - lengths[b].min()) for b in batches]
    assert max(spread) <= 8 and [len(b) for b in batches].count(64) == 15
    means = [float(lengths[b].double().mean()) for b in batches]
    assert means != sorted(means)


def test_requests_are_those_of_a_loop(prepared: Path) -> None:
    places = Places.of_catalog(read_catalog(prepared))
    batch = next(iter(SequenceLoader(prepared, "test", 64, history=ALL, together=1)))
    q = Requests.of_batch(batch, places, 5)
    short = 0
    for i in range(len(batch)):
        s = int(batch.stretch[i])
        start = int(batch.offsets[s])
        mine = range(start, start + int(batch.seen[i]))[-5:]
        short += len(mine) < 5
        assert q.item[i][q.seen[i]].tolist() == batch.item[list(mine)].tolist() and not q.item[i][~q.seen[i]].any()
        for m, j in enumerate(mine):
            assert q.seen[i, m]
            east = float(batch.utc_offset[j]) * 60
            east = 3600 * int(places.hours_east[batch.item[j]]) if east != east else east
            assert q.hour[i, m] == (int(batch.time[j]) + east) % 86_400 // 3600
            hours = (int(batch.target_time[i]) - int(batch.time[j])) / 3600
            assert q.gap[i, m] == min(int(2 * np.log1p(hours)), 19)
    assert short


def test_what_is_compared_is_the_users_own_near_and_any(prepared: Path) -> None:
    world = World(prepared, 6)
    asking = world.asking(next(iter(world.loader("train", 64, 0, shuffle=True))))
    candidates, log_q = world.others(asking, np.random.default_rng(0))
    allowed = log_q < torch.inf
    assert (candidates[:, 0] == asking.target).all() and (candidates[:, 1:][allowed] > 0).all()
    assert not (allowed & (candidates[:, 1:] == asking.target[:, None])).any() and allowed.double().mean() > 0.5
    for i, row in enumerate(candidates[:, 1:9].tolist()):
        own = {r for r, counts in zip(row, allowed[i, :8].tolist(), strict=True) if counts}
        assert own <= set(asking.q.item[i][asking.q.seen[i]].tolist())
    times, q = np.zeros((64, len(world.places))), np.full((64, len(world.places)), np.nan)
    for seed in range(400):
        rows, log_q = world.others(asking, np.random.default_rng(seed))
        for i, (row, drawn) in enumerate(zip(rows[:, 1:].tolist(), log_q.exp().tolist(), strict=True)):
            for place, often in zip(row, drawn, strict=True):
                if often < np.inf:
                    assert q[i, place] != q[i, place] or q[i, place] == often
                    times[i, place], q[i, place] = times[i, place] + 1, often
    known = q == q
    apart = (times[known] / 400 - q[known]) / np.sqrt(q[known] / 400)
    assert known.sum() > 1000 and abs(apart[q[known] > 0.1]).max() < 5 and (apart[q[known] > 0.1] ** 2).mean() < 1.3


def test_the_best_of_all_validations_is_kept(prepared: Path, tmp_path: Path) -> None:
    states: list[Any] = []

    def told(model: Any, world: Any) -> dict[str, float]:
        states.append({name: x.clone() for name, x in model.state_dict().items()})
        return {"recall@10": 0.0, "ndcg@10": [0.1, 0.3, 0.3, 0.2][len(states) - 1]}

    config = small(prepared, tmp_path, distillation_weight=0.0)
    world = world_of(prepared, config.adapter.history)
    with mock.patch.object(adapt_module, "validated", told):
        kept = trained(config, world, "student", None).state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in states[1].items())
    assert not all(torch.equal(x, kept[name]) for name, x in states[2].items())


def test_validation_is_of_visits_drawn_from_all_users(prepared: Path) -> None:
    world, asked, given = World(prepared, 6), list[Any](), list[torch.Tensor]()

    def scores(model: Any, asking: Any) -> torch.Tensor:
        asked.append(asking)
        found = torch.randint(0, 9, (len(asking.target), len(world.places)), generator=torch.Generator().manual_seed(1))
        given.extend(found[i, t].item() - row for i, (t, row) in enumerate(zip(asking.target, found, strict=True)))
        return found

    with mock.patch.object(adapt_module, "all_scores", scores):
        found = adapt_module.validated(mock.Mock(), world)
    above = [int((apart <= 0).sum()) - 1 for apart in given]  # as good as the visited one, or better
    assert len(above) == 20 and found["recall@10"] == np.mean([n < 10 for n in above])
    assert found["ndcg@10"] == pytest.approx(np.mean([(n < 10) / np.log2(n + 2) for n in above]))
    first = world.asking(next(iter(world.loader("valid", 20, 0, shuffle=False))))
    users = [len({tuple(v[:1]) for a in some for v in a.visited}) for some in (asked, [first])]
    assert users[0] > 2 * users[1]


@pytest.fixture(scope="module")
def advisor(run: Path) -> Advisor:
    return Advisor.load(run)


def test_an_advisor_lists_what_is_within_reach_and_says_what_is_true(prepared: Path, advisor: Advisor) -> None:
    items = pq.read_table(prepared / "catalog.parquet").slice(1).to_pylist()
    ids, here = [x["item_id"] for x in items], (items[0]["lat"], items[0]["lon"])
    history = [(ids[i], 1_700_000_000 + 60 * i) for i in (3, 5, 3, 8)] + [
        (ids[0], 1_800_000_000),
        (10**9, 1_600_000_000),
    ]
    now = 1_750_000_000
    found = advisor.recommend(history, here, now, within_km=2.0, k=5)
    assert 0 < len(found) <= 5 and max(found["km"].to_pylist()) <= 2
    scores = found["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    for row in found.to_pylist():
        assert advisor.checker.fault(row["reason"], row["item_id"], history, here, now) is None
    best = advisor.recommend(history, None, now, within_km=float("inf"), k=len(items))
    assert sorted(best["item_id"].to_pylist()) == sorted(ids)
    one = advisor.explain(best["item_id"][7].as_py(), history, None, now)
    row = best.slice(7, 1)
    assert one["score"][0].as_py() == pytest.approx(row["score"][0].as_py(), rel=1e-4)
    assert one["reason"] == row["reason"]
    assert len(advisor.recommend(history, (-80.0, 0.0), now)) == 0
    assert advisor.recommend([], here, now, within_km=2.0).num_rows


def test_a_question_is_routed(prepared: Path, advisor: Advisor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advisor.intent("Where to next?") in INTENTS
    item = pq.read_table(prepared / "catalog.parquet").slice(9, 1).to_pylist()[0]
    here, about = (item["lat"], item["lon"]), ([], (item["lat"], item["lon"]), 1_750_000_000)
    monkeypatch.setattr(Advisor, "intent", lambda self, text: "explain")
    named = advisor.answer(f"why {item['name'].upper()}?", *about)
    assert named.intent == "explain" and named.places["name"].to_pylist() == [item["name"]]
    assert named.places["item_id"][0].as_py() == item["item_id"] and len(named.places) == 1
    best = advisor.recommend([], here, 1_750_000_000, k=1)
    assert advisor.answer("why?", *about).places["item_id"] == best["item_id"]
    assert len(advisor.answer("why?", [], (-80.0, 0.0), 1_750_000_000).places) == 0
    monkeypatch.setattr(Advisor, "intent", lambda self, text: "recommend")
    assert len(advisor.answer("where?", *about, k=4).places) == 4


def test_what_reads_runs_of_train_tells_that_this_is_none(run: Path) -> None:
    with pytest.raises(ValueError, match=r"has a run of `placerank adapt`, expected one of `placerank train`"):
        read_config(run)


def test_what_an_advisor_cannot_be_asked_is_told(advisor: Advisor, run: Path, tmp_path: Path) -> None:
    now = 1_750_000_000
    for bad, said in (
        ({"within_km": 0.0}, "expected a reach above 0 km"),
        ({"k": 0}, "1 place or more"),
        ({"place": (91.0, 0.0)}, "expected latitude and longitude"),
        ({"place": None}, "no last visit to go by"),
        ({"history": [("x", now - 1)]}, "history: expected ids of type int"),
        ({"utc_offset": 5000.0}, "expected minutes east of UTC"),
        ({"time": now * 1000}, "time: got .* it may be milliseconds since 1970: divide them by 1,000"),
        ({"time": 5}, "time: got 5, expected whole seconds since 1970 UTC, of the years 1990 to 2099"),
        ({"history": [(1, 19_000)]}, "history: got 19000, .* it may be days since 1970"),
    ):
        with pytest.raises(ValueError, match=said):
            advisor.recommend(**({"history": [], "place": (0.0, 0.0), "time": now} | bad))
    with pytest.raises(ValueError, match="item: got 1000000000, expected the id of a place"):
        advisor.explain(10**9, [], None, now)
    shutil.copytree(run / "advisor", tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="content differs from what was written"):
        Advisor.load(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="'advisor' folder"):
        Advisor.load(tmp_path)


def test_a_reason_that_is_not_true_never_leaves(advisor: Advisor, prepared: Path) -> None:
    item = pq.read_table(prepared / "catalog.parquet").slice(1, 1).to_pylist()[0]
    lie = mock.patch("placerank.rankers.adapter.advisor.choose", lambda *args: ["You have been here 9 times."])
    with lie, pytest.raises(RuntimeError, match="a reason is not true, please report it"):
        advisor.explain(item["item_id"], [], None, 1_750_000_000)


def test_the_command_answers(run: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = pq.read_table(prepared / "catalog.parquet").slice(1, 1).to_pylist()[0]
    place = ["--place", str(item["lat"]), str(item["lon"]), "--time", "1750000000"]
    assert main(["advise", str(run), *place, "--k", "3"]) == 0
    assert "earlier visits" in capsys.readouterr().out
    assert main(["advise", str(run), *place, "--item", str(item["item_id"])]) == 0
    assert "explain" in capsys.readouterr().out
    assert main(["advise", str(run), *place, "--user", "1"]) == 2
    assert "a user's visits take both" in capsys.readouterr().err
