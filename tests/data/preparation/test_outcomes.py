"""Labels beside the click, an amount and a weight: from the raw tables to batches, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from delivery import delivery, write_delivery

from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.raw.columns import DataError
from placerank.data.raw.outcomes import Outcomes

NAMED: dict[str, Any] = {"labels": ["order", "again"], "amount": "paid", "weight": "sure"}


def with_outcomes(**changed: Any) -> pa.Table:
    """Interactions with an order among clicks, another label anywhere, an amount and a weight."""
    shown = delivery()[2]
    r = np.random.default_rng(1)
    label = shown["label"].to_numpy()
    order = label * (r.random(len(label)) < 0.5)
    columns = {
        "order": order.astype(np.int8),
        "again": r.random(len(label)) < 0.2,
        "paid": np.round(order * r.lognormal(3, 0.5, len(label)), 2),
        "sure": r.integers(0, 4, len(label)) / 2,
    } | changed
    for name, values in columns.items():
        shown = shown.append_column(name, pa.array(values))
    return shown


def rows(folder: Path, names: list[str]) -> dict[tuple[Any, ...], list[float]]:
    """What the loader gives of candidates, by raw ids and time."""
    items = pq.read_table(folder / "catalog.parquet")["item_id"].to_pylist()
    found = {}
    for split in ("train", "valid", "test"):
        for b in SampleLoader(folder, split, 64):
            of = b.request.tolist()
            for i in range(b.valid):
                key = (items[int(b.item[i])], int(b.time[of[i]]))
                values = [float(b.own[n][i] if len(b.own[n]) == len(b) else b.own[n][of[i]]) for n in names]
                found[key] = [float(b.label[i]), *values]
    return found


@pytest.mark.parametrize("csv", [False, True])
def test_what_came_of_candidates_reaches_the_batches(csv: bool, tmp_path: Path, caplog: Any) -> None:
    shown = with_outcomes()
    if csv:
        shown = shown.set_column(shown.column_names.index("again"), "again", shown["again"].cast(pa.int8()))
    raw = write_delivery(tmp_path / "raw", csv=csv, interactions=shown)
    with caplog.at_level(logging.INFO):
        data = prepare(PrepareConfig(input=raw, out=tmp_path / "data", format="csv" if csv else "parquet", **NAMED))
    want: dict[tuple[Any, ...], set[tuple[float, ...]]] = {}
    for row in shown.to_pylist():
        values = tuple(float(np.float32(row[n])) for n in ("label", "order", "again", "paid", "sure"))
        want.setdefault((row["item_id"], row["timestamp"]), set()).add(values)
    got = rows(data, ["order", "again", "paid", "sure"])
    assert len(got) == len(want) and all(tuple(values) in want[key] for key, values in got.items())
    manifest = read_manifest(data, "prepared")
    known = manifest["outcomes"]
    assert {k: known[k] for k in ("labels", "amount", "weight")} == NAMED
    train = pq.read_table(data / "train")
    columns = {n: np.concatenate(train[f"own.{n}"].to_pylist()) for n in ("order", "again", "paid", "sure")}
    label = np.concatenate(train["label"].to_pylist())
    assert known["train"]["positives"] == {n: int(columns[n].sum()) for n in ("order", "again")}
    assert known["train"]["outside"]["order"]["label"] == 0
    assert known["train"]["outside"]["again"]["label"] == int((columns["again"] * (1 - label)).sum()) > 0
    assert known["train"]["outside"]["label"]["order"] == int((label * (1 - columns["order"])).sum())
    assert known["train"]["amount"]["rows"] == int((columns["paid"] > 0).sum())
    assert known["train"]["amount"]["sum"] == pytest.approx(float(columns["paid"].sum()), rel=1e-5)
    assert not {f["column"] for f in manifest["own"]} & {"order", "again", "paid", "sure"}, "none is a feature"
    assert "interactions.order: label," in caplog.text and "alone tells the label" not in caplog.text


def test_any_number_of_ranks_gives_the_same(tmp_path: Path, ranks: Any) -> None:
    raw = write_delivery(tmp_path / "raw", interactions=with_outcomes())
    found = []
    for world in (1, 2):
        ranks(world, prepared_here, raw, tmp_path / f"{world}")
        manifest = json.loads((tmp_path / f"{world}/manifest.json").read_text())
        found.append((manifest["content_hash"], manifest["outcomes"]))
    assert found[0] == found[1]


def prepared_here(raw: Path, out: Path) -> None:
    prepare(PrepareConfig(input=raw, out=out, **NAMED))


def test_drawn_negatives_have_no_label_and_the_visits_weight(tmp_path: Path) -> None:
    simulate(SimulateConfig(out=tmp_path / "city", cities=2, items=300, users=60, requests=400, days=30, orders=0.4))
    shown = pq.read_table(tmp_path / "city/interactions.parquet").drop(["probability"])
    visits = shown.filter(pa.array(shown["label"].to_numpy() == 1))
    weight = 1.0 + np.arange(len(visits)) % 3
    pq.write_table(visits.append_column("sure", pa.array(weight)), tmp_path / "city/interactions.parquet")
    (tmp_path / "city/manifest.json").unlink()
    named: dict[str, Any] = {"labels": ["order"], "amount": "gmv", "weight": "sure"}
    data = prepare(PrepareConfig(input=tmp_path / "city", out=tmp_path / "data", **named))
    orders = 0
    for b in SampleLoader(data, "train", 128):
        drawn = b.label == 0
        assert not b.own["order"][drawn].any() and not b.own["gmv"][drawn].any()
        orders += int(b.own["order"].sum())
        assert len(b.own["sure"]) == len(b.user) and set(b.own["sure"].tolist()) <= {1.0, 2.0, 3.0}
    assert orders == read_manifest(data, "prepared")["outcomes"]["train"]["positives"]["order"] > 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": 2}, r"row 7, column 'order': got 2, expected 0 or 1"),
        ({"order": None}, r"row 7, column 'order': got None, expected 0 or 1, not null"),
        ({"paid": -3.0}, r"row 7, column 'paid': got -3.0, expected an amount in \[0, 1e12\]"),
        ({"paid": float("nan")}, r"row 7, column 'paid': got nan, expected an amount"),
        ({"sure": -0.5}, r"row 7, column 'sure': got -0.5, expected a weight in \[0, 1e12\]"),
        ({"sure": float("inf")}, r"row 7, column 'sure': got inf, expected a weight"),
    ],
)
def test_bad_values_are_told_by_row(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    ((name, value),) = changed.items()
    shown = with_outcomes()
    values = shown[name].to_pylist()
    values[7] = value
    shown = shown.set_column(shown.column_names.index(name), name, pa.array(values))
    raw = write_delivery(tmp_path / "raw", interactions=shown)
    with pytest.raises(DataError, match=message):
        prepare(PrepareConfig(input=raw, out=tmp_path / "data", **NAMED))
    assert not (tmp_path / "data").exists()
    aside = prepare(PrepareConfig(input=raw, out=tmp_path / "aside", on_bad_rows="skip", **NAMED))
    assert sum(r["rows"] for r in read_manifest(aside, "prepared")["rejected"]) == 1


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    raw = write_delivery(tmp_path / "raw", interactions=with_outcomes(order=["yes"] * 3000))
    with pytest.raises(DataError, match=r"the interactions have no column 'ordr', .*; did you mean 'order'?"):
        prepare(PrepareConfig(input=raw, out=tmp_path / "data", labels=["ordr"]))
    with pytest.raises(DataError, match="column 'order': got type string, expected integer or boolean"):
        prepare(PrepareConfig(input=raw, out=tmp_path / "data", labels=["order"]))
    (raw / "features.toml").write_text('[interactions.paid]\nkind = "number"\n')
    with pytest.raises(DataError, match=r"\[interactions.paid\]: it is a label, amount or weight"):
        prepare(PrepareConfig(input=raw, out=tmp_path / "data", amount="paid"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ("label",)}, "labels: got 'label', which is always one; leave it out"),
        ({"amount": "timestamp"}, "amount: got 'timestamp', which the schema gives another meaning"),
        ({"labels": ("a", "a")}, "labels: got 'a', expected names of columns, each once in all"),
        ({"labels": ("a",), "weight": "a"}, "weight: got 'a', expected names of columns, each once in all"),
    ],
)
def test_names_are_checked_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outcomes(**settings)
    with pytest.raises(ValueError, match=message):
        PrepareConfig(input=Path("a"), out=Path("b"), **settings)


def test_without_any_nothing_changes(tmp_path: Path) -> None:
    raw = write_delivery(tmp_path / "raw")
    manifest = read_manifest(prepare(PrepareConfig(input=raw, out=tmp_path / "data")), "prepared")
    assert "outcomes" not in manifest
    assert not any(torch.is_tensor(b.own.get("order")) for b in SampleLoader(tmp_path / "data", "train", 64))
