"""``align`` as a whole with pictures: every step that learns sees them, in each family of models."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import SEES, tiny_model

from placerank.data.manifest import read_manifest
from placerank.tokenization.align import AlignConfig, align, encode_items, read_catalog
from placerank.tokenization.alignment.finetune import OptimizerSettings
from placerank.tokenization.alignment.settings import BehaviourConfig, GDPOConfig, RewardConfig
from placerank.tokenization.text.encoders import Encoder
from placerank.tokenization.text.pictures import Shown
from placerank.tokenization.text.settings import EncoderConfig
from placerank.tokenization.text.store import EmbeddingStore


@pytest.fixture(scope="module")
def raw(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items of which one in five has a picture, beside the table; ``other`` holds the same with other pictures."""
    folder = tmp_path_factory.mktemp("raw")
    items, _ = read_catalog(prepared)
    for part, seed in ((folder, 0), (folder / "other", 1)):
        (part / "pictures").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        names = [None if i % 5 else f"pictures/{i}.png" for i in range(len(items))]
        for name in filter(None, names):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(part / name)
        pq.write_table(items.append_column("image", pa.array(names)), part / "items.parquet")
    return folder


def config(data: Path, items: Path, model: Path, out: Path) -> AlignConfig:
    fast = OptimizerSettings(learning_rate=2e-3)
    return AlignConfig(
        data=data,
        items=items,
        out=out,
        encoder=EncoderConfig(model=str(model), images=True, batch_images=64),
        behaviour=BehaviourConfig(
            pairs=24, users="mean", batch_pairs=12, cooccurrence_threshold=0, held_out_pairs=0, optimizer=fast
        ),
        reward=RewardConfig(lists=12, negatives=3, held_out_lists=3, hidden=8, epochs=2),
        gdpo=GDPOConfig(pairs=12, batch_pairs=6, cooccurrence_threshold=0, optimizer=fast),
        queries=0,
    )


@pytest.mark.parametrize("kind", [kind for kind in SEES if kind != "siglip"])  # CLIP's kind once
def test_every_step_sees_pictures(
    kind: str, prepared: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []  # whether it learns, texts with pictures
    original = Encoder._of_shown

    def counted(self: Encoder, inputs: Any) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), len(inputs)))
        return original(self, inputs)

    monkeypatch.setattr(Encoder, "_of_shown", counted)
    out = align(config(prepared, raw, tiny_model(tmp_path / "model", kind), tmp_path / "out"))
    # vectors before; co-visits; the reward's and the reference's prompts; preferences; vectors after
    groups = [(learns, sum(n for _, n in calls)) for learns, calls in groupby(seen, lambda call: call[0])]
    assert [learns for learns, _ in groups] == [False, True, False, True, False]
    before, covisits, frozen, preferences, after = (count for _, count in groups)
    assert before == after == 60 and frozen > 10
    assert 5 < covisits < 60 and 0 < preferences < 24  # a fifth of what these steps read
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"] == 60 and report["behaviour"]["steps"] == report["gdpo"]["steps"] == 2
    assert "60 of 300 items are shown with a picture" in (out / "report.html").read_text()
    items, _ = read_catalog(prepared, raw)
    vectors = EmbeddingStore.open(out)
    assert vectors.made_from["encoder"]["images"] in ("by the chat template", "beside the text")
    torch.testing.assert_close(encode_items(out, items.slice(0, 12)), vectors.tensor()[:12], rtol=1e-4, atol=1e-5)
    if kind == "clip":  # both towers learn
        adapted = json.loads((out / "adapter/adapter_config.json").read_text())["target_modules"]
        assert {name.split(".")[0] for name in adapted} == {"text_model", "vision_model"}


def losses(out: Path) -> dict[str, list[float]]:
    found = {
        name: [json.loads(line)["loss"] for line in (out / f"{name}_metrics.jsonl").read_text().splitlines()]
        for name in ("behaviour", "gdpo")
    }
    curve = json.loads((out / "report.json").read_text())["reward"]["curve"]
    return found | {"reward": [line["loss"] for line in curve]}


def test_what_is_learned_depends_on_the_pictures(prepared: Path, raw: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "clip")
    one = config(prepared, raw, model, tmp_path / "one")
    first, other = (
        losses(align(replace(one, items=items, out=tmp_path / name)))
        for name, items in (("one", raw), ("two", raw / "other"))
    )
    for step in ("behaviour", "reward", "gdpo"):
        assert all(abs(a - b) > 1e-6 for a, b in zip(first[step], other[step], strict=True)), step
    read_manifest(tmp_path / "two", "align", verify=True)


def test_bad_pictures_are_told_before_anything_is_encoded(
    prepared: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(raw / "items.parquet")
    pq.write_table(table, tmp_path / "items.parquet")  # whose pictures are elsewhere
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("something was encoded"))
    bad = config(prepared, tmp_path / "items.parquet", tiny_model(tmp_path / "model", "clip"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"60 of 60 pictures cannot be read, the first is .*pictures/0\.png"):
        align(bad)


def test_a_users_text_has_no_picture(prepared: Path, raw: Path) -> None:
    from placerank.tokenization.alignment.behaviour import user_texts
    from placerank.tokenization.text.prompts import PromptConfig, build_prompts

    items, _ = read_catalog(prepared, raw)
    prompts = build_prompts(items, PromptConfig(), images=True)
    assert isinstance(prompts.inputs(np.array([5]))[0], Shown)
    assert all(isinstance(text, str) for text in user_texts(prompts, np.array([[5, 10], [0, -1]])))
