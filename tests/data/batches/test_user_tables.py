"""Any name of a user column makes a table: part of a module, name of a file, and no other column's."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from placerank.data.batches.features import _MODULE_NAMES, LONGEST_NAME, FeatureConfig, build_features, table_name
from placerank.embeddings.tables import FeatureEmbeddings

OWN = [
    "item",
    "user",
    "hour",
    "category",
    "city",
    "cluster",
    "semantic_1",
    "item_city",
    "user_final",
    "history_prefix_1",
]
ODD = [
    "",
    ".",
    "..",
    "age.range",
    "age/range",
    "a%2Fb",
    "%",
    "type",
    "forward",
    "keys",
    "training",
    "users_type",
    "性别",
]


def test_names_stay_where_they_can() -> None:
    for name in ("age", "age range", "user_age", "home-city", "_x", "性别"):
        assert table_name(name, "users") == name
    assert table_name("age/range", "users") == "age%2Frange" and table_name("age.range", "users") == "age%2Erange"
    assert table_name("type", "users") == "users_type" and table_name("users_type", "users") == "users_users_type"
    assert table_name("", "users") == "users_"


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), unique=True, max_size=20))
@example([*OWN, *ODD])
@example([n for n in dir(torch.nn.ModuleDict()) if len(n) < 100])
def test_any_columns_have_tables_of_their_own(columns: list[str]) -> None:
    names = [table_name(c, "users") for c in columns]
    assert len(set(names)) == len(names) and not set(names) & {*OWN, "positives", "last_positive"}
    modules = torch.nn.ModuleDict()
    for name in names:
        modules[name] = torch.nn.Module()
        assert Path(name).name == name and "." not in name


def test_no_table_has_a_name_that_modules_have() -> None:
    """Those of the torch that is installed; prepare, which names the tables, doesn't load it."""
    names = {name for name in dir(torch.nn.ModuleDict()) if not name.startswith("___")}  # its compiler adds such later
    assert names <= _MODULE_NAMES


def test_odd_columns_are_looked_up() -> None:
    names = [table_name(c, "users") for c in ODD]
    sizes = {"item": 3, "user": 2, "category": 1, **dict.fromkeys(names, 4)}
    features = build_features(FeatureConfig(history_attributes=[], dense=["visits"]), sizes, names)
    tables = FeatureEmbeddings(features, "cpu")
    keys = features.pooled_keys
    ids = KeyedJaggedTensor.from_lengths_sync(
        keys, torch.ones(len(keys), dtype=torch.long), torch.ones(len(keys), dtype=torch.int32)
    )
    assert tables.pooled(ids).to_dict().keys() == set(keys) and set(names) <= set(keys)


def test_too_long_a_name_is_refused() -> None:
    assert table_name("x" * LONGEST_NAME, "users") == "x" * LONGEST_NAME
    with pytest.raises(ValueError, match=r"column '\.\.\..* makes a name of 123 bytes, expected at most 120"):
        table_name("." * 41, "users")
