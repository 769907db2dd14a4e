"""A trained run to an export folder, and scores from it equal to the trainer's."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from placerank.data.batches.features import FeatureConfig, Features, Table, build_features
from placerank.data.batches.loader import SampleLoader
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.embeddings.delta import apply_delta
from placerank.embeddings.reader import load_table
from placerank.rankers.dense import RankerConfig, Scorer
from placerank.rankers.exported import ExportedRanker, export_scorer, load_features, save_features
from placerank.training.checkpoint import saved_steps
from placerank.training.export import ExportConfig, export
from placerank.training.inference import load_scorer
from placerank.training.model import OptimizerConfig
from placerank.training.runtime import runtime
from placerank.training.sharding import ShardingConfig
from placerank.training.train import TrainConfig, train

BATCH = 97
MIXED = {"item": "row_wise", "category": "column_wise", "user": "row_wise", "hour": "column_wise"}


def train_run(data: Path, run: Path) -> None:
    train(
        TrainConfig(
            data=data,
            run=run,
            features=FeatureConfig(embedding_dim=8),
            ranker=RankerConfig(mlp=[16]),
            sharding=ShardingConfig(tables=MIXED),
            optimizer=OptimizerConfig(table_lr=0.2, dense_lr=0.02),
            batch_size=BATCH,
            epochs=1,
        )
    )


def trainer_scores(data: Path, run: Path) -> Tensor:
    """Logits of this rank's part of the test split, by the trainer's own sharded model."""
    with runtime(0) as rt:
        score, _, _ = load_scorer(run, rt)
        batches = SampleLoader(data, "test", BATCH, rank=rt.rank, world_size=rt.world_size)
        return torch.cat([score(sample)[: sample.valid] for sample in batches])


def exported_scores(data: Path, folder: Path) -> Tensor:
    ranker = ExportedRanker.load(folder)
    return torch.cat([ranker.score(sample) for sample in SampleLoader(data, "test", BATCH + 30)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``raw``, ``data``, ``run`` (one rank), ``logits`` of the test split, ``out`` (a fp32 Parquet export)."""
    folder = tmp_path_factory.mktemp("trained")
    raw = simulate(SimulateConfig(out=folder / "raw", items=200, users=90, requests=400, candidates=8, cities=3))
    data, run = prepare(PrepareConfig(input=raw, out=folder / "data")), folder / "run"
    train_run(data, run)
    out = export(ExportConfig(run=run, out=folder / "export", block_rows=64))
    return SimpleNamespace(raw=raw, data=data, run=run, logits=trainer_scores(data, run), out=out)


def assert_same_scores(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape and want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.sigmoid(), want.sigmoid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("format", ["parquet", "safetensors", "npy", "faiss"])
def test_scores_equal_the_trainers(format: str, trained: SimpleNamespace, tmp_path: Path) -> None:
    out = trained.out if format == "parquet" else tmp_path / "export"
    if format != "parquet":
        export(ExportConfig(run=trained.run, out=out, format=format, checkpoint="latest", block_rows=50))
    assert_same_scores(exported_scores(trained.data, out), trained.logits)


def test_scores_equal_those_of_two_ranks(
    trained: SimpleNamespace, ranks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """Tables cut by rows and by columns over two ranks; scored there, and from the export."""
    ranks(2, train_run, trained.data, tmp_path / "run")
    logits = torch.cat(ranks(2, trainer_scores, trained.data, tmp_path / "run"))
    assert not torch.allclose(logits, trained.logits, atol=1e-3), "another run than the fixture's"
    out = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "export", format="npy"))
    assert_same_scores(exported_scores(trained.data, out), logits)


def test_smaller_types_score_about_the_same(trained: SimpleNamespace, tmp_path: Path) -> None:
    off = {}
    for dtype in ("fp16", "int8", "int4"):
        out = export(ExportConfig(run=trained.run, out=tmp_path / dtype, format="npy", dtype=dtype))
        off[dtype] = (exported_scores(trained.data, out) - trained.logits).abs().max().item()
    assert off["fp16"] < 0.01 < trained.logits.std() and off["fp16"] < off["int8"] < off["int4"]
    assert off["int8"] < 0.1 * trained.logits.std() and off["int4"] < trained.logits.std()


def test_the_folder_is_described(trained: SimpleNamespace) -> None:
    manifest = read_manifest(trained.out, "export", verify=True)
    prepared = read_manifest(trained.data, "prepared")
    assert manifest["made_from"]["prepared"] == prepared["content_hash"]
    assert len(manifest["made_from"]["checkpoint"]) == 64
    assert manifest["step"] in saved_steps(trained.run / "checkpoints")
    assert manifest["config"]["dtype"] == "fp32"
    assert manifest["tables"]["item"] == {
        "rows": prepared["tables"]["item"],
        "dim": 8,
        "format": "parquet",
        "dtype": "fp32",
        "file": "item.parquet",
    }
    assert "tables/item.parquet" in manifest["files"] and "scorer.pt2" in manifest["files"]


def test_vectors_by_raw_id(trained: SimpleNamespace) -> None:
    item = load_table(trained.out, "item")
    ids = pq.read_table(trained.data / "catalog.parquet")["item_id"].to_pylist()
    assert item.ids.to_pylist() == ids and ids[0] is None
    assert torch.equal(item.lookup(ids[:0:-1]), item.vectors().flip(0)[:-1])
    nodes = pq.read_table(trained.data / "vocab" / "category.parquet")["value"].to_pylist()
    assert load_table(trained.out, "category_path").ids.to_pylist() == nodes
    assert load_table(trained.out, "hour").ids.to_pylist() == list(range(168))
    users = pq.read_table(trained.data / "users.parquet")["user_id"].to_pylist()
    assert load_table(trained.out, "user").ids.to_pylist() == users


def test_ids_are_integers_for_pandas_in_every_file(trained: SimpleNamespace) -> None:
    """Simulated users have integer ids, and row 0 has none."""
    for name, column in (("users", "user_id"), ("tables/user", "id")):
        note = json.loads(pq.read_schema(trained.out / f"{name}.parquet").metadata[b"pandas"])
        assert [(c["name"], c["numpy_type"]) for c in note["columns"]] == [(column, "Int64")]


def test_damage_is_told_on_load(trained: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "export"
    shutil.copytree(trained.out, out)
    for name in ("scorer.pt2", "features.json", "catalog.parquet", "users.parquet", "tables/hour.parquet"):
        good = (out / name).read_bytes()
        (out / name).write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        with pytest.raises(ValueError, match=rf"{name}: content differs from what was written \(sha256\)"):
            ExportedRanker.load(out)
        (out / name).write_bytes(good)
    ExportedRanker.load(out)


def test_some_tables(trained: SimpleNamespace, tmp_path: Path) -> None:
    out = export(ExportConfig(run=trained.run, out=tmp_path / "export", tables=["item", "user"], format="npy"))
    assert sorted(p.name for p in (out / "tables").iterdir()) == [
        "item.ids.parquet",
        "item.npy",
        "user.ids.parquet",
        "user.npy",
    ]
    assert torch.equal(load_table(out, "item").vectors(), load_table(trained.out, "item").vectors())
    ranker = ExportedRanker.load(out)
    with pytest.raises(ValueError, match=r"needs the tables .*hour.*, which this export leaves out; export all"):
        ranker.score(next(iter(SampleLoader(trained.data, "test", 3))))


FEATURES = Features(
    sequence=(Table("item", 9, 8, ("item",)),), pooled=(Table("user", 5, 4, ("user",)),), dense=("visits",)
)


def scorer_inputs(samples: int, entries: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(samples * 100 + entries)
    offsets = torch.zeros(samples + 1, dtype=torch.int64)
    if samples:
        owner = torch.randint(0, samples, (entries,), generator=g)
        offsets[1:] = owner.bincount(minlength=samples).cumsum(0)
    items = 1 + entries // 2
    places = [torch.randint(0, items, (n,), generator=g) for n in (samples, entries)]
    shapes = ((entries, 2), (samples, 4), (samples, 1))
    return torch.randn(items, 8, generator=g), *places, offsets, *(torch.randn(s, generator=g) for s in shapes)


def test_dense_part_takes_any_sizes_and_needs_no_placerank(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scorer = Scorer(FEATURES, RankerConfig(mlp=[8])).eval()
    export_scorer(scorer, FEATURES, tmp_path / "scorer.pt2")
    sizes = [(1, 0), (1, 1), (1, 7), (2, 0), (2, 1), (5, 17), (64, 1000), (0, 0)]
    cases = [(inputs := scorer_inputs(*size), scorer(*inputs).detach()) for size in sizes]
    torch.save(cases, tmp_path / "cases.pt")
    code = """
import sys, torch
program = torch.export.load("scorer.pt2").module()
for inputs, want in torch.load("cases.pt"):
    torch.testing.assert_close(program(*inputs), want, rtol=1e-6, atol=1e-6)
assert not any("placerank" in name for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_a_tower_that_cannot_be_exported_is_told(tmp_path: Path) -> None:
    class Stubborn(nn.Module):
        def forward(self, query: Tensor, history: Any, context: Any = None) -> Tensor:
            return query if query.sum().item() > 0 else -query

    scorer = Scorer(FEATURES, RankerConfig())
    scorer.tower = Stubborn()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"torch.export can't take the tower Stubborn: "):
        export_scorer(scorer, FEATURES, tmp_path / "scorer.pt2")


def test_features_come_back(tmp_path: Path) -> None:
    sizes = {"item": 9, "user": 5, "category": 4, "brand": 3, "price": 3, "city": 2, "age": 4}
    features = build_features(FeatureConfig(), sizes, ["age"])
    save_features(features, tmp_path / "features.json")
    assert load_features(tmp_path / "features.json") == features


def test_settings_are_checked() -> None:
    paths = {"run": Path("run"), "out": Path("out")}
    for wrong, told in (
        ({"format": "csv"}, "format='csv': expected one of parquet, safetensors, npy, faiss"),
        ({"format": "faiss-hnsw", "since": "export"}, "since with format=faiss-hnsw: what a delta makes is compared"),
        ({"dtype": "fp64"}, "dtype='fp64': expected one of fp32, fp16, int8, int4"),
        ({"format": "faiss", "dtype": "int8"}, "dtype='int8': a FAISS index takes fp32 or fp16"),
        ({"block_rows": 0}, "block_rows=0: expected at least 1"),
        ({"tables": ["item", "item"]}, r"tables=\['item', 'item'\]: expected one or more names, each once"),
    ):
        with pytest.raises(ValueError, match=told):
            ExportConfig(**paths, **wrong)  # type: ignore[arg-type]


def test_bad_input_is_told(trained: SimpleNamespace, tmp_path: Path) -> None:
    def told(error: type[Exception], text: str, **changes: Any) -> None:
        with pytest.raises(error, match=text):
            export(ExportConfig(**{"run": trained.run, "out": tmp_path / "out", **changes}))

    told(ValueError, r"tables: got 'shop', this ranker has item, category", tables=["item", "shop"])
    told(FileNotFoundError, r"expected a folder that `placerank train` made", run=tmp_path)
    told(FileNotFoundError, r"has no checkpoint of step 99999; it has ", checkpoint="99999")
    told(FileExistsError, r"exists; choose another folder, or pass --overwrite", out=trained.out)
    other = prepare(PrepareConfig(input=trained.raw, out=tmp_path / "fewer", min_user_positives=3))
    told(ValueError, r"trained on other ids than .*: user \(\d+ ids, now \d+ others\). Name with --data", data=other)
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    for file in run.glob("checkpoints/*/*.distcp"):
        with open(file, "r+b") as f:
            f.seek(900)
            f.write(b"damage")
    told(ValueError, r"differs from what was written \(sha256\)", run=run)
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_what_was_there(trained: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained.out, out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))  # the system then refuses to let a file grow further
    try:
        with pytest.raises(OSError):
            export(ExportConfig(run=trained.run, out=out, format="npy", overwrite=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    read_manifest(out, "export", verify=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_delta_of_a_run_leads_to_its_whole_export(trained: SimpleNamespace, tmp_path: Path) -> None:
    whole = export(ExportConfig(run=trained.run, out=tmp_path / "whole", checkpoint="latest", block_rows=50))
    delta = export(
        ExportConfig(run=trained.run, out=tmp_path / "delta", checkpoint="latest", block_rows=50, since=trained.out)
    )
    assert not (delta / "whole").exists()
    out = apply_delta(trained.out, delta, tmp_path / "out")
    hashes = [read_manifest(folder, "export", verify=True)["files"] for folder in (whole, out)]
    assert hashes[0] == hashes[1]
    assert_same_scores(exported_scores(trained.data, out), trained.logits)
    with pytest.raises(
        ValueError, match=r"since: .* has the table 'item' as parquet fp32, got format=npy dtype=int8; give"
    ):
        export(ExportConfig(run=trained.run, out=tmp_path / "d", since=trained.out, format="npy", dtype="int8"))
