"""Any name of a user column makes a table: part of a module, name of a file, and no other column's."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from placerank.data.batches.features import LONGEST_NAME, FeatureConfig, build_features, user_table
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
        assert user_table(name) == name
    assert user_table("age/range") == "age%2Frange" and user_table("age.range") == "age%2Erange"
    assert user_table("type") == "users_type" and user_table("users_type") == "users_users_type"
    assert user_table("") == "users_"


@settings(deadline=None)
@given(st.lists(st.text(max_size=12), unique=True, max_size=20))
@example([*OWN, *ODD])
@example([n for n in dir(torch.nn.ModuleDict()) if len(n) < 100])
def test_any_columns_have_tables_of_their_own(columns: list[str]) -> None:
    names = [user_table(c) for c in columns]
    assert len(set(names)) == len(names) and not set(names) & {*OWN, "positives", "last_positive"}
    modules = torch.nn.ModuleDict()
    for name in names:
        modules[name] = torch.nn.Module()
        assert Path(name).name == name and "." not in name


def test_odd_columns_are_looked_up() -> None:
    names = [user_table(c) for c in ODD]
    sizes = {"item": 3, "user": 2, "category": 1, **dict.fromkeys(names, 4)}
    features = build_features(FeatureConfig(history_attributes=[], dense=["visits"]), sizes, names)
    tables = FeatureEmbeddings(features, "cpu")
    keys = features.pooled_keys
    ids = KeyedJaggedTensor.from_lengths_sync(
        keys, torch.ones(len(keys), dtype=torch.long), torch.ones(len(keys), dtype=torch.int32)
    )
    assert tables.pooled(ids).to_dict().keys() == set(keys) and set(names) <= set(keys)


def test_too_long_a_name_is_refused() -> None:
    assert user_table("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    with pytest.raises(ValueError, match=r"column '\.\.\..* makes a name of 123 bytes, expected at most 120"):
        user_table("." * 41)
