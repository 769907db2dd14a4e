"""Whose rows a checkpoint holds."""

from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from placerank.data.batches.features import FeatureConfig
from placerank.rankers.dense import RankerConfig
from placerank.training import identity as module
from placerank.training.identity import Identity, check_signature, hash_in_order, signature
from placerank.training.inputs import Inputs, read_inputs


@pytest.fixture(scope="module")
def inputs(prepared: Path) -> Inputs:
    return read_inputs(prepared, FeatureConfig(), RankerConfig())


def test_the_hash_is_of_ids_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [None, "a", "", "bc", "é", "日本", "x" * 70]
    whole = hash_in_order(pa.chunked_array([ids]))
    for cut in range(len(ids)):
        assert hash_in_order(pa.chunked_array([ids[:cut], ids[cut:]], pa.string())) == whole
        again = pa.chunked_array([pa.array(["?", *ids], kind)[1:] for kind in (pa.large_string(),)])
        assert hash_in_order(again) == whole, "of a slice"
    monkeypatch.setattr(module, "_BLOCK", 2)
    for kind in (pa.string(), pa.large_string()):
        assert hash_in_order(pa.chunked_array([ids], kind)) == whole
    others = [ids[::-1], ids[:-1], [*ids, None], [None, "ab", "", "c", *ids[4:]], [None, "a", None, *ids[3:]]]
    hashes = {hash_in_order(pa.chunked_array([other], pa.string())) for other in others}
    assert len(hashes | {whole}) == len(others) + 1
    numbers = [hash_in_order(pa.chunked_array([pa.array(x, pa.int64())])) for x in ([None, 1, 12], [None, 11, 2])]
    assert numbers[0] != numbers[1]


def test_every_vocabulary_with_a_table_is_in_it(inputs: Inputs) -> None:
    found = Identity.of(inputs, RankerConfig()).vocabularies
    of_numbers = {"hour", "category_path"}
    assert set(found) == {t.name for t in inputs.features.tables} - of_numbers | {"category"}
    assert all(found[n]["ids"] == inputs.manifest["tables"][n] - 1 for n in found)


@pytest.mark.parametrize("of", ["item", "user"])
def test_ids_in_another_order_are_refused(of: str, inputs: Inputs, tmp_path: Path) -> None:
    saved = Identity.of(inputs, RankerConfig()).to_save()
    Identity.of(inputs, RankerConfig()).check(saved, "here")
    for path in inputs.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    file, column = tmp_path / f"{'catalog' if of == 'item' else 'users'}.parquet", f"{of}_id"
    table = pq.read_table(file)
    ids = table[column].to_pylist()
    ids[1], ids[2] = ids[2], ids[1]
    at = table.column_names.index(column)
    file.unlink()
    pq.write_table(table.set_column(at, column, pa.array(ids, table[column].type)), file)
    other = Identity.of(replace(inputs, folder=tmp_path), RankerConfig())
    n = f"{len(ids) - 1:,}"
    told = rf"here was trained on other ids than .*: {of} \({n} ids, now {n} others\). Name with --data"
    with pytest.raises(ValueError, match=told):
        other.check(saved, "here")


def test_an_older_rankers_settings_had_their_defaults(inputs: Inputs) -> None:
    now = signature(inputs.features, RankerConfig())
    then = now | {"ranker": asdict(RankerConfig())}
    del then["ranker"]["rest"]["align"], then["ranker"]["akt"]["gate"]
    check_signature(then, now, "here")
    config = RankerConfig()
    with pytest.raises(ValueError, match=r"ranker.akt.gate: saved True, now False"):
        without = replace(config, akt=replace(config.akt, gate=False))
        check_signature(then, signature(inputs.features, without), "here")
    then["ranker"]["newer"] = 1
    with pytest.raises(ValueError, match=r"ranker.newer: saved 1, now None"):
        check_signature(then, now, "here")
