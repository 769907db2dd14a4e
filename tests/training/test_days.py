"""Days one after the other: rows over numbers of ranks, spare rows, semantic IDs of new places, places that closed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from raw_tables import ITEMS, column, impressions, run, write
from runs import begin, small, together

from placerank.data.batches.features import FeatureConfig
from placerank.data.manifest import read_manifest
from placerank.embeddings.reader import load_table
from placerank.embeddings.shards import CheckpointTables
from placerank.rankers.dense import RankerConfig
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.tokenization.codes.tokenizers import KMeansOptions, TokenizerConfig
from placerank.tokenization.judging.tokenize_report import ReportConfig
from placerank.tokenization.text.store import write_embeddings
from placerank.tokenization.tokenize import TokenizeConfig, tokenize
from placerank.training.export import ExportConfig, export
from placerank.training.run_files import find_checkpoint
from placerank.training.sharding import ShardingConfig
from placerank.training.train import train

DAYS = 3


def of_day(day: int) -> dict[str, Any]:
    """More users than the day before, and a third of the visits at places that open."""
    found = impressions(2000, users=12 + 6 * day, seed=day)
    found["timestamp"] = pc.add(found["timestamp"], pa.scalar(day * 10**7, pa.duration("s")))
    if day:
        found["item_id"] = [i if n % 3 else f"{'ab'[day - 1]}{i[1:]}" for n, i in enumerate(found["item_id"])]
    return found


def places(day: int) -> pa.Table:
    later = [ITEMS.set_column(0, "item_id", pa.array([f"{'ab'[d]}{i}" for i in range(12)])) for d in range(day)]
    return pa.concat_tables([ITEMS, *later])


def prepared(tmp: Path, **options: Any) -> list[Path]:
    folders: list[Path] = []
    for day in range(DAYS):
        (tmp / f"{day}").mkdir()
        raw = write(tmp / f"{day}" / "raw", of_day(day), places(day))
        folders.append(run(raw, after=folders[-1] if folders else None, **options))
    return folders


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Prepared folders, each after the one before, and a run of the first."""
    tmp = tmp_path_factory.mktemp("days")
    folders = prepared(tmp)
    return folders, train(small(folders[0], tmp / "run", epochs=1))


def test_one_two_and_four_ranks_move_the_same_rows(days: tuple[list[Path], Path], ranks: Any, tmp_path: Path) -> None:
    """A day at one rank, the next at two, the next at four, cut otherwise each time: to the bit as at one rank."""
    folders, first = days
    cuts = {
        2: ShardingConfig(default="row_wise", tables={"category": "table_wise", "brand": "table_wise"}),
        4: ShardingConfig(default="table_wise", tables={"item": "row_wise", "user": "row_wise"}),
    }
    found: dict[str, list[dict[str, torch.Tensor]]] = {"alone": [], "more": []}
    for name, worlds in (("alone", (1, 1)), ("more", (2, 4))):
        before = first
        for folder, world in zip(folders[1:], worlds, strict=True):
            here = tmp_path / f"{name}-{world}-{folder.parent.name}"
            config = small(folder, here, warm_start=before, sharding=cuts.get(world, ShardingConfig()))
            found[name].append(together(ranks(world, begin, config, True)))
            before = here
    for alone, more in zip(found["alone"], found["more"], strict=True):
        assert alone.keys() == more.keys()
        for key, x in alone.items():
            torch.testing.assert_close(x, more[key], rtol=0, atol=0, msg=key)
    assert [len(column(f, "catalog.parquet", "item_id")) for f in folders] == [13, 25, 37]


def weights(run: Path, table: str) -> torch.Tensor:
    tables = CheckpointTables(find_checkpoint(run, "best"))
    return next(tables.blocks(table, tables.shape(table)[0])).clone()


def test_tables_with_spare_rows_keep_their_size(tmp_path: Path) -> None:
    """Until what is new doesn't fit; exports have nothing of the rows that are nobody's."""
    folders = prepared(tmp_path, spare_rows=1.2)
    sizes = [read_manifest(f, "prepared")["tables"] for f in folders]
    plain = [len(column(f, "catalog.parquet", "item_id")) for f in folders]
    assert plain == [13, 25, 37]
    assert [t["item"] for t in sizes] == [29, 29, 82]  # 13 x 2.2 for two days, then 37 x 2.2
    assert [t["user"] for t in sizes] == [29, 29, 29] and all(t["district"] == 1 for t in sizes)
    runs: list[Path] = []
    for day, folder in enumerate(folders):
        runs.append(train(small(folder, tmp_path / f"run{day}", epochs=1, warm_start=runs[-1] if runs else None)))
    plans = [(r / "plan.txt").read_text() for r in runs]
    assert plans[0] == plans[1] != plans[2]
    config = small(folders[2], tmp_path / "begin", warm_start=runs[1])
    start = together([begin(config)])
    (key,) = (k for k in start if k.startswith("model") and ".item.weight" in k)
    (state,) = (k for k in start if k.startswith(f"state {key.split()[1]} "))
    assert torch.equal(start[key][:25], weights(runs[1], "item")[:25])
    assert (start[state][25:] == 0).all() and (start[state][:25] > 0).any()
    for folder, trained, ids in zip(folders, runs, plain, strict=True):
        out = export(ExportConfig(run=trained, out=trained.parent / f"export {trained.name}"))
        item = load_table(out, "item")
        assert torch.equal(item.vectors(), weights(trained, "item")[:ids])
        assert column(out, "catalog.parquet", "item_id") == column(folder, "catalog.parquet", "item_id")
        for name, table in read_manifest(out, "export")["tables"].items():
            if name not in ("hour", "item", "user"):
                of = "category" if name == "category_path" else name
                assert table["rows"] == len(column(folder, f"vocab/{of}.parquet", "value"))


def test_places_that_closed_leave_no_row(tmp_path: Path, days: tuple[list[Path], Path]) -> None:
    """Prepared anew without them, the rows of the others come by id from a run that knew them."""
    folders, _ = days
    before = train(small(folders[2], tmp_path / "before", epochs=1))
    shown, open_ = of_day(2), places(2)
    closed = {f"i{i}" for i in range(0, 12, 2)}
    open_ = open_.filter(pc.invert(pc.is_in(open_["item_id"], pa.array(sorted(closed)))))
    data = run(write(tmp_path / "raw", shown, open_), on_bad_rows="skip")
    start = together([begin(small(data, tmp_path / "after", warm_start=before))])
    (key,) = (k for k in start if k.startswith("model") and ".item.weight" in k)
    ids, then = (column(f, "catalog.parquet", "item_id") for f in (data, folders[2]))
    assert len(ids) == len(then) - len(closed) and not closed & set(ids)
    assert torch.equal(start[key], weights(before, "item")[[then.index(i) for i in ids]])


def test_new_places_get_semantic_ids_and_the_run_goes_on(
    days: tuple[list[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tokenize --add`` and ``train --warm-start``: without newcomers a place starts as its longest prefix does."""
    folders, _ = days
    ranker = RankerConfig(mlp=[8])
    assert ranker.akt.enabled is not False
    vectors = {i: torch.randn(6, generator=torch.Generator().manual_seed(n)) for n, i in enumerate(all_ids(folders[1]))}
    run_, tokens = None, None
    for day in (0, 1):
        ids = pa.array(all_ids(folders[day]))
        write_embeddings(tmp_path / f"e{day}", ids, torch.stack([vectors[i] for i in ids.to_pylist()]))
        how = TokenizeConfig(
            data=folders[day], embeddings=tmp_path / f"e{day}", out=tmp_path / f"t{day}", add=tokens,
            tokenizer="res_kmeans", codebook=TokenizerConfig(levels=2, codes=3), kmeans=KMeansOptions(iterations=3),
            report=ReportConfig(queries=5, points=10),
        )  # fmt: skip
        tokens = tokenize(how)
        features = FeatureConfig(embedding_dim=8, pooled_dim=4, semantic_ids=tokens)
        config = small(
            folders[day],
            tmp_path / f"run{day}",
            epochs=1,
            features=features,
            warm_start=run_,
            ranker=ranker,
            newcomers=0,
        )
        run_ = train(config) if day == 0 else run_
    assert SemanticIds.read(tmp_path / "t1").lineage[:1] == SemanticIds.read(tmp_path / "t0").lineage
    start = together([begin(config)])
    (key,) = (k for k in start if k.startswith("model") and ".item.weight" in k)
    before = weights(tmp_path / "run0", "item")
    assert torch.equal(start[key][:13], before)
    semantic = SemanticIds.read(tmp_path / "t1")
    codes = dict(zip(semantic.ids.to_pylist(), map(tuple, semantic.codes.tolist()), strict=True))
    known, new = all_ids(folders[1])[:12], all_ids(folders[1])[12:]
    near = 0
    for row, i in enumerate(new, start=13):
        for length in (2, 1):
            like = [n for n, k in enumerate(known, start=1) if codes[k][:length] == codes[i][:length]]
            if like:
                torch.testing.assert_close(start[key][row], before[like].mean(0))
                near += length == 2
                break
    assert near > 0
    strange = tokenize(replace(how, out=tmp_path / "strange", add=None, overwrite=True))
    other = replace(config, run=tmp_path / "other", features=replace(config.features, semantic_ids=strange))
    with pytest.raises(ValueError, match="expected the same folder, or one that placerank tokenize --add made"):
        begin(other)


def all_ids(folder: Path) -> list[str]:
    return [i for i in column(folder, "catalog.parquet", "item_id") if i is not None]
