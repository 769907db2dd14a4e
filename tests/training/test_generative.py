"""A generative ranker from the config to lists: trained, killed and resumed, on ranks, evaluated, asked, refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from generators import GENERATOR, small
from runs import metrics, train_and_die, train_here
from tokens import make_codes, write_tokens

import placerank
from placerank.data.batches.features import FeatureConfig
from placerank.data.batches.loader import SampleLoader
from placerank.data.batches.sequences import SequenceLoader
from placerank.data.manifest import read_manifest
from placerank.embeddings.delta import apply_delta
from placerank.evaluation.evaluate import EvaluateConfig, evaluate
from placerank.evaluation.generate import GenerateConfig, generate
from placerank.evaluation.measure_lists import ListsConfig
from placerank.kernels.haversine import haversine_km
from placerank.rankers.dense import RankerConfig
from placerank.rankers.exported import ExportedRanker
from placerank.rankers.exported_generator import ExportedGenerator
from placerank.rankers.generative.config import OneRecConfig, TigerConfig
from placerank.rankers.generative.reach import OpeningHours, everything, local_seconds, open_now
from placerank.rankers.generative_ranker import expand, gather
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.rank_visits import VisitRanker
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training.export import ExportConfig, export
from placerank.training.inference import Loaded, load_ranker
from placerank.training.runtime import runtime
from placerank.training.tasks import LEAST_LOG_P, visit_loader
from placerank.training.train import train

AnyRanks = Callable[..., list[Any]]


def test_it_learns_and_keeps_the_likeliest(world: SimpleNamespace) -> None:
    found = metrics(world.run, "valid")
    nll = [line["nll"] for line in found]
    assert nll[-1] < nll[0]
    best = json.loads((world.run / "best.json").read_text())
    assert best["nll"] == min(nll)
    assert 0 < found[0]["impossible"] < 0.5, "items without codes, where the user was never before"
    losses = [line["loss"] for line in metrics(world.run, "train")]
    assert sum(losses[-17:]) < sum(losses[:17]), "of the last pass and the first"


@pytest.mark.parametrize("ranks_after", [1, 2])
def test_killed_and_resumed(world: SimpleNamespace, ranks_after: int, tmp_path: Path, ranks: AnyRanks) -> None:
    """At the same number of ranks losses are those of an undisturbed run; at another one training goes on."""
    whole, broken = small(world, tmp_path / "whole"), small(world, tmp_path / "broken")
    ranks(2, train_and_die, broken, 8, killed=True)
    ranks(ranks_after, train_here, replace(broken, resume=True))
    if ranks_after == 2:
        ranks(2, train_here, whole)
        for split in ("train", "valid"):
            assert metrics(broken.run, split) == metrics(whole.run, split)
    steps = [line["step"] for line in metrics(broken.run, "train")]
    assert steps == list(range(1, len(steps) + 1)) and len(metrics(broken.run, "valid")) == 2


def scores(run: Path) -> tuple[list[Any], list[Any]]:
    """On this rank: log p of all items for its test visits, and logits of its test samples."""
    with runtime(0) as rt:
        ranker = load_ranker(run, rt)
        visits = [
            (batch.valid, ranker.model.module.score(expand(ranker.catalog, gather(ranker.catalog, batch))))
            for batch in visit_loader(ranker.inputs, "test", 16, rt)
        ]
        samples = SampleLoader(ranker.inputs.folder, "test", 64, rank=rt.rank, world_size=rt.world_size, shuffle=False)
        logits = [ranker.score()(batch)[: batch.valid] for batch in samples]
    return [x[:n].numpy() for n, x in visits], [x.numpy() for x in logits]


def test_scores_do_not_depend_on_the_ranks(world: SimpleNamespace, ranks: AnyRanks) -> None:
    (visits, logits), *_ = ranks(1, scores, world.run)
    of_two = [[x for parts in of_ranks for x in parts] for of_ranks in zip(*ranks(2, scores, world.run), strict=True)]
    np.testing.assert_allclose(np.concatenate(visits), np.concatenate(of_two[0]), atol=1e-4)
    np.testing.assert_allclose(np.concatenate(logits), np.concatenate(of_two[1]), atol=1e-4)
    total = np.exp(np.concatenate(visits).astype(np.float64)).sum(1)
    assert (total < 1 + 1e-4).all() and total.max() > 1 - 1e-4, "what is lacking is copied: items without codes"


def test_logits_of_samples_are_log_odds(world: SimpleNamespace) -> None:
    with runtime(0) as rt:
        ranker = load_ranker(world.run, rt)
        batch = next(iter(SampleLoader(world.data, "test", 40, shuffle=False)))
        logits = ranker.score()(batch)
        of_requests = expand(ranker.catalog, gather(ranker.catalog, batch))
        items = ranker.model.module.dense.index.items
        every = torch.full((len(batch.user), len(ranker.inputs.item_ids())), LEAST_LOG_P, dtype=torch.float64)
        every[:, torch.from_numpy(items).long()] = ranker.model.module.score(of_requests).double()
        log_p = every[batch.request, batch.item]
        nobody = ranker.model.module.score(of_requests, torch.zeros(len(batch.user), dtype=torch.bool))
    assert nobody.shape == (0, len(items))
    coded = torch.isin(batch.item, torch.from_numpy(items).long())
    torch.testing.assert_close(logits[coded].double().sigmoid().log(), log_p[coded], atol=1e-3, rtol=1e-4)


def test_evaluate_measures_lists_beside_candidates(world: SimpleNamespace, tmp_path: Path, ranks: AnyRanks) -> None:
    config = EvaluateConfig(run=world.run, out=tmp_path / "one", lists=ListsConfig(visits=60, reach_km=3.0))
    evaluate(config)
    ranks(2, evaluate_here, replace(config, out=tmp_path / "two"))
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    assert 0.5 < one["scorers"]["model"]["auc"] < 1
    lists = one["lists"]
    for way in ("all", "reach", "sampled", "codes"):
        of_all = lists["ways"][way]["model"]["all"]
        assert of_all["asked"] <= 60 and of_all["hit@1"] <= of_all["hit@10"] <= of_all["hit@50"]
        for name, parts in lists["ways"][way].items():
            for part, row in parts.items():
                assert two["lists"]["ways"][way][name][part] == pytest.approx(row, abs=1e-6), (way, name, part)
    assert 0 <= lists["within_reach"]["ece"] <= 1 and lists["nll"]["visits"] <= 60
    assert "Lists of places" in (tmp_path / "one/report.html").read_text()


def evaluate_here(config: EvaluateConfig) -> None:
    evaluate(config)


def loaded(run: Path, use: Callable[[Loaded], Any]) -> Any:
    with runtime(0) as rt:
        return use(load_ranker(run, rt))


def catalog(world: SimpleNamespace) -> pa.Table:
    return pq.read_table(world.data / "catalog.parquet", columns=["item_id", "lat", "lon", "positives"])


def test_lists_are_the_best_within_reach(world: SimpleNamespace, tmp_path: Path) -> None:
    """Against a loop over all items; an item without codes is never listed."""
    out = generate(GenerateConfig(run=world.run, out=tmp_path / "lists", visits=25, within_km=2.0, k=5))
    table = pq.read_table(out / "lists.parquet")
    items = catalog(world)
    place = {r["item_id"]: (r["lat"], r["lon"]) for r in items.to_pylist()}
    coded = set(pq.read_table(world.tokens / "semantic_ids.parquet")["item_id"].to_pylist())
    everywhere = generate(GenerateConfig(run=world.run, out=tmp_path / "all", visits=25, within_km=float("inf"), k=150))
    of_all = pq.read_table(everywhere / "lists.parquet").to_pylist()
    rows = table.to_pylist()
    assert {r["request"] for r in rows} <= set(range(25))
    for request in range(25):
        mine = [r for r in rows if r["request"] == request]
        whole = [r for r in of_all if r["request"] == request]
        assert len(whole) == len(coded) and sum(r["probability"] for r in whole) < 1 + 1e-4
        here = torch.tensor([whole[0]["lat"], whole[0]["lon"]], dtype=torch.float64)
        km = {i: float(haversine_km(*here, *torch.tensor(place[i], dtype=torch.float64))) for i in coded}
        want = sorted((r for r in whole if km[r["item_id"]] <= 2.0), key=lambda r: -r["probability"])[:5]
        assert [r["probability"] for r in mine] == pytest.approx([r["probability"] for r in want], rel=1e-3)
        assert all(km[r["item_id"]] <= 2.0 and r["km"] == pytest.approx(km[r["item_id"]], abs=0.01) for r in mine)
        assert [r["place"] for r in mine] == list(range(1, len(mine) + 1))
    by_beams = replace(GenerateConfig(run=world.run, out=tmp_path / "beams", visits=25, within_km=2.0, k=5), beams=150)
    found = pq.read_table(generate(by_beams) / "lists.parquet")
    assert found["item_id"].to_pylist() == table["item_id"].to_pylist(), "with beams for all"
    np.testing.assert_allclose(found["probability"], table["probability"], rtol=1e-4)
    assert (out / "map.png").stat().st_size > 10_000 and "Request" in (out / "report.html").read_text()


def offsets_by_time(world: SimpleNamespace) -> dict[int, float]:
    """Minutes of the test visits."""
    batches = list(SequenceLoader(world.data, "test", 1000))
    time, offset = (torch.cat([getattr(b, n) for b in batches]).tolist() for n in ("target_time", "target_offset"))
    return dict(zip(time, offset, strict=True))


def test_requests_of_a_file(world: SimpleNamespace, tmp_path: Path) -> None:
    """The same as for the visit itself; users whom nobody knows, requests without a place, and none at all."""
    visits = generate(GenerateConfig(run=world.run, out=tmp_path / "visits", visits=10, within_km=3.0))
    of_visits = pq.read_table(visits / "lists.parquet", filters=[("user_id", ">=", 0)])  # others have no id to ask by
    assert len(of_visits) > 50
    first = of_visits.group_by("request", use_threads=False).aggregate(
        [(c, "first") for c in ("user_id", "time", "lat", "lon")]
    )
    first = first.sort_by("request")
    asked = pa.table({c: first[f"{c}_first"] for c in ("user_id", "time", "lat", "lon")})
    offsets = offsets_by_time(world)
    offset = pa.array([offsets[t] for t in asked["time"].to_pylist()], pa.float32(), from_pandas=True)
    asked = asked.append_column("utc_offset", offset)
    pq.write_table(asked, tmp_path / "asked.parquet")
    config = GenerateConfig(run=world.run, out=tmp_path / "asked", requests=tmp_path / "asked.parquet", within_km=3.0)
    got = pq.read_table(generate(config) / "lists.parquet")
    assert got["item_id"].to_pylist() == of_visits["item_id"].to_pylist()
    np.testing.assert_allclose(got["probability"], of_visits["probability"], rtol=1e-3)
    assert "visited" not in got.column_names

    unknown = pa.array([10**9, None], asked["user_id"].type)
    time, nulls = pa.array([1_700_000_000] * 2, pa.timestamp("s")), pa.nulls(2)
    nowhere = pa.table({"user_id": unknown, "time": time, "lat": nulls, "lon": nulls, "utc_offset": nulls})
    pq.write_table(nowhere, tmp_path / "nowhere.parquet")
    told = replace(config, requests=tmp_path / "nowhere.parquet", out=tmp_path / "nowhere")
    assert len(pq.read_table(generate(told) / "lists.parquet")) == 0, "nobody knows where they are"
    anywhere = replace(told, within_km=float("inf"), overwrite=True)
    found = pq.read_table(generate(anywhere) / "lists.parquet")
    assert found["user_id"].to_pylist() == [10**9] * 10 + [None] * 10


def is_open(text: str | None, minute: int) -> bool:
    """By the text alone, for rules as those above: a loop over yesterday and today."""
    if text in (None, "24/7"):
        return True
    day, now = divmod(minute, 1440)
    for back in (0, 1):
        of_day: list[str] = []
        for rule in text.split("; "):
            days, _, times = ("Mo-Su off" if rule == "off" else rule).partition(" ")
            first, last = (DAYS.index(d) for d in (days[:2], days[-2:]))
            if first <= (day - back) % 7 <= last:
                of_day = [] if times == "off" else times.split(",")
        for begin, end in (t.split("-") for t in of_day):
            a, b = (60 * int(t[:2]) + int(t[3:]) for t in (begin, end))
            b += 1440 if b <= a else 0
            if a <= now + 1440 * back < b:
                return True
    return False


DAYS = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"]


def test_only_open_places_are_listed(world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of visits and of requests at all hours: none that is closed, all that are open, by local or solar time."""
    raw = pq.read_table(world.data.parent / "raw" / "items.parquet").to_pylist()
    text = {r["item_id"]: r["opening_hours"] for r in raw}
    coded = set(pq.read_table(world.tokens / "semantic_ids.parquet")["item_id"].to_pylist())
    user = pq.read_table(world.data / "users.parquet")["user_id"].combine_chunks()[1]
    asked = pa.table(
        {"user_id": pa.array([user] * 84, user.type), "time": [1_700_000_000 + 7200 * i for i in range(84)],
         "utc_offset": pa.array([None, 330, -210] * 28, pa.int32())}
    )  # fmt: skip
    pq.write_table(asked, tmp_path / "asked.parquet")
    config = GenerateConfig(
        run=world.run, out=tmp_path / "lists", requests=tmp_path / "asked.parquet", within_km=math.inf, k=150,
        open_now=True,
    )  # fmt: skip
    with caplog.at_level("WARNING"):
        table = pq.read_table(generate(config) / "lists.parquet")
    assert "28 of 84 requests have no utc_offset" in caplog.text
    lon = {r["item_id"]: r["lon"] for r in raw}
    for i, request in enumerate(asked.to_pylist()):
        listed = set(table.filter(pc.equal(table["request"], i))["item_id"].to_pylist())
        want = set()
        for item in coded:
            offset = request["utc_offset"] if request["utc_offset"] is not None else 60 * round(lon[item] / 15)
            local = datetime.fromtimestamp(request["time"], UTC) + timedelta(minutes=offset)
            if is_open(text[item], 1440 * local.weekday() + 60 * local.hour + local.minute):
                want.add(item)
        assert listed == want and 0 < len(want) < len(coded)

    visits = replace(config, out=tmp_path / "visits", requests=None, visits=10**6, within_km=5.0, k=10)
    whole = pq.read_table(generate(replace(visits, open_now=False)) / "lists.parquet")
    rows = pq.read_table(generate(replace(visits, overwrite=True)) / "lists.parquet").to_pylist()
    offsets = offsets_by_time(world)
    assert len(rows) > 100 and {*offsets.values()} >= {330.0, -210.0}

    def open_then(r: dict[str, Any]) -> bool:
        offset = offsets[r["time"]]
        offset = 60 * round(lon[r["item_id"]] / 15) if math.isnan(offset) else offset
        local = datetime.fromtimestamp(r["time"], UTC) + timedelta(minutes=offset)
        return is_open(text[r["item_id"]], 1440 * local.weekday() + 60 * local.hour + local.minute)

    assert all(map(open_then, rows)) and not all(map(open_then, whole.to_pylist()))


def test_new_places_of_a_list(world: SimpleNamespace, tmp_path: Path) -> None:
    """All of them new, or some; the rest as it was, in the same order."""
    config = GenerateConfig(run=world.run, out=tmp_path / "lists", visits=40, within_km=float("inf"), k=130)
    whole = pq.read_table(generate(config) / "lists.parquet")
    new = pq.read_table(generate(replace(config, new=130, overwrite=True)) / "lists.parquet")
    some = pq.read_table(generate(replace(config, k=10, new=4, overwrite=True)) / "lists.parquet")
    told = 0
    for request in range(40):
        of_all, of_new, mixed = (
            t.filter(pc.equal(t["request"], request))["item_id"].to_pylist() for t in (whole, new, some)
        )
        unseen = set(of_new)
        assert of_new == [i for i in of_all if i in unseen]
        best = of_all[:10]
        lacking = 4 - len(unseen & set(best))
        told += lacking > 0
        if lacking > 0:  # the last ones that are known make room
            known = [i for i in best if i not in unseen][:6]
            best = [i for i in of_all if i in {*known, *of_new[: 10 - len(known)]}]
        assert mixed == best
    assert told, "or there was nothing to see"


def test_items_with_codes_since_and_places_that_opened(world: SimpleNamespace, tmp_path: Path) -> None:
    """``tokenize --add`` is all it takes: items of the catalog, and such as no table has a row of."""
    config = GenerateConfig(run=world.run, out=tmp_path / "lists", visits=20, within_km=float("inf"), k=500)
    late = catalog(world)["item_id"].to_pylist()[-20:]
    before = set(pq.read_table(generate(config) / "lists.parquet")["item_id"].to_pylist())
    assert not before & set(late)
    after = generate(replace(config, semantic_ids=world.extended, overwrite=True))
    assert set(late) <= set(pq.read_table(after / "lists.parquet")["item_id"].to_pylist())

    items = catalog(world)
    opened = pa.array([10**6, 10**6 + 1], items["item_id"].type)
    ids = SemanticIds.read(world.extended)
    added = write_tokens(tmp_path / "added", ids.added(opened, make_codes(2, 3)))
    lat, lon = (items[c].to_pylist()[1] for c in ("lat", "lon"))
    pq.write_table(pa.table({"item_id": opened, "lat": [lat, lat], "lon": [lon, lon]}), tmp_path / "opened.parquet")
    with_them = replace(config, semantic_ids=added, places=tmp_path / "opened.parquet", overwrite=True)
    found = pq.read_table(generate(with_them) / "lists.parquet").to_pylist()
    new = [r for r in found if r["item_id"] >= 10**6]
    assert len(new) == 2 * 20 and all(r["probability"] > 0 for r in new)
    assert sum(r["probability"] for r in found) == pytest.approx(20, abs=0.01)
    hours = pq.read_table(tmp_path / "opened.parquet").append_column("opening_hours", pa.array(["off", "24/7"]))
    pq.write_table(hours, tmp_path / "opened.parquet")
    found = pq.read_table(generate(replace(with_them, open_now=True)) / "lists.parquet")["item_id"].to_pylist()
    assert {i for i in found if i >= 10**6} == {10**6 + 1}


def test_a_delta_leads_to_the_whole_export(world: SimpleNamespace, tmp_path: Path) -> None:
    """With the semantic IDs of 20 items more, in the index and the catalog."""
    before = export(ExportConfig(run=world.run, out=tmp_path / "before"))
    how = {"run": world.run, "semantic_ids": world.extended, "checkpoint": "45"}
    delta = export(ExportConfig(out=tmp_path / "delta", since=before, **how))
    whole = export(ExportConfig(out=tmp_path / "whole", **how))
    applied = apply_delta(before, delta, tmp_path / "applied")
    files = [read_manifest(folder, "export", verify=True)["files"] for folder in (applied, whole, before)]
    assert files[0] == files[1] != files[2]
    assert (
        len(ExportedGenerator.load(applied).generator.index) == len(ExportedGenerator.load(before).generator.index) + 20
    )


KINDS = {
    "tiger": {"tiger": TigerConfig(columns=16, heads=2, head_columns=8, layers=1, hidden=32, user_tokens=7)},
    "onerec": {"onerec": OneRecConfig(columns=16, heads=2, layers=1, hidden=32, window=3, experts=4)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_go_the_same_way(kind: str, world: SimpleNamespace, tmp_path: Path, ranks: AnyRanks) -> None:
    """Trained on two ranks and resumed on one, evaluated, asked, exported."""
    config = small(world, tmp_path / "run", ranker=RankerConfig(kind=kind, **KINDS[kind]), epochs=1, checkpoint_every=0)
    ranks(2, train_here, config)
    train(replace(config, epochs=2, resume=True))
    nll = [line["nll"] for line in metrics(config.run, "valid")]
    assert len(nll) == 2 and nll[1] < nll[0]
    out = evaluate(EvaluateConfig(run=config.run, lists=ListsConfig(visits=20)))
    ways = json.loads((out / "metrics.json").read_text())["lists"]["ways"]
    assert ways["codes"]["model"]["all"]["hit@50"] > ways["all"]["model"]["all"]["hit@10"], "many items a code"
    lists = GenerateConfig(run=config.run, out=tmp_path / "lists", visits=10, within_km=float("inf"), k=6)
    table = pq.read_table(generate(lists) / "lists.parquet")
    pairs = set(zip(table["request"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert len(table) == len(pairs) == 60, "none twice"
    with_beams = pq.read_table(generate(replace(lists, beams=150, overwrite=True)) / "lists.parquet")
    assert with_beams["item_id"].to_pylist() == table["item_id"].to_pylist()
    with_new = pq.read_table(generate(replace(lists, new=6, overwrite=True)) / "lists.parquet")
    assert len(with_new) == 60 and with_new["item_id"].to_pylist() != table["item_id"].to_pylist()
    late = generate(replace(lists, semantic_ids=world.extended, k=150, visits=2, overwrite=True))
    assert len(pq.read_table(late / "lists.parquet")) == 300
    exported = ExportedGenerator.load(export(ExportConfig(run=config.run, out=tmp_path / "export")))
    with runtime(0) as rt:
        ranker = load_ranker(config.run, rt)
        batch = next(iter(visit_loader(ranker.inputs, "test", 9, rt)))
        asked = expand(ranker.catalog, gather(ranker.catalog, batch))
        want = ranker.model.module.score(asked)
        allowed = exported.near(3.0).within(batch.lat.double().numpy(), batch.lon.double().numpy())
        of_run = ranker.model.module.lists(asked, None, allowed, 4)
    torch.testing.assert_close(exported.score(batch), want, atol=1e-5, rtol=1e-5)
    of_export = exported.lists(batch, allowed, 4)
    assert of_export.items.tolist() == of_run.items.tolist() and len(of_run.items)


def test_what_does_not_fit_is_told(world: SimpleNamespace, tmp_path: Path) -> None:
    config = small(world, tmp_path / "run")
    with pytest.raises(ValueError, match=r"generates semantic IDs; name with features.semantic_ids"):
        small(world, tmp_path / "run", features=FeatureConfig())
    with pytest.raises(ValueError, match=r"ranker.akt.enabled: the plug-ins are for towers"):
        RankerConfig(kind="generative", akt=AktConfig(enabled=True))
    with pytest.raises(ValueError, match=r"ranker.kind='generated': expected one of tower, generative"):
        RankerConfig(kind="generated")
    with pytest.raises(ValueError, match="a generative ranker takes some of user"):
        train(small(world, tmp_path / "run", features=FeatureConfig(semantic_ids=world.tokens, pooled=["hour"])))
    config = GenerateConfig(run=world.run, out=tmp_path / "lists")
    for wrong in ({"beams": 9}, {"beams": 20, "new": 3}):
        with pytest.raises(ValueError, match=f"beams={wrong['beams']}: expected 0, or k = 10 and more without new"):
            replace(config, **wrong)
    with pytest.raises(ValueError, match="was trained with semantic IDs"):
        generate(replace(config, semantic_ids=world.other))
    towers = small(world, tmp_path / "towers", features=FeatureConfig(), ranker=RankerConfig(mlp=[8]), epochs=1)
    with pytest.raises(ValueError, match="has a ranker of kind tower, which scores candidates"):
        generate(replace(config, run=train(towers)))
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "asked.parquet")
    with pytest.raises(ValueError, match="no column time"):
        generate(replace(config, requests=tmp_path / "asked.parquet"))
    pq.write_table(catalog(world).slice(1, 2).select(["item_id", "lat", "lon"]), tmp_path / "opened.parquet")
    with pytest.raises(ValueError, match="are in the prepared data already"):
        generate(replace(config, places=tmp_path / "opened.parquet"))
    without = pq.read_table(world.data / "catalog.parquet").drop_columns("opening_hours")
    shutil.copytree(world.data, tmp_path / "data")
    pq.write_table(without, tmp_path / "data" / "catalog.parquet")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest["files"]["catalog.parquet"]["bytes"] = (tmp_path / "data" / "catalog.parquet").stat().st_size
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no opening hours of items; prepare data whose items have a column opening"):
        generate(replace(config, open_now=True, data=tmp_path / "data"))
    assert not (tmp_path / "lists").exists()


def test_an_export_gives_the_lists_of_the_run(world: SimpleNamespace, tmp_path: Path) -> None:
    """Without the run, the data and the tokens; and what reads one kind of export refuses the other."""
    folder = export(ExportConfig(run=world.run, out=tmp_path / "export"))
    exported = ExportedGenerator.load(folder)
    with runtime(0) as rt:
        ranker = load_ranker(world.run, rt)
        batch = next(iter(visit_loader(ranker.inputs, "test", 30, rt)))
        want = ranker.model.module.score(expand(ranker.catalog, gather(ranker.catalog, batch)))
    torch.testing.assert_close(exported.score(batch), want, atol=1e-5, rtol=1e-5)
    allowed = exported.near(2.0).within(batch.lat.double().numpy(), batch.lon.double().numpy())
    lists = exported.lists(batch, allowed, 5)
    assert lists.offsets.diff().tolist() == allowed.offsets.diff().clamp(max=5).tolist()
    local = local_seconds(allowed, batch.target_time, batch.target_offset, torch.from_numpy(exported.lon))
    hours = OpeningHours.of_column(pq.read_table(world.data / "catalog.parquet")["opening_hours"])
    of_now = exported.open_now(batch, allowed)
    assert of_now.items.tolist() == open_now(allowed, hours, local).items.tolist()
    assert 0 < len(of_now.items) < len(allowed.items)
    with pytest.raises(ValueError, match="read it with ExportedGenerator"):
        ExportedRanker.load(folder)
    (folder / "generator.json").unlink()
    with pytest.raises(ValueError, match=r"generator\.json"):
        ExportedGenerator.load(folder)


@pytest.mark.parametrize("kind", ["generative", "onerec"])
def test_lists_by_raw_ids_are_those_of_the_export(world: SimpleNamespace, kind: str, tmp_path: Path) -> None:
    """``placerank.load``: the same calls and columns as for rankers of candidates, strangers and ugly places too."""
    run = world.run
    if kind == "onerec":
        sizes = OneRecConfig(columns=16, heads=2, layers=1, hidden=32)
        run = train(small(world, tmp_path / "run", epochs=1, ranker=RankerConfig(kind=kind, onerec=sizes)))
    ranker = placerank.load(export(ExportConfig(run=run, out=tmp_path / "export")))
    exported = ExportedGenerator.load(tmp_path / "export")
    assert isinstance(ranker, VisitRanker)
    with runtime(0) as rt:
        batch = next(iter(visit_loader(load_ranker(run, rt).inputs, "test", 30, rt)))
    batch.utc_offset[:], batch.target_offset[:] = 90, 90  # by raw ids a request's holds for its visits too
    offsets, at = (x.tolist() for x in batch.last(10**6))
    raw = ranker.item_ids.to_pylist()
    lines = []
    for b in range(batch.valid):
        seen = at[offsets[b] : offsets[b + 1]]
        np.random.default_rng(b).shuffle(seen)
        lines.append(
            {
                "user_id": ranker.user_ids[int(batch.user[batch.stretch[b]])].as_py() or 10**9,
                "time": int(batch.target_time[b]),
                "lat": float(batch.lat[b]),
                "lon": float(batch.lon[b]),
                "utc_offset": 90.0,
                "history": [raw[batch.item[i]] or 10**9 for i in seen],
                "history_time": [int(batch.time[i]) for i in seen],
            }
        )
    asked = pa.Table.from_pylist(lines)
    for km, k in ((2.0, 5), (math.inf, 140)):
        lat, lon = (x.double().numpy() for x in (batch.lat, batch.lon))
        everywhere = everything(exported.generator.index.items, len(batch))
        want = exported.lists(batch, everywhere if km == math.inf else exported.near(km).within(lat, lon), k)
        found = pa.concat_tables(ranker.predict(asked, within_km=km, k=k))
        assert found.column_names == ["request", "user_id", "item_id", "km", "score", "probability"]
        assert np.bincount(found["request"], minlength=batch.valid).tolist() == want.offsets.diff().tolist()
        assert found["item_id"].to_pylist() == [raw[i] for i in want.items.tolist()]
        np.testing.assert_allclose(found["score"], want.log_p, atol=2e-5)
        np.testing.assert_allclose(found["probability"], want.log_p.exp(), atol=1e-6)
        assert km == math.inf or (found["km"].to_numpy() <= km).all()
    user, here, when = lines[0]["user_id"], (lines[0]["lat"], lines[0]["lon"]), lines[0]["time"]
    visits = list(zip(lines[0]["history"], lines[0]["history_time"], strict=True))
    one = ranker.rank(user, here, when, visits, within_km=2.0, k=5, utc_offset=90)
    first = pa.concat_tables(ranker.predict(asked.slice(0, 1), within_km=2.0, k=5))
    assert one["item_id"].to_pylist() == first["item_id"].to_pylist() and len(one)
    some = [raw[i] for i in sorted(exported.generator.index.items.tolist())[::20]]
    given = ranker.rank("nobody" if isinstance(user, str) else 10**9, None, when, None, some, k=99)
    assert sorted(given["item_id"].to_pylist()) == sorted(some)
    assert np.isnan(given["km"].to_numpy()).all()
    if kind == "generative":  # OneRec writes a list, each place given those before it
        assert (np.diff(given["score"].to_numpy()) <= 0).all()
    assert len(ranker.rank(user, (-60.0, 10.0), when)) == 0 and len(ranker.rank([], [], [])) == 0
    with pytest.raises(ValueError, match="by='taste': this ranker has label"):
        ranker.rank(user, here, when, by="taste")
    with pytest.raises(ValueError, match="got a column 'shoes'"):
        ranker.rank(user, here, when, own={"shoes": 1})


@pytest.mark.parametrize("kind", ["generative", "tiger", "onerec"])
def test_pipelined_as_plain(world: SimpleNamespace, kind: str, tmp_path: Path) -> None:
    """What training on a GPU does by default gives the losses of plain steps; of OneRec with the lazy decoder."""
    sizes = {"columns": 16, "heads": 2, "layers": 1, "hidden": 32}
    settings = {"generative": GENERATOR, "tiger": TigerConfig(**sizes), "onerec": OneRecConfig(**sizes, lazy=1)}  # type: ignore[arg-type]
    losses = []
    for pipelined in (False, True):
        config = small(world, tmp_path / f"{pipelined}", epochs=1, pipelined=pipelined)
        train(replace(config, ranker=RankerConfig(kind=kind, **{kind: settings[kind]})))  # type: ignore[arg-type]
        losses.append([line["loss"] for line in metrics(config.run, "train")])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
