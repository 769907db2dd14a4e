"""The recipe for Spark in docs/scale.md gives what ``prepare`` writes. Runs where pyspark and Java are installed."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import impressions, requests, run, visits, write

from placerank.data.preparation import prepare as module
from placerank.data.preparation.prepare import PrepareConfig
from placerank.data.requests import SPLITS

SCALE = Path(__file__).resolve().parents[3] / "docs" / "scale.md"
CODE = re.search(r"^```python\n(.*?def samples_and_counts\(.*?)^```$", SCALE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_recipe_is_python_of_names_that_are_there() -> None:
    assert CODE is not None
    compile(CODE[1], str(SCALE), "exec")
    for where, names in re.findall(r"^from (placerank\S+) import (\([^)]*\)|.*)$", CODE[1], re.MULTILINE):
        of = importlib.import_module(where)
        assert all(hasattr(of, name.strip()) for name in names.strip("()").split(",") if name.strip())


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    settings = {"spark.sql.shuffle.partitions": 3, "spark.driver.host": "127.0.0.1", "spark.ui.enabled": False}
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield session
    session.stop()


@pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="pyspark is not installed, or no Java",
)
@pytest.mark.parametrize("kind", ["impressions", "visits"])
def test_samples_and_counts(tmp_path: Path, kind: str, request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setattr(module, "_BUCKET_ROWS", 60)
    source = impressions(users=30) if kind == "impressions" else visits(users=30)
    raw, user_id = write(tmp_path / "raw", source), pa.string() if kind == "impressions" else pa.int64()
    table = pq.read_table(raw / "interactions.parquet")
    pq.write_table(table, raw / "interactions.parquet", row_group_size=37)
    folder = run(raw, train_negatives=2)
    assert CODE is not None
    recipe: dict[str, Any] = {}
    exec(CODE[1], recipe)
    config = PrepareConfig(input=raw, out=tmp_path / "out", train_negatives=2)
    samples, counts = recipe["samples_and_counts"](
        request.getfixturevalue("spark"), config, user_id, -(-len(table) // 60), 4
    )
    made = samples.toArrow().to_pylist()
    for i, name in enumerate(SPLITS):
        mine = [{k: x for k, x in row.items() if k != "split"} for row in made if row["split"] == i]
        theirs = requests(folder, name)
        assert str(sorted(mine, key=lambda r: r["request"])) == str(sorted(theirs, key=lambda r: r["request"]))
    summed = (
        counts.selectExpr("inline(arrays_zip(item, shown, positives, last_positive))")
        .groupBy("item")
        .agg({"shown": "sum", "positives": "sum", "last_positive": "max"})
    )
    got = {row["item"]: row for row in summed.collect()}
    for at, row in enumerate(pq.read_table(folder / "catalog.parquet").to_pylist()[1:]):
        if row["impressions"]:
            assert got[at]["sum(shown)"] == row["impressions"] and got[at]["sum(positives)"] == row["positives"]
            assert got[at]["max(last_positive)"] == row["last_positive"]
        else:
            assert at not in got
