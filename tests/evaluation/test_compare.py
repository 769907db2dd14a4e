"""compare: draws of requests against rows repeated by hand, groups, pairs by seed, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from placerank.cli.main import main
from placerank.data.manifest import write_json, write_manifest
from placerank.evaluation.breakdown import ItemFacts, read_slicings, slice_metrics, slicings, write_slicings
from placerank.evaluation.compare import compare, measure_groups
from placerank.evaluation.compare_measures import METRICS, draws, measure_draws
from placerank.evaluation.compare_runs import check_same_rows, group, read_evaluated
from placerank.evaluation.paired import paired_t
from placerank.evaluation.settings import CompareConfig, EvaluateConfig
from placerank.training.metrics import summarize
from placerank.training.predictions import Predictions


@pytest.fixture(scope="module")
def items(fabricated):
    return ItemFacts.load(fabricated.data)


@pytest.fixture(scope="module")
def some(fabricated) -> Predictions:
    """300 requests, with ties."""
    p = fabricated.predictions
    p = p.take(np.flatnonzero(p.request < 300))
    return dataclasses.replace(p, logit=np.round(p.logit, 1))


def write_run(folder: Path, p: Predictions, items: ItemFacts, *, split: str = "test", metrics=None, **settings) -> Path:
    """A run folder with as much of an evaluation as compare reads."""
    out = folder / "evaluation"
    out.mkdir(parents=True)
    p.write(out / "predictions.parquet")
    write_slicings(slicings(p, items), out / "slices.parquet")
    write_json(out / "metrics.json", {"split": split, "step": 7} | (metrics or {}))
    config = {"seed": 0, "data": "d", "run": str(folder), "epochs": 1, "ranker": {"tower": "din", "mlp": [8]}}
    for name, value in settings.items():
        (config["ranker"] if name == "tower" else config)[name] = value
    trained = {"settings": config, "data": "f" * 64, "semantic_ids": None}
    write_manifest(out, "evaluation", EvaluateConfig(run=folder, split=split), {"prepared": "e" * 64}, trained=trained)
    return folder


def worse(p: Predictions, noise: float, seed: int) -> Predictions:
    """The same rows, scored with more noise."""
    more = np.random.default_rng(seed).normal(0, noise, len(p)).astype(np.float32)
    return dataclasses.replace(p, logit=p.logit + more)


@pytest.fixture(scope="module")
def runs(some, items, tmp_path_factory):
    """Three seeds of two towers; the second's scores are noisier."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / f"{tower}-{seed}", worse(some, noise, 10 * seed), items, seed=seed, tower=tower)
        for tower, noise in (("din", 0.2), ("dien", 1.5))
        for seed in range(3)
    ]


def repeated(p: Predictions, times: np.ndarray) -> Predictions:
    """The rows of a draw, each request as often as it says, as requests of their own."""
    parts, number = [], 0
    for request, count in enumerate(times):
        for _ in range(count):
            part = p.take(np.flatnonzero(p.request == request))
            parts.append(dataclasses.replace(part, request=np.full(len(part), number)))
            number += 1
    columns = [part.columns() for part in parts]
    return Predictions.of_columns({name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


def test_a_draw_is_its_rows_repeated(some, items):
    parts = slicings(some, items)
    found = measure_draws(some, parts, 3)
    weights = np.concatenate(list(draws(300, 3)))
    assert weights.shape == (4, 300) and (weights[0] == 1).all() and (weights.sum(axis=1) == 300).all()
    for i in (0, 1, 3):
        p = repeated(some, weights[i])
        want = summarize(
            label=p.label, score=p.logit, user=p.user_index, request=p.request, probability=p.predicted()
        ).values
        for name in METRICS:
            assert found.overall[name][i] == pytest.approx(want[name], rel=1e-9), name
        for part in slicings(p, items):
            for j, label in enumerate(part.labels):
                inside, got = part.code == j, found.slices[part.name][i, j]
                if not math.isnan(got):
                    assert got == pytest.approx(roc_auc_score(p.label[inside], p.logit[inside])), (part.name, label)
    for part in parts:  # what the report leaves out as too few is left out here
        shown = {s["label"]: s["auc"] for s in slice_metrics(part, some, some.logit)}
        for j, label in enumerate(part.labels):
            value = found.slices[part.name][0, j]
            assert shown.get(label) == (None if math.isnan(value) else pytest.approx(value))


def test_blocks_of_draws_do_not_matter(some, monkeypatch):
    whole = measure_draws(some, [], 5)
    monkeypatch.setattr("placerank.evaluation.compare_measures._BLOCK", 600)
    cut = measure_draws(some, [], 5)
    for name in METRICS:
        np.testing.assert_allclose(cut.overall[name], whole.overall[name], rtol=1e-12)


def test_nothing_to_measure(some):
    one = dataclasses.replace(some.take(np.arange(10)), label=np.ones(10, np.float32))
    found = measure_draws(one, [], 2)
    assert all(np.isnan(found.overall[name]).all() for name in METRICS if name != "log_loss")
    assert np.isfinite(found.overall["log_loss"]).all()
    assert "log_loss" not in measure_draws(some, [], 2, odds=False).overall


def test_slices_come_back(some, items, tmp_path):
    parts = slicings(some, items)
    parts.append(dataclasses.replace(parts[0], name="part", code=np.where(parts[0].code == 1, -1, parts[0].code)))
    write_slicings(parts, tmp_path / "slices.parquet")
    for before, after in zip(parts, read_slicings(tmp_path / "slices.parquet"), strict=True):
        assert (before.name, before.title, before.shown) == (after.name, after.title, after.shown)
        np.testing.assert_array_equal(before.code < 0, after.code < 0)
        known = before.code >= 0
        names = [np.array(s.labels, object)[s.code[known]] for s in (before, after)]
        np.testing.assert_array_equal(*names)
    assert (tmp_path / "slices.parquet").stat().st_size < 10 * len(some)


def test_runs_are_grouped_by_what_differs(runs):
    groups = group([read_evaluated(path) for path in runs])
    assert [g.name for g in groups] == ["A", "B"]
    assert [g.settings for g in groups] == [{"ranker.tower": "din"}, {"ranker.tower": "dien"}]
    assert [[r.seed for r in g.runs] for g in groups] == [[0, 1, 2], [0, 1, 2]]
    assert groups[1].title == "ranker.tower=dien"


def test_an_evaluation_folder_is_a_run_too(runs):
    assert read_evaluated(runs[0] / "evaluation").settings == read_evaluated(runs[0]).settings


def test_settings_to_pass_over_and_runs_that_are_the_same(runs, some, items, tmp_path):
    a = write_run(tmp_path / "a", some, items, seed=0, epochs=1)
    b = write_run(tmp_path / "b", some, items, seed=1, epochs=2, tower="dien")
    read = [read_evaluated(path) for path in (a, b)]
    assert len(group(read)) == 2 and group(read)[1].settings == {"epochs": 2, "ranker.tower": "dien"}
    assert [g.settings for g in group(read, ["epochs"])] == [{"ranker.tower": "din"}, {"ranker.tower": "dien"}]
    alike = group(read, ["epochs", "ranker"])
    assert [g.title for g in alike] == [str(a), str(b)], "each is a group of its own where nothing differs"
    with pytest.raises(ValueError, match="ignore='epoch' is no setting of these runs"):
        group(read, ["epoch"])
    again = dataclasses.replace(read[0], path=Path("again"))
    with pytest.raises(ValueError, match=r"a and again have the same settings and the same seed 0; name one of them"):
        group([read[0], again, read[1]])


def test_differences_are_paired_by_seed(runs, some):
    groups = group([read_evaluated(path) for path in runs])
    found = measure_groups(groups, 200)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["rows"], found["requests"]) == (len(some), 300)
    [difference] = found["differences"]
    assert difference["seeds"] == [0, 1, 2] and (difference["group"], difference["against"]) == ("B", "A")
    auc = difference["metrics"]["auc"]
    a, b = ([roc_auc_score(some.label, r.predictions().logit) for r in g.runs] for g in groups)
    want = paired_t((np.array(b) - a).tolist())
    assert auc["by_seed"] == pytest.approx(np.array(b) - a) and auc["mean"] == pytest.approx(want.mean)
    assert auc["seeds"] == pytest.approx([want.low, want.high])
    assert auc["requests"][0] < auc["mean"] < auc["requests"][1] < 0 and auc["sign"] == -1
    assert difference["metrics"]["log_loss"]["sign"] == 1 and difference["metrics"]["log_loss"]["better"] == -1
    assert found["groups"][0]["metrics"]["auc"]["mean"] == pytest.approx(np.mean(a))
    assert found["groups"][0]["metrics"]["auc"]["spread"] == pytest.approx(np.std(a, ddof=1))
    slices = difference["slices"]["popularity"]["slices"]
    assert [s["label"] for s in slices] == ["head", "mid", "tail"] and all(s["mean"] < 0 for s in slices)


def test_a_bootstrap_of_requests_is_as_wide_as_it_should_be(some, items, tmp_path):
    """Of a mean over requests it is known: 1.96 standard errors."""
    paths = [write_run(tmp_path / str(n), worse(some, n, 5), items, tower=f"t{n}") for n in (0.1, 1.0)]
    found = measure_groups(group([read_evaluated(path) for path in paths]), 2_000)
    got = found["differences"][0]["metrics"]["ndcg@10"]
    from placerank.training.metrics import ranking_of_requests

    a, b = (
        ranking_of_requests(p.request, p.label, p.logit)["ndcg@10"]
        for p in (read_evaluated(path).predictions() for path in paths)
    )
    each = (b - a)[~np.isnan(a)]
    assert got["mean"] == pytest.approx(each.mean())
    width = 2 * 1.96 * each.std() / math.sqrt(len(each))
    assert got["requests"][1] - got["requests"][0] == pytest.approx(width, rel=0.1)
    assert got["seeds"] is None


def test_the_same_twice_and_no_seed_in_common(some, items, tmp_path):
    paths = [write_run(tmp_path / str(s), some, items, seed=s, epochs=s) for s in (1, 2)]
    [difference] = measure_groups(group([read_evaluated(path) for path in paths]), 50)["differences"]
    auc = difference["metrics"]["auc"]
    assert difference["seeds"] == [] and auc["seeds"] is None and auc["by_seed"] == []
    assert (auc["mean"], auc["requests"], auc["sign"]) == (0.0, [0.0, 0.0], 0)


def test_several_labels_and_lists(some, items, tmp_path):
    """Each label has metrics of its own; what lists are worth has an interval over seeds alone."""
    other = dataclasses.replace(some, labels={"order": some.label}, logits={"order": -some.logit})
    lists = lambda hit: {  # noqa: E731
        "objectives": {"order": {}},
        "lists": {"ways": {"all": {"model": {"all": {"hit@10": hit, "ndcg@10": None}}}}, "nll": {"model": 3.5 + hit}},
    }
    paths = [
        write_run(tmp_path / f"{s}-{e}", other, items, seed=s, epochs=e, metrics=lists(0.1 * e + 0.01 * s))
        for e in (1, 2)
        for s in (1, 2)
    ]
    metrics = measure_groups(group([read_evaluated(path) for path in paths]), 20)["differences"][0]["metrics"]
    assert {"auc", "auc/order", "lists/hit@10", "nll"} <= metrics.keys() and "log_loss" not in metrics
    assert metrics["auc/order"]["title"] == "AUC of order"
    hit = metrics["lists/hit@10"]
    assert hit["mean"] == pytest.approx(0.1) and hit["requests"] is None and hit["seeds"] is not None
    assert hit["sign"] == 1 and metrics["nll"]["better"] == -1


def test_other_test_data_is_refused_in_one_line(runs, some, items, tmp_path):
    fewer = write_run(tmp_path / "fewer", some.take(np.arange(100)), items, epochs=3)
    relabelled = write_run(tmp_path / "labels", dataclasses.replace(some, label=1 - some.label), items, epochs=3)
    valid = write_run(tmp_path / "valid", some, items, epochs=3, split="valid")
    for other, told in (
        (fewer, "test split, 100 rows"),
        (relabelled, "rows, data eeeeeeeeeeee"),
        (valid, "valid split"),
    ):
        with pytest.raises(ValueError, match="are of different test data, so no request can be paired") as error:
            compare(CompareConfig(runs=(runs[0], other)))
        assert told in str(error.value) and str(other) in str(error.value) and "\n" not in str(error.value)


def test_one_label_alone_is_compared_by_what_is_defined(some, items, tmp_path):
    for name, label in (("negatives", np.zeros_like(some.label)), ("positives", np.ones_like(some.label))):
        alike = dataclasses.replace(some, label=label)
        paths = tuple(
            write_run(tmp_path / f"{name}-{t}", worse(alike, x, 3), items, tower=t) for t, x in (("din", 0), ("sim", 2))
        )
        out = compare(CompareConfig(runs=paths, out=tmp_path / name, resamples=20))
        metrics = json.loads((out / "comparison.json").read_text())["differences"][0]["metrics"]
        assert metrics["auc"]["mean"] is None and metrics["log_loss"]["mean"] != 0
        assert "undefined" in (out / "comparison.html").read_text() and (out / "comparison.png").stat().st_size


def test_another_objective_is_not_other_data(runs, some, items, tmp_path):
    """Runs are compared by their first objective; of another one the labels are others, and so is what to do."""
    about = {"objective": "order"}
    other = write_run(tmp_path / "order", dataclasses.replace(some, label=1 - some.label), items, metrics=about)
    with pytest.raises(ValueError, match=r"evaluation is about label and .*order/evaluation about order, the first of"):
        compare(CompareConfig(runs=(runs[0], other)))
    same = write_run(tmp_path / "same", some, items, metrics={"objective": "label"})  # of data that knows orders, too
    check_same_rows(read_evaluated(runs[0]), read_evaluated(same), some, some)


def test_what_is_not_there_or_not_whole(runs, some, items, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere has no evaluation: .*; run placerank evaluate --run"):
        read_evaluated(tmp_path / "nowhere")
    broken = write_run(tmp_path / "broken", some, items)
    file = broken / "evaluation" / "slices.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"slices.parquet: content differs .*; evaluate again with --overwrite"):
        read_evaluated(broken)
    for change, told in (
        ({"runs": (tmp_path,)}, "runs: got 1, expected at least two"),
        ({"resamples": 3}, "resamples=3"),
    ):
        with pytest.raises(ValueError, match=told):
            CompareConfig(**{"runs": tuple(runs)} | change)


def test_the_command(runs, tmp_path, capsys):
    paths = list(map(str, runs))
    out = tmp_path / "out"
    assert main(["compare", *paths, "--out", str(out), "--resamples", "20"]) == 0
    text = capsys.readouterr().out
    assert "A: ranker.tower=din" in text and "B - A, paired by seed 0, 1, 2" in text and "worse" in text
    assert "slices were looked at" in text
    page = (out / "comparison.html").read_text()
    assert "ranker.tower=dien (3 runs)" in page and "Time of day at the item" in page and page.count("<svg") == 2
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "comparison.json").read_text())
    assert main(["compare", *paths, "--json", "--resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out) == saved
    assert main(["compare", *paths, "--out", str(out)]) == 1
    assert main(["compare", paths[0]]) == 2
    said = capsys.readouterr().err
    assert main(["compare", *paths, "--print-config"]) == 0
    (tmp_path / "compare.toml").write_text(capsys.readouterr().out)
    assert main(["compare", "--config", str(tmp_path / "compare.toml"), "--json", "--resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out) == saved
    assert "expected at least two" in said
