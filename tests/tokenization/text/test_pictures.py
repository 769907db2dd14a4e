"""Texts with pictures: each family in batches against one at a time, what is read around them, and bad files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_models import IMAGE, QWEN, SEES, START, WORDS, tiny_model

from placerank.tokenization.align import read_catalog
from placerank.tokenization.text.encoders import Encoder, EncoderConfig, load_encoder
from placerank.tokenization.text.pictures import Input, Shown, beside_table, check_pictures
from placerank.tokenization.text.prompts import PromptConfig, build_prompts

LANGUAGE = ("llava", "qwen2-vl", "gemma3")  # one model that reads pictures
TOWERS = ("clip", "siglip")


def picture(folder: Path, name: str, size: tuple[int, int] = (10, 12)) -> str:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(sum(name.encode())).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return str(folder / f"{name}.png")


def encoder_of(folder: Path, kind: str, template: bool = True, **settings: object) -> Encoder:
    model = tiny_model(folder / "model", kind, template=template)
    return load_encoder(EncoderConfig(model=str(model), images=True, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind, template", [*((k, t) for k in LANGUAGE for t in (True, False)), *((k, True) for k in TOWERS)]
)
def test_batches_give_what_single_ones_give(tmp_path: Path, kind: str, template: bool) -> None:
    encoder = encoder_of(tmp_path, kind, template, batch_images=3)
    a, b, c = (picture(tmp_path, n, size) for n, size in (("a", (10, 12)), ("b", (16, 8)), ("c", (40, 20))))
    inputs: list[Input] = [
        Shown("ramen bar", a),
        "ramen bar",
        Shown("ramen bar", b),
        Shown("gym , north oslo", b),
        "gym",
    ]
    inputs += [Shown("gym", c), Shown("ramen bar", a), Shown("museum", a)]
    got = encoder.encode(inputs)
    assert got.shape == (8, encoder.dim) and got.dtype == torch.float32
    torch.testing.assert_close(got, torch.cat([encoder.encode([one]) for one in inputs]), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(inputs), got, rtol=1e-4, atol=1e-5)
    assert torch.equal(got[0], got[6])  # encoded once
    assert torch.pdist(got[:6]).min() > 1e-3  # picture and text both matter
    torch.testing.assert_close(encoder.encode(["ramen bar"]), got[1:2], rtol=1e-4, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dim)


@pytest.mark.parametrize("kind", LANGUAGE)
def test_the_templates_end_stays_whatever_is_cut(tmp_path: Path, kind: str) -> None:
    encoder = encoder_of(tmp_path, kind, max_tokens=4)
    turn, bar = 2, len(QWEN) + WORDS.index("bar")
    assert encoder.tokens(["bar " * 9, "bar"]) == [[turn, *[bar] * 4, turn, 3], [turn, bar, turn, 3]]
    assert encoder.shows == "by the chat template"
    a = picture(tmp_path, "a")
    torch.testing.assert_close(encoder.encode([Shown("bar " * 9, a)]), encoder.encode([Shown("bar " * 4, a)]))


def test_qwens_pictures_have_their_marks_without_a_template_too(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "qwen2-vl", template=False)
    assert encoder.frame is not None and encoder.shows == "before the text"
    ids = encoder.frame.inputs(["gym"], [Image.new("RGB", (8, 8))])["input_ids"][0].tolist()
    assert ids == [START, IMAGE, START + 1, len(QWEN) + WORDS.index("gym"), 3]


@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_name_that_looks_like_a_picture_is_text(tmp_path: Path, kind: str) -> None:
    encoder = encoder_of(tmp_path, kind)
    assert encoder.frame is not None
    a, token = picture(tmp_path, "a"), sorted(encoder.frame.reserved)[0]
    torch.testing.assert_close(encoder.encode([Shown(f"bar {token} gym", a)]), encoder.encode([Shown("bar gym", a)]))


@pytest.mark.parametrize("kind", TOWERS)
def test_two_towers_stand_side_by_side(tmp_path: Path, kind: str) -> None:
    encoder = encoder_of(tmp_path, kind)
    a, b = picture(tmp_path, "a"), picture(tmp_path, "b")
    both = encoder.encode([Shown("bar", a), Shown("gym", a), Shown("bar", b), "bar"])
    text, seen = both.split(encoder.dim // 2, dim=1)
    torch.testing.assert_close(text[0], text[2])
    torch.testing.assert_close(seen[0], seen[1])
    assert (seen[0] - seen[2]).norm() > 1e-3
    torch.testing.assert_close(both[:3].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(seen[:3].norm(dim=1), torch.full((3,), 0.5**0.5))  # each says half
    assert (seen[3] == 0).all()
    blind = load_encoder(EncoderConfig(model=str(tmp_path / "model")))
    assert blind.dim == encoder.dim // 2 and blind.pooling == "tower"
    torch.testing.assert_close(blind.encode(["bar"])[0], text[3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=rf"encoder.pooling='cls': the towers of .* \({kind}\) have their own"):
        load_encoder(EncoderConfig(model=str(tmp_path / "model"), pooling="cls"))
    with pytest.raises(ValueError, match=r"for an encoder of text; set encoder\.images"):
        blind.encode([Shown("gym", a)])


def test_more_tokens_than_positions(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "qwen2-vl")
    assert encoder.max_tokens == 63  # 66 positions less what the template takes
    with pytest.raises(ValueError, match=r"a text with a picture \(.*a\.png\) is \d+ tokens, and the model has 66 pos"):
        encoder.encode([Shown("bar " * 62, picture(tmp_path, "a", (16, 16)))])


def test_paths_begin_at_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture(tmp_path / "pictures", "a")
    column = pa.array(["pictures/a.png", whole, "s3://bucket/b.png", " ", None])
    expected = [whole, whole, "s3://bucket/b.png", None, None]
    assert beside_table(column, tmp_path).to_pylist() == expected
    place = {"name": list("vwxyz"), "category": [["bar"]] * 5, "lat": [52.0] * 5, "lon": [5.0] * 5}
    pq.write_table(pa.table({"item_id": range(5), **place, "image": column}), tmp_path / "items.parquet")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for table in (tmp_path, tmp_path / "items.parquet", Path("..")):
        found = [
            p if p is None or "://" in p else Path(p).resolve() for p in read_catalog(table)[0]["image"].to_pylist()
        ]
        assert found == [p if p is None or "://" in p else Path(p) for p in expected]
    with pytest.raises(
        ValueError, match=r"image https://x/y\.png: got the scheme https, expected s3, gs, hdfs.*set null"
    ):
        beside_table(pa.array(["https://x/y.png"]), tmp_path)


def test_pictures_from_a_bucket(tmp_path: Path, s3: str) -> None:
    from at_urls import put, work_folder

    with work_folder(tmp_path / "work"):
        picture(tmp_path / "local", "a")
        put(tmp_path / "local", f"{s3}/city")
        encoder = encoder_of(tmp_path, "clip")
        assert check_pictures(pa.array([f"{s3}/city/a.png"])) == 1
        far, near = encoder.encode([Shown("bar", f"{s3}/city/a.png"), Shown("bar", str(tmp_path / "local/a.png"))])
        torch.testing.assert_close(far, near)
        with pytest.raises(ValueError, match=r"image .*gone\.png: .*set null"):
            encoder.encode([Shown("bar", f"{s3}/city/gone.png")])


def test_bad_files_are_told(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "clip")
    good, text, half = picture(tmp_path, "a"), tmp_path / "b.png", tmp_path / "c.png"
    text.write_text("no picture")
    half.write_bytes(Path(good).read_bytes()[:200])
    for bad in (text, half, tmp_path / "gone.png"):
        with pytest.raises(ValueError, match=rf"image .*{bad.name}: .*mend the path .* or set null"):
            encoder.encode([Shown("gym", str(bad))])
    assert check_pictures(pa.array([good, None, good])) == 2
    with pytest.raises(
        ValueError, match=r"2 of 3 pictures cannot be read, the first is .*gone\.png .*begin at the table"
    ):
        check_pictures(pa.array([good, str(tmp_path / "gone.png"), None, str(text)]))


def test_prompts_show_the_pictures_of_their_content() -> None:
    items = pa.table({"name": ["x", None, "z"], "city": ["Ulm", "York", None], "image": ["a.png", "b.png", None]})
    prompts = build_prompts(items, PromptConfig(), images=True)
    assert prompts.inputs() == [Shown("x | Ulm", "a.png"), Shown("York", "b.png"), "z"]
    assert prompts.inputs(np.array([2, 0]), np.array([0, 1])) == ["z | Ulm", Shown("x | York", "a.png")]
    assert build_prompts(items, PromptConfig()).inputs() == prompts.texts() == ["x | Ulm", "York", "z"]
    bare = build_prompts(items.select(["image"]), PromptConfig(), images=True)  # a picture is enough
    assert bare.inputs() == [Shown("?", "a.png"), Shown("?", "b.png"), "?"]
    with pytest.raises(ValueError, match="none of the 3 items has any text"):
        build_prompts(items.select(["image"]), PromptConfig())
    with pytest.raises(ValueError, match=r"encoder\.images is set, and the items have no column image"):
        build_prompts(items.select(["name"]), PromptConfig(), images=True)


def test_every_family_is_tried() -> None:
    assert set(LANGUAGE) | set(TOWERS) == set(SEES)


def test_items_that_read_alike_are_told_apart_by_their_pictures(tmp_path: Path) -> None:
    from placerank.tokenization.text.reading import read_measures

    encoder = encoder_of(tmp_path, "clip")
    some: list[Input] = ["bar", "bar", Shown("bar", "a.png"), Shown("bar", "b.png"), Shown("bar", "b.png")]
    found = read_measures(encoder, lambda rows: [some[i] for i in rows], 5)
    assert (found["texts"], found["tokens"], found["same_tokens"]) == (3, 3, 0.0)
