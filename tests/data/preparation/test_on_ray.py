"""``prepare --engine ray``: the same bytes as the built-in way, the same errors. Runs where Ray is installed."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_tables import impressions, run, same, visits, write

from placerank.data.manifest import read_manifest
from placerank.data.preparation import prepare as module
from placerank.data.raw.columns import DataError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements/ray.txt"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


def parts(folder: Path, source: dict[str, Any]) -> Path:
    """A raw folder whose interactions are three files of many row groups, one of them empty."""
    write(folder, source)
    table = pa.table(source)
    (folder / "interactions.parquet").unlink()
    (folder / "interactions").mkdir()
    for i, rows in enumerate((table.slice(0, 90), table.slice(0, 0), table.slice(90))):
        pq.write_table(rows, folder / "interactions" / f"{i}.parquet", row_group_size=37)
    return folder


@needs_ray
@pytest.mark.parametrize("kind", ["impressions", "own columns", "visits", "bad rows"])
def test_the_same_bytes(tmp_path: Path, cluster: None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKET_ROWS", 60)
    source, options = (visits(users=30) if kind == "visits" else impressions(users=30)), {"train_negatives": 2}
    if kind == "own columns":
        rng = np.random.default_rng(0)
        source |= {"fee": rng.random(400), "device": [("ios", "web", None)[i] for i in rng.integers(0, 3, 400)]}
        source |= {"order": rng.integers(0, 2, 400), "paid": rng.random(400), "sure": rng.random(400)}
        options |= {"labels": ["order"], "amount": "paid", "weight": "sure"}
    if kind == "bad rows":
        source["label"][::9] = 7
        source["user_id"][1] = None
        options |= {"on_bad_rows": "skip"}
    raw = parts(tmp_path / "raw", source)
    monkeypatch.chdir(tmp_path)
    mine = run(Path("raw"), out=Path("mine"), engine="ray", **options)
    theirs = run(raw, out=tmp_path / "theirs", **options)
    assert same(mine, theirs)
    manifests = [read_manifest(folder, "prepared") for folder in (mine, theirs)]
    for manifest in manifests:
        for name in ("created", "config", "environment"):
            del manifest[name]
    assert manifests[0] == manifests[1]
    assert len(list((mine / "train").iterdir())) > 4, "several buckets"
    assert (mine / "rejected").exists() == (kind == "bad rows")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "raw", "theirs"]


@needs_ray
def test_errors_are_those_of_the_built_in_way(tmp_path: Path, cluster: None) -> None:
    source = impressions()
    source["label"][-1] = 3
    raw = parts(tmp_path / "raw", source)
    with pytest.raises(DataError, match=r"2.parquet: row 309, column 'label': got 3, expected 0 or 1") as told:
        run(raw, out=tmp_path / "out", engine="ray")
    assert told.type is DataError
    source = impressions() | {"request_id": ["one"] * 400}
    with pytest.raises(DataError, match="a request_id of user 'u0' has rows at"):
        run(write(tmp_path / "again", source), out=tmp_path / "out", engine="ray")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "raw"]


@needs_ray
def test_a_worker_that_dies_does_its_bucket_again(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from placerank.data.preparation import on_ray

    write_samples, died = module.write_samples, tmp_path / "died"

    def dies_once(work: Path, number: int, *more: Any) -> Any:
        made = write_samples(work, number, *more)
        if not died.exists():
            died.touch()
            os._exit(1)
        return made

    monkeypatch.setattr(on_ray, "write_samples", dies_once)
    raw = write(tmp_path / "raw", impressions())
    mine = run(raw, out=tmp_path / "mine", engine="ray")
    assert died.exists() and same(mine, run(raw, out=tmp_path / "theirs"))


@needs_ray
def test_ray_and_ranks_are_not_for_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from placerank.data.preparation.on_ray import RayJob
    from placerank.data.ranks import Ranks

    with pytest.raises(ValueError, match=r"got 'ray' and --nproc 2, expected one process.*leave out --nproc"):
        RayJob(module.PrepareConfig(input=tmp_path, out=tmp_path / "out"), tmp_path, None, Ranks(0, 2))


def test_workers_do_not_wait_for_torch() -> None:
    code = "import sys, placerank.data.preparation.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_to_install_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "placerank.data.preparation.on_ray", raising=False)
    raw = write(tmp_path / "raw", impressions())
    with pytest.raises(ValueError, match=r"engine: got 'ray'.*pip install 'placerank\[ray\]', or leave out --engine"):
        run(raw, engine="ray")
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
