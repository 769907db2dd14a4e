"""From samples to the ranker's batch, against a slow reference; what the device holds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from catalogs import all_features, make_sample, make_tables, slow_batch, tensors_of
from host_waits import host_waits

from placerank.data.batches.catalog import Catalog
from placerank.data.batches.item_columns import attribute_combinations, catalog_columns

CPU = torch.device("cpu")
HISTORIES = {
    "none": [],
    "one without history": [0],
    "one": [3],
    "no history at all": [0, 0, 0],
    "some": [3, 0, 7, 1],
    "many": [50, 0, 0, 9] * 10,
}


CANDIDATES = [1, 4, 2, 9, 1]


def several(lengths: list[int]) -> list[int]:
    """How many candidates each request has."""
    return [CANDIDATES[i % len(CANDIDATES)] for i in range(len(lengths))]


def assert_alike(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """To the last bit, and NaN where NaN is expected."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("items", [1, 40])
@pytest.mark.parametrize("one_each", [True, False])
@pytest.mark.parametrize("lengths", HISTORIES.values(), ids=HISTORIES)
def test_batches_are_those_of_the_reference(items: int, lengths: list[int], plain: bool, one_each: bool) -> None:
    tables, features = make_tables(items), all_features(items, plain)
    sample = make_sample(items, lengths, candidates=None if one_each else several(lengths))
    catalog = Catalog.of(*tables, features, CPU)
    want = slow_batch(*tables, features, sample)
    assert_alike(tensors_of(catalog.expand(sample)), want)
    host = catalog.gather(sample)
    for _ in range(2):
        assert_alike(tensors_of(catalog.expand(host)), want)


def test_what_is_pinned_gives_the_same_batch_in_two_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a GPU: a copy stands for pinned memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    catalog = Catalog.of(*make_tables(40), all_features(40), CPU)
    host = catalog.gather(make_sample(40, HISTORIES["some"]))
    pinned = host.pin_memory()
    assert not {x.data_ptr() for x in (pinned.whole, pinned.real)} & {x.data_ptr() for x in (host.whole, host.real)}
    assert_alike(tensors_of(catalog.expand(pinned)), tensors_of(catalog.expand(host)))
    device = torch.device("meta")
    storages = {x.untyped_storage()._cdata for x in pinned.pieces(device).values()}
    assert len(storages) == 2 and all(x.device == device for x in pinned.pieces(device).values())


@pytest.mark.parametrize("plain", [True, False])
def test_the_devices_half_waits_for_nothing(plain: bool) -> None:
    features = all_features(40, plain)
    catalog = Catalog.of(*make_tables(40), features, CPU)
    host = catalog.gather(make_sample(40, HISTORIES["many"], candidates=several(HISTORIES["many"])))
    catalog.expand(host)
    with host_waits() as waits:
        catalog.expand(host)
    assert not len(waits), str(waits)


@pytest.mark.parametrize("plain", [True, False])
def test_the_devices_half_mixes_no_devices(plain: bool) -> None:
    """On "meta", where a tensor left on the host, or a size that follows from numbers, is an error."""
    tables, features, device = make_tables(40), all_features(40, plain), torch.device("meta")
    sample = make_sample(40, HISTORIES["many"], candidates=several(HISTORIES["many"]))
    got = tensors_of(Catalog.of(*tables, features, device).expand(sample))
    want = tensors_of(Catalog.of(*tables, features, CPU).expand(sample))
    for name, value in want.items():
        assert got[name].device == (CPU if name == "dense.lengths" else device), name
        if not name.startswith(("items.", "pooled.")):
            assert got[name].shape == value.shape and got[name].dtype == value.dtype, name


@pytest.mark.parametrize("lengths", HISTORIES.values(), ids=HISTORIES)
def test_bags_share_the_distinct_items(lengths: list[int]) -> None:
    """Of each table a bag a sample, on every rank the same number, and none holds more than its share."""
    features = all_features(40)
    batch = Catalog.of(*make_tables(40), features, CPU).expand(make_sample(40, lengths))
    bags, found = max(1, len(lengths)), batch.items["item"].values().numel()
    assert batch.items.stride() == bags
    by_table = batch.items.lengths().view(len(features.sequence), bags)
    assert by_table.max() <= -(-found // bags) and (by_table.sum(dim=1) == found).all()
    for ids in (batch.items, batch.pooled):
        assert ids.length_per_key() == ids.lengths().view(len(ids.keys()), -1).sum(dim=1).tolist(), "told, not counted"


@pytest.mark.parametrize(("plain", "most"), [(True, 56), (False, 96)])
def test_bytes_an_item_on_the_device(plain: bool, most: int) -> None:
    """Plain: two shared attributes, four pooled ones, category paths, the place. With plug-ins: three levels of a
    semantic ID, a table of prefixes, clusters, activity, heads and adaptive radii besides."""
    items = 20_000
    catalog = Catalog.of(*make_tables(items), all_features(items, plain), CPU)
    storages = {x.untyped_storage().data_ptr(): x for x in vars(catalog).values() if isinstance(x, torch.Tensor)}
    assert catalog.device_bytes == sum(x.untyped_storage().nbytes() for x in storages.values())
    assert catalog.device_bytes <= most * items


def test_no_two_columns_of_users_or_items_are_kept_twice() -> None:
    tables = make_tables(40)
    columns = catalog_columns(*tables, all_features(40))
    storages = [x.untyped_storage().data_ptr() for x in columns.values()]
    assert len({*storages}) == len(storages)
    assert all(x.dtype not in (torch.int64, torch.float64) or len(x) < 40 for x in columns.values()), "few bytes"


@pytest.mark.parametrize("count", [0, 1, 500])
@pytest.mark.parametrize("attributes", [0, 1, 2, 3])
@pytest.mark.parametrize("largest", [5, 1_000_000])
def test_combinations_of_attributes(count: int, attributes: int, largest: int) -> None:
    rows = torch.randint(0, 6, (count, attributes), dtype=torch.int32)
    rows[:1] = largest  # with two such columns a number of 32 bits is too short
    found, counts = attribute_combinations(rows)
    assert found.dtype == counts.dtype == torch.int64
    if not rows.numel():
        assert found.shape == (0, attributes) and counts.shape == (0,)
        return
    want, of_each = rows.unique(dim=0, return_counts=True)
    order = of_each.argsort(descending=True, stable=True)
    assert torch.equal(found, want[order].long()) and torch.equal(counts, of_each[order])
    few, counts_of_few = attribute_combinations(rows, most=2)
    assert torch.equal(few, found[:2]) and torch.equal(counts_of_few, counts[:2])


def test_combinations_leave_out_row_0() -> None:
    items, users = make_tables(40)
    features = all_features(40)
    rows, counts = Catalog.of(items, users, features, CPU).attribute_combinations()
    assert counts.sum() == 39 and rows.shape[1] == len(features.attributes)
    alone = Catalog.of(items.slice(0, 1), users, features, CPU).attribute_combinations()
    assert alone[0].shape == (0, len(features.attributes))


def test_items_of_one_category_with_different_paths_are_told() -> None:
    items, users = make_tables(40)
    at = items.column_names.index("category_path")
    paths = items["category_path"].to_pylist()
    row = next(i for i, p in enumerate(paths) if p)
    for changed in ([*paths[row], 1], [x + 1 for x in paths[row]]):
        other = [changed if i == row else p for i, p in enumerate(paths)]
        table = items.set_column(at, "category_path", pa.array(other, pa.list_(pa.int32())))
        with pytest.raises(ValueError, match="items of one category_row with different category_path; prepare again"):
            catalog_columns(table, users, all_features(40))


def test_slices_of_a_table_are_read_as_what_they_are() -> None:
    """Arrow's offsets then start elsewhere than at 0."""
    items, users = make_tables(40)
    features = all_features(39)
    part = items.slice(1)
    copied = pa.Table.from_pydict({n: part[n].to_pylist() for n in part.column_names}, schema=part.schema)
    got, want = (catalog_columns(t, users, features) for t in (part, copied))
    assert all(torch.equal(got[n], x) for n, x in want.items())


def test_a_folder_gives_the_same(prepared: Path) -> None:
    import pyarrow.parquet as pq

    features = all_features(301, plain=True, pooled=["user", "hour", "category_path"])
    items, users = (pq.read_table(prepared / f"{name}.parquet") for name in ("catalog", "users"))
    sample = make_sample(len(items), [3, 0, 5])
    sample.user %= len(users)
    got, want = (
        tensors_of(c.expand(sample))
        for c in (Catalog.load(prepared, features), Catalog.of(items, users, features, CPU))
    )
    assert_alike(got, want)
    assert np.unique(want["items.item"]).size == len(want["items.item"])
