"""The step as a whole on a small city: what it writes, restarts, ranks, new items, and what it refuses."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModel

from placerank.data.manifest import read_manifest
from placerank.tokenization.align import AlignConfig, align, encode_items, load_aligned, read_catalog
from placerank.tokenization.alignment import finetune as finetune_module
from placerank.tokenization.alignment.behaviour import BehaviourConfig
from placerank.tokenization.alignment.finetune import OptimizerSettings
from placerank.tokenization.alignment.gdpo import GDPOConfig
from placerank.tokenization.alignment.lora import LoraSettings
from placerank.tokenization.alignment.reward import RewardConfig
from placerank.tokenization.text.districts import DistrictConfig, Districts
from placerank.tokenization.text.encoders import EncoderConfig
from placerank.tokenization.text.prompts import PromptConfig
from placerank.tokenization.text.store import EmbeddingStore
from placerank.tokenization.work import partial_of


def config(data: Path, model: Path, out: Path, **changes: Any) -> AlignConfig:
    """Everything small; both steps."""
    fast = OptimizerSettings(learning_rate=2e-3, checkpoint_every=2)
    small = {
        "encoder": EncoderConfig(model=str(model)),
        "reward": RewardConfig(lists=60, negatives=5, held_out_lists=20, hidden=16, epochs=4),
        "gdpo": GDPOConfig(pairs=48, batch_pairs=12, cooccurrence_threshold=0, optimizer=fast),
        "behaviour": BehaviourConfig(
            pairs=48, users="mean", batch_pairs=12, cooccurrence_threshold=0, held_out_pairs=20, optimizer=fast
        ),
        "shard_rows": 128,
        "queries": 50,
    }
    return AlignConfig(data=data, out=out, **(small | changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "bert", initializer_range=0.3)


@pytest.fixture(scope="module")
def done(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; do not write into it."""
    return align(config(prepared, model, tmp_path_factory.mktemp("align") / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    """Files that two equal runs have in common to the byte: not those with times or paths in them."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in ("manifest.json",)}


def job(data: str, model: str, out: str, die_in: str = "", resume: bool = False) -> None:
    """A run that kills itself before the third step of behaviour or of G-DPO."""
    torch.set_num_threads(1)
    original, steps = finetune_module.schedule, {"behaviour": 3, "gdpo": 7}

    def schedule_or_die(step: int, total: int, warmup: float) -> float:
        seen.append(step)
        if die_in and len(seen) == steps[die_in]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(step, total, warmup)

    seen: list[int] = []
    finetune_module.schedule = schedule_or_die
    align(config(Path(data), Path(model), Path(out), resume=resume))
    finetune_module.schedule = original


def test_what_it_writes(done: Path, prepared: Path) -> None:
    manifest = read_manifest(done, "align", verify=True)
    assert manifest["made_from"]["data"] == read_manifest(prepared, "prepared")["content_hash"]
    items, _ = read_catalog(prepared)
    before, after = EmbeddingStore.open(done / "embeddings_before"), EmbeddingStore.open(done)
    for store in (before, after):
        assert store.ids.equals(items["item_id"].combine_chunks()) and store.dim == 32
    assert (before.tensor() - after.tensor()).norm(dim=1).min() > 1e-4
    assert before.made_from["adapter"] is None and len(after.made_from["adapter"]) == 64
    known = pq.read_table(prepared / "users.parquet")["user_id"].to_pylist()[1:]
    users = EmbeddingStore.open(done / "users", "user")
    assert set(users.ids.to_pylist()) <= set(known) and len(users) > 0.9 * len(known)
    report = json.loads((done / "report.json").read_text())
    assert report["gdpo"]["steps"] == 4 and sum(report["gdpo"]["pairs"].values()) == 48
    assert report["gdpo"]["pairs"]["collaborative"] == 24 and report["behaviour"]["pairs"] == {"items": 24, "users": 24}
    assert set(report["reward"]["held_out"]) == {"density", "uniform"} and len(report["reward"]["curve"]) == 4
    assert set(report["behaviour"]["held_out"]) == {"before", "after"}
    assert (
        report["embeddings"]["before"]["district"]["5"] > 0 and "reference_similarity" in report["embeddings"]["after"]
    )
    assert len((done / "gdpo_metrics.jsonl").read_text().splitlines()) == 4
    page = (done / "report.html").read_text()
    assert "The reward model on unseen items" in page and "Learning curves" in page
    assert report["prompts"]["texts"] == len(set(pq.read_table(done / "items.parquet")["content"].to_pylist()))
    assert "What the encoder can tell apart" in page
    table = pq.read_table(done / "items.parquet")
    assert table["content"][0].as_py() and table["district"].null_count == 0
    assert not (done / "steps").exists() and not (done / "districts.parquet").exists()


def test_vectors_are_those_of_prompts_by_the_saved_adapter(done: Path, prepared: Path, model: Path) -> None:
    from peft import PeftModel

    items, _ = read_catalog(prepared)
    stored = EmbeddingStore.open(done).tensor()[:20]
    torch.testing.assert_close(encode_items(done, items.slice(0, 20)), stored, rtol=1e-4, atol=1e-5)
    encoder = load_aligned(done)
    encoder.model = PeftModel.from_pretrained(AutoModel.from_pretrained(model), str(done / "adapter")).eval()
    table = pq.read_table(done / "items.parquet").slice(0, 20)
    texts = [f"{c} | {p}" for c, p in zip(table["content"].to_pylist(), table["location"].to_pylist(), strict=True)]
    torch.testing.assert_close(encoder.encode(texts), stored, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["behaviour", "gdpo"])
def test_killed_and_resumed_is_undisturbed(
    where: str, done: Path, prepared: Path, model: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    out = tmp_path / "out"
    ranks(1, job, str(prepared), str(model), str(out), where, killed=True)
    assert not out.exists() and (partial_of(out) / "whole/steps" / where / "checkpoint.pt").exists()
    job(str(prepared), str(model), str(out), resume=True)
    expected, got = contents(done), contents(out)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []


def test_two_ranks_write_one_folder(
    prepared: Path, model: Path, tmp_path: Path, ranks: Callable[..., list[Any]]
) -> None:
    ranks(2, job, str(prepared), str(model), str(tmp_path / "two"))
    read_manifest(tmp_path / "two", "align", verify=True)
    assert len(EmbeddingStore.open(tmp_path / "two")) == 300
    assert json.loads((tmp_path / "two/report.json").read_text())["gdpo"]["steps"] == 4


def test_an_earlier_adapter_encodes_new_items_the_same(done: Path, prepared: Path, tmp_path: Path) -> None:
    items, _ = read_catalog(prepared)
    (tmp_path / "raw").mkdir()
    pq.write_table(items.slice(100, 50), tmp_path / "raw/items.parquet")
    out = align(AlignConfig(data=tmp_path / "raw", out=tmp_path / "more", adapter=done))
    first, more = EmbeddingStore.open(done), EmbeddingStore.open(out)
    assert more.made_from == first.made_from and len(more) == 50
    torch.testing.assert_close(more.tensor(), first.tensor()[100:150], rtol=1e-4, atol=1e-5)
    again = align(AlignConfig(data=tmp_path / "raw", out=tmp_path / "again", adapter=out))  # and so on
    assert torch.equal(EmbeddingStore.open(again).tensor(), more.tensor())
    with pytest.raises(ValueError, match=r"gdpo: set, and adapter=.* brings its own; drop one"):
        AlignConfig(data=tmp_path, out=tmp_path, adapter=done, gdpo=GDPOConfig(pairs=3))


def test_raw_items_without_districts_or_visits(
    prepared: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items, _ = read_catalog(prepared)
    (tmp_path / "raw").mkdir()
    bare = items.drop_columns(["district", "province", "city"])
    pq.write_table(bare, tmp_path / "raw/items.parquet")
    few = GDPOConfig(pairs=12, batch_pairs=12)
    out = align(
        config(
            tmp_path / "raw",
            model,
            tmp_path / "out",
            gdpo=few,
            behaviour=BehaviourConfig(),
            districts=DistrictConfig(items_per_district=40),
        )
    )
    assert "0 collaborative pairs, 6 were wanted" in caplog.text
    report = json.loads((out / "report.json").read_text())
    assert report["gdpo"]["pairs"] == {"geographic": 12, "collaborative": 0} and "behaviour" not in report
    names = pq.read_table(out / "items.parquet")["location"].to_pylist()
    assert set(names) == set(Districts.load(out / "districts.parquet").names) and len(set(names)) == 8
    vectors = EmbeddingStore.open(out).tensor()[:5]
    torch.testing.assert_close(encode_items(out, bare.slice(0, 5)), vectors, rtol=1e-4, atol=1e-5)


def test_description_comes_from_the_raw_items(prepared: Path, model: Path, tmp_path: Path) -> None:
    items, _ = read_catalog(prepared)
    told = pa.array([f"d{i}" for i in items["item_id"].to_pylist()])
    pq.write_table(items.append_column("description", told).take(np.arange(299, -1, -1)), tmp_path / "items.parquet")
    joined, _ = read_catalog(prepared, tmp_path / "items.parquet")
    assert joined["description"].to_pylist() == told.to_pylist()


def test_without_training_the_model_encodes_as_it_is(prepared: Path, model: Path, tmp_path: Path, done: Path) -> None:
    users = BehaviourConfig(users="mean", history=3)  # of which nothing is learned
    out = align(replace(config(prepared, model, tmp_path / "out"), rung="none", behaviour=users))
    plain, before = EmbeddingStore.open(out), EmbeddingStore.open(done / "embeddings_before")
    torch.testing.assert_close(next(plain.chunks(300)), next(before.chunks(300)))
    assert not (out / "adapter").exists() and plain.made_from["adapter"] is None
    of_users, again = (
        EmbeddingStore.open(folder / "users", "user")
        for folder in (out, align(AlignConfig(data=prepared, out=tmp_path / "again", adapter=out)))
    )
    assert of_users.made_from == plain.made_from | {"users": {"by": "mean", "history": 3}} == again.made_from
    torch.testing.assert_close(of_users.tensor(), again.tensor(), rtol=1e-4, atol=1e-5)
    assert of_users.ids.equals(again.ids) and len(of_users) > 50
    with pytest.raises(ValueError, match=r"behaviour.users=mean: .* has no visits to make users of; expected the fold"):
        align(AlignConfig(data=prepared.parent / "raw", out=tmp_path / "raw", rung="none", behaviour=users))
    before = json.loads((done / "report.json").read_text())["embeddings"]["before"]
    here = json.loads((out / "report.json").read_text())["embeddings"]["here"]
    assert here.keys() == before.keys()
    for name in ("similarity", "city"):
        assert here[name] == pytest.approx(before[name], abs=0.01)
    page = (out / "report.html").read_text()
    assert "What is near in the embeddings" in page and "Nothing was trained" in page and "in its city (C@5)" in page


def test_what_it_refuses(prepared: Path, model: Path, tmp_path: Path, done: Path) -> None:
    out = tmp_path / "out"
    whole = config(prepared, model, out)
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        align(replace(whole, out=done))
    with pytest.raises(ValueError, match=r"BertModel has no layers named \['k_proj'\]"):
        align(replace(whole, lora=LoraSettings(targets=("k_proj",))))
    assert partial_of(out).exists()
    with pytest.raises(ValueError, match=r"was begun with other settings \(config\.lora\.targets"):
        align(replace(whole, resume=True))
    anew = replace(whole, overwrite=True)
    with pytest.raises(ValueError, match=r"encoder.images is set, and .* takes text alone"):
        align(replace(anew, encoder=replace(whole.encoder, images=True)))
    items, _ = read_catalog(prepared)
    raw = tmp_path / "raw"
    raw.mkdir()
    for table, text in (
        (items.slice(0, 1), "the 1 items have 1 different location texts"),
        (
            items.set_column(5, "lat", pa.array(np.full(300, 52.0))).set_column(6, "lon", pa.array(np.full(300, 5.0))),
            "all 300 items lie at one point",
        ),
    ):
        pq.write_table(table, raw / "items.parquet")
        with pytest.raises(ValueError, match=text):
            align(replace(anew, data=raw, behaviour=BehaviourConfig()))
    none = PromptConfig(content=("description",), location=())
    with pytest.raises(ValueError, match=r"none of the 300 items has any text in \['description'\]"):
        align(replace(anew, data=raw, behaviour=BehaviourConfig(), prompts=none))
    with pytest.raises(TypeError, match=r"rung: got 'dpo', expected one of none, dpo-pr"):
        config(prepared, model, out, rung="dpo")
    with pytest.raises(ValueError, match="resume and overwrite are both set"):
        config(prepared, model, out, resume=True, overwrite=True)


def test_a_damaged_adapter_is_told(done: Path, prepared: Path, tmp_path: Path) -> None:
    earlier = shutil.copytree(done, tmp_path / "earlier")
    weights = earlier / "adapter/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 8
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: content differs from what was written"):
        load_aligned(earlier)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: content differs from what was written"):
        align(AlignConfig(data=prepared, out=tmp_path / "out", adapter=earlier))
