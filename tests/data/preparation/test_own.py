"""Own columns: what they are taken for, what of them is written, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from delivery import SHOWN, START, delivery, write_delivery

from placerank.data.batches.loader import SampleLoader
from placerank.data.manifest import read_manifest
from placerank.data.preparation.own import Extra, quantile_edges
from placerank.data.preparation.own_plan import auc_alone, only_chosen
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.data.raw.columns import DataError


def run(raw: Path, toml: str = "", **options: Any) -> Path:
    if toml:
        (raw / "features.toml").write_text(toml)
    return prepare(PrepareConfig(input=raw, out=raw.parent / "out", overwrite=True, **options))


def column(folder: Path, file: str, name: str) -> list[Any]:
    return pq.read_table(folder / file, columns=[name])[name].to_pylist()


def own(folder: Path) -> dict[str, dict[str, Any]]:
    return {f["name"]: f for f in read_manifest(folder, "prepared")["own"]}


def test_kinds_follow_from_types(tmp_path: Path) -> None:
    folder = run(write_delivery(tmp_path / "raw"))
    found = {name: (f["of"], f["kind"], f["joins"]) for name, f in own(folder).items()}
    assert found == {
        "plan": ("users", "category", "user"),
        "age": ("users", "buckets", "user"),
        "likes": ("users", "list", "user"),
        "rating": ("items", "buckets", "target"),
        "cuisines": ("items", "list", "target"),
        "vip": ("items", "category", "target"),
        "opened": ("items", "buckets", "target"),
        "kitchen": ("items", "category", "target"),
        "fee": ("interactions", "buckets", "candidate"),
        "device": ("interactions", "category", "request"),
    }
    manifest = read_manifest(folder, "prepared")
    assert manifest["tables"]["rating"] == 17 and manifest["tables"]["cuisines"] == 6
    told = manifest["summary"]
    assert told["unused_columns"] == {
        "items": ['address (text that differs from row to row; features.toml can say kind = "category")']
    }
    assert "interactions.device (string): category of 3 values, joins the request" in told["own_columns"]
    assert "items.rating (double): 16 buckets, joins the target" in told["own_columns"] and told["warnings"] == []


def test_samples_have_what_the_source_has(tmp_path: Path) -> None:
    """Row by row against the raw table, by user, time and item."""
    folder = run(write_delivery(tmp_path / "raw"))
    _, _, rows = delivery()
    train_end = read_manifest(folder, "prepared")["splits"]["valid"]["time"][0]
    fees = np.array([f for f, t in zip(rows["fee"].to_pylist(), rows["timestamp"].to_pylist(), strict=True)
                     if t < train_end], np.float32)  # fmt: skip
    edges = quantile_edges(fees, 16)
    devices = column(folder, "vocab/device.parquet", "value")
    assert devices == [None, "android", "ios", "web"]
    ids = column(folder, "catalog.parquet", "item_id")
    source = {(r["timestamp"], r["item_id"], round(r["fee"], 2)): r for r in rows.to_pylist()}
    seen = 0
    for split in ("train", "valid", "test"):
        for batch in SampleLoader(folder, split, 64):
            assert batch.own["device"].shape == batch.time.shape and batch.own["fee"].shape == batch.label.shape
            for b in range(batch.valid):
                time, item = int(batch.time[batch.request[b]]), ids[int(batch.item[b])]
                fits = [r for (t, i, _), r in source.items() if (t, i) == (time, item)]
                bucket = int(batch.own["fee"][b])
                assert bucket in [1 + int(np.searchsorted(edges, np.float32(r["fee"]), "right")) for r in fits]
                assert devices[int(batch.own["device"][batch.request[b]])] == fits[0]["device"]
                seen += 1
    assert seen == len(rows)


def test_catalog_and_users(tmp_path: Path) -> None:
    toml = '[items.rating]\nkind = "number"\n[users.age]\nkind = "number"\n[items.kitchen]\nrows = 100\n'
    folder = run(write_delivery(tmp_path / "raw"), toml)
    items, users, _ = delivery()
    catalog = pq.read_table(folder / "catalog.parquet")
    by_id = {r["item_id"]: r for r in items.to_pylist()}
    words = column(folder, "vocab/cuisines.parquet", "value")
    about = own(folder)
    known = [r["rating"] for r in by_id.values() if r["rating"] is not None]
    assert about["rating"]["mean"] == pytest.approx(np.mean(known))
    assert about["rating"]["scale"] == pytest.approx(np.std(known)) and about["rating"]["table"] is None
    first, *rest = catalog.to_pylist()
    assert (first["cuisines_rows"], first["vip_row"]) == ([], 0) and first["rating_number"] != first["rating_number"]
    hashed: dict[Any, int] = {}
    for row in rest:
        raw = by_id[row["item_id"]]
        assert [words[i] for i in row["cuisines_rows"]] == raw["cuisines"]
        if raw["rating"] is None:
            assert row["rating_number"] != row["rating_number"]
        else:
            want = (raw["rating"] - about["rating"]["mean"]) / about["rating"]["scale"]
            assert row["rating_number"] == pytest.approx(want, rel=1e-5)
        assert hashed.setdefault(raw["kitchen"], row["kitchen_row"]) == row["kitchen_row"]
    assert hashed[None] == 0 and 1 <= hashed["gas"] <= 100
    assert read_manifest(folder, "prepared")["tables"]["kitchen"] == 101
    assert not (folder / "vocab" / "kitchen.parquet").exists()
    age = {r["user_id"]: r["age"] for r in users.to_pylist()}
    for row in pq.read_table(folder / "users.parquet").to_pylist()[1:]:
        want = (age[row["user_id"]] - about["age"]["mean"]) / about["age"]["scale"]
        assert row["age_number"] == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_shared_tables_and_what_is_left_out(tmp_path: Path) -> None:
    toml = (
        '[items.cuisines]\ntable = "cuisine"\n[users.likes]\ntable = "cuisine"\n[items.opened]\nuse = false\n'
        '[items.kitchen]\njoins = "history"\n[items.vip]\nwidth = 12\n[items.address]\nkind = "category"\n'
    )
    folder = run(write_delivery(tmp_path / "raw"), toml)
    found = own(folder)
    assert found["cuisines"]["table"] == found["likes"]["table"] == "cuisine" and "opened" not in found
    assert (found["kitchen"]["joins"], found["vip"]["width"]) == ("history", 12) and "address" in found
    words = column(folder, "vocab/cuisine.parquet", "value")
    assert words == [None, "burger", "pizza", "ramen", "thai", "vegan"]
    likes = dict(zip(*(column(folder, "users.parquet", c) for c in ("user_id", "likes_rows")), strict=True))
    assert [words[i] for i in likes["u2"]] == ["vegan"]
    assert read_manifest(folder, "prepared")["summary"]["unused_columns"] == {
        "items": ["opened (left out as declared)"]
    }


def test_any_engine_gives_the_same_bytes(tmp_path: Path) -> None:
    """The order of the input's rows and how they are cut into row groups change nothing."""
    raw = write_delivery(tmp_path / "a" / "raw")
    rows = delivery()[2]
    other = write_delivery(
        tmp_path / "b" / "raw", interactions=rows.take(np.random.default_rng(1).permutation(len(rows)))
    )
    one, two = (read_manifest(run(folder), "prepared")["files"] for folder in (raw, other))
    assert one == two


def test_a_value_of_later_days_alone_has_row_0(tmp_path: Path) -> None:
    _, _, rows = delivery()
    late = pc.greater(rows["timestamp"], START + 600 * 580)
    rows = rows.set_column(rows.schema.get_field_index("device"), "device", pc.if_else(late, "watch", rows["device"]))
    folder = run(write_delivery(tmp_path / "raw", interactions=rows))
    assert column(folder, "vocab/device.parquet", "value") == [None, "android", "ios", "web"]
    assert any((b.own["device"] == 0).any() for b in SampleLoader(folder, "test", 64))


def test_a_column_that_gives_away_the_label_is_told(tmp_path: Path) -> None:
    _, _, rows = delivery()
    paid = pc.if_else(pc.equal(rows["label"], 1), 12.5, None)
    folder = run(write_delivery(tmp_path / "raw", interactions=rows.append_column("paid", paid)))
    (warning,) = read_manifest(folder, "prepared")["summary"]["warnings"]
    assert warning.startswith("interactions.paid alone tells the label (AUC 1.000 in training)")


def test_what_a_request_shares(tmp_path: Path) -> None:
    """Known on some rows alone, and declared to be of the request: all candidates have the first known value."""
    _, _, rows = delivery()
    some = np.arange(len(rows)) % SHOWN == 2
    rows = rows.set_column(
        rows.schema.get_field_index("device"), "device", pc.if_else(pa.array(some), rows["device"], None)
    )
    raw = write_delivery(tmp_path / "raw", interactions=rows)
    assert own(run(raw))["device"]["joins"] == "candidate"
    folder = run(raw, '[interactions.device]\njoins = "request"\n')
    assert own(folder)["device"]["joins"] == "request"
    assert all((b.own["device"] > 0).all() for b in SampleLoader(folder, "train", 64))


def test_visits_alone(tmp_path: Path) -> None:
    _, _, rows = delivery()
    rows = rows.filter(pc.equal(rows["label"], 1)).drop_columns("request_id")
    raw = write_delivery(tmp_path / "raw", interactions=rows)
    found = own(run(raw, train_negatives=2, eval_negatives=2))
    assert found["fee"]["joins"] == found["device"]["joins"] == "request"
    with pytest.raises(DataError, match=r"\[interactions.fee\]: joins = 'candidate', but all interactions are visits"):
        run(raw, '[interactions.fee]\njoins = "candidate"\n')


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[items.ratings]\n", r"\[items.ratings\]: there is no such column in items; did you mean 'rating'\?"),
        ('[items.kitchen]\nkind = "number"\n', r"\[items.kitchen\]: kind = 'number' does not fit its type string"),
        ('[items.price]\nkind = "number"\n', r"\[items.price\]: the schema gives this column its meaning"),
        ('[items.vip]\nkid = "x"\n', r"unknown setting 'kid', expected some of kind, .*did you mean 'kind'\?"),
        ('[items.vip]\nkind = "pooled"\n', r"kind: got 'pooled', expected one of category, buckets, number, list"),
        ('[items.vip]\njoins = "user"\n', r"joins = 'user', expected of items one of target, history"),
        ("[items.vip]\nwidth = 6\n", r"width = 6, expected a multiple of 4"),
        ('[items.vip]\ntable = "brand"\n', r"\[items.vip\]: table = 'brand': the name is taken"),
        ('[places.vip]\nuse = true\n', r"got \[places\], expected tables such as \[items.COLUMN\]"),
        ('[items.rating]\nkind = "number"\njoins = "history"\n', r"a number has no table"),
        ('[items.vip]\ntable = "x"\n[items.rating]\ntable = "x"\n', r"got kinds buckets, category"),
        ("items = 3\n[items.vip", r"is no TOML"),
    ],
)  # fmt: skip
def test_declarations_that_cannot_be(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(write_delivery(tmp_path / "raw"), toml)


def test_what_happens_after_the_choice_is_told(tmp_path: Path) -> None:
    """A third of the chosen rows were ordered, and no other: AUC alone stays far below the limit."""
    _, _, rows = delivery()
    ordered = [int(label == 1 and i % 3 == 0) for i, label in enumerate(rows["label"].to_pylist())]
    folder = run(write_delivery(tmp_path / "raw", interactions=rows.append_column("ordered", pa.array(ordered))))
    (warning,) = read_manifest(folder, "prepared")["summary"]["warnings"]
    assert "interactions.ordered: 3" in warning and "--labels" in warning
    values, label = np.array([1] * 40 + [0] * 80 + [2] * 3), np.array([1] * 40 + [0, 1] * 40 + [1] * 3)
    assert only_chosen(values, label) == pytest.approx(40 / 83)  # three may be by chance
    assert only_chosen(values, np.ones(123)) == only_chosen(values[:0], label[:0]) == 0


def test_auc_alone_is_that_of_pairs() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    values = rng.integers(0, 6, 400) + label
    learn, judge = slice(0, None, 2), slice(1, None, 2)
    prior = label[learn].mean()
    rate = {v: (label[learn][values[learn] == v].sum() + prior) / ((values[learn] == v).sum() + 1) for v in range(8)}
    score, y = np.array([rate[v] for v in values[judge]]), label[judge]
    pairs = score[y == 1][:, None] - score[y == 0][None]
    assert auc_alone(values, label) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auc_alone(np.arange(400), label) == 0.5 and auc_alone(values[:0], label[:0]) == 0.5
    assert auc_alone(values, np.ones(400)) == 0.5


def test_rows_of_values() -> None:
    hashes = np.array([-5, 3, 9], np.int64)
    about: dict[str, Any] = {"name": "own.x", "column": "own.x", "of": "request"}
    extra = Extra(form="vocabulary", hashes=hashes, rows=np.array([2, 1, 3], np.int32), **about)
    assert extra.of_values(np.array([9, 0, -5, 4, 3], np.int64)).tolist() == [3, 0, 2, 0, 1]
    numbers = Extra(form="buckets", edges=np.array([0.0, 1.0]), **about)
    assert numbers.of_values(np.array([-1, 0, 0.5, 1, np.nan], np.float32)).tolist() == [1, 2, 2, 3, 0]
    assert quantile_edges(np.array([1.0, 1.0, 2.0, np.nan]), 16).tolist() == [1.5]
    assert quantile_edges(np.array([np.nan]), 16).tolist() == []


def test_csv_is_taken_for_the_same(tmp_path: Path) -> None:
    """Dates, numbers, flags and lists as text are told apart as their types are, and make the same features."""
    one_word = '[users.likes]\nkind = "list"\n'  # nothing in the text says so
    parquet = run(write_delivery(tmp_path / "a" / "raw"), one_word)
    csv = run(write_delivery(tmp_path / "b" / "raw", csv=True), one_word, format="csv")
    assert own(parquet) == own(csv)
    for file in ("catalog", "users", "train/part-00000", "vocab/cuisines", "vocab/rating", "vocab/opened"):
        one, two = (pq.read_table(folder / f"{file}.parquet") for folder in (parquet, csv))
        assert str(one.to_pydict()) == str(two.to_pydict()), file  # as text NaN is NaN


def test_csv_values_that_do_not_fit(tmp_path: Path) -> None:
    raw = write_delivery(tmp_path / "raw", csv=True)
    lines = (raw / "interactions.csv").read_text().splitlines()
    block = 8 << 20
    filler = lines[1:] * (block // sum(map(len, lines[1:])) + 1)
    bad = lines[-1].rsplit(",", 2)
    (raw / "interactions.csv").write_text("\n".join([lines[0], *filler, ",".join([bad[0], "cheap", bad[2]]), ""]))
    with pytest.raises(DataError, match=r"column 'fee': got 'cheap', expected a number, as in the first rows"):
        run(raw, format="csv")
