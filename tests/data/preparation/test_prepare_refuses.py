"""What ``prepare`` refuses, or tells."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_tables import START, everything, impressions, run, warnings_of, write

from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig
from placerank.data.raw.columns import DataError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_length": 0}, "prepare.history_length=0: expected at least 1"),
        ({"valid_fraction": 1.0}, r"prepare.valid_fraction=1.0: expected a share in \[0, 1\)"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "expected a sum below 1"),
        ({"reach_km": 0.0}, "prepare.reach_km=0.0: expected more than 0 km"),
        ({"place_max_hours": float("nan")}, "prepare.place_max_hours=nan: expected a finite number"),
        ({"place_max_hours": -1.0}, "prepare.place_max_hours=-1.0: expected 0 hours or more"),
        ({"row_group_rows": 100_000}, "prepare.row_group_rows=100000: expected 1 to 65,536 rows"),
        ({"columns": {"user_id": "u"}}, "prepare.columns is for format 'csv' alone; got format 'parquet'"),
        ({"out": Path("raw")}, "prepare.out=raw is the input"),
    ],
)
def test_config_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"input": Path("raw"), "out": Path("out"), **options})


def test_one_class_only(tmp_path: Path) -> None:
    source = impressions()
    source["label"] = np.zeros(400, np.int8)
    with pytest.raises(DataError, match="all 400 interactions have label 0, expected some with label 1"):
        run(write(tmp_path / "raw", source))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_no_positive_in_train(tmp_path: Path) -> None:
    source = impressions()
    late = np.array([t.as_py().timestamp() > START + 55_000 for t in source["timestamp"]])
    source["label"] = late.astype(np.int8)
    with pytest.raises(DataError, match=r"the train split has \d+ samples and no positive"):
        run(write(tmp_path / "raw", source))
    source["label"] = 1 - source["label"]
    folder = run(write(tmp_path / "raw", source), test_fraction=0.05)
    assert "the test split holds only negatives: its AUC is undefined" in warnings_of(folder)


def test_one_moment_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the valid split is empty: 400 interactions run from 2020-09-13 12:26"):
        run(write(tmp_path / "raw", impressions(moments=1)))


def test_one_user_only(tmp_path: Path) -> None:
    folder = run(write(tmp_path / "raw", impressions(users=1)))
    assert "of one user only" in warnings_of(folder)
    assert read_manifest(folder, "prepared")["users"] == 1


def test_request_over_several_moments(tmp_path: Path) -> None:
    source = impressions()
    source["request_id"] = ["same"] * 400
    with pytest.raises(DataError, match=r"a request_id of user 'u\d' has rows at \d+ and at \d+.*expected one moment"):
        run(write(tmp_path / "raw", source))


def test_bad_rows(tmp_path: Path) -> None:
    source = impressions()
    source["item_id"][7] = "nowhere"
    with pytest.raises(DataError, match="row 7, column 'item_id': got 'nowhere'"):
        run(write(tmp_path / "raw", source))
    folder = run(tmp_path / "raw", on_bad_rows="skip")
    assert sum(len(x) for x in everything(folder).values()) == 399
    (told,) = read_manifest(folder, "prepared")["rejected"]
    assert told["rows"] == 1 and pq.read_table(folder / "rejected" / "interactions.parquet")["row"].to_pylist() == [7]


def test_missing_input_and_output_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare\.input=.*nothing not found"):
        run(tmp_path / "nothing")
    raw = write(tmp_path / "raw", impressions())
    run(raw)
    with pytest.raises(FileExistsError, match="out exists; choose another folder"):
        run(raw, overwrite=False)


def test_manifest_says_what_it_was_made_from(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", impressions())
    first = read_manifest(run(raw), "prepared")["made_from"]
    (raw / "manifest.json").write_text(json.dumps({"kind": "raw", "content_hash": "abc"}))
    assert read_manifest(run(raw), "prepared")["made_from"] == {"raw": "abc"} != first
    assert not (tmp_path / "out" / "buckets").exists()


def test_public_formats_and_csv(tmp_path: Path) -> None:
    """Read through ``convert``: lines that the reader sets aside and leaves out are told in one place."""
    lines = [
        f"{u}\t2010-10-{d:02}T10:00:00Z\t{50 + p / 100}\t4.0\tp{p}"
        for u in "ab"
        for d in range(1, 29)
        for p in (d % 5,)
    ]
    (tmp_path / "loc-gowalla_totalCheckins.txt").write_text(
        "\n".join([*lines, "a\t2010-10-01T10:00:00Z\t95\t4\tp7", ""])
    )
    source = tmp_path / "loc-gowalla_totalCheckins.txt"
    with pytest.raises(DataError, match=r"line \d+, column 'lat': got '95'"):
        run(source, format="gowalla")
    folder = run(source, format="gowalla", on_bad_rows="skip")
    told = read_manifest(folder, "prepared")
    assert told["left_out"] == {"check-ins without a location": 0} and sum(r["rows"] for r in told["rejected"]) == 1
    assert sum(s["positives"] for s in told["splits"].values()) == 56 and told["tables"]["item"] == 6
    folders = sorted(p.name for p in folder.iterdir() if p.is_dir())
    assert folders == ["next", "rejected", "sequences", "test", "train", "valid", "vocab"]
