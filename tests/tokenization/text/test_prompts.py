"""Prompts: the paper's order, nothing for what is missing, parts that mix."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placerank.tokenization.text.prompts import PromptConfig, build_prompts

ITEMS = pa.table(
    {
        "name": ["Nudel {1}", None, "  ", None],
        "category": pa.array([["Dining", "Ramen"], ["Shop", None, ""], [], None], pa.list_(pa.string())),
        "brand": pa.array(["Nudel", None, None, None], pa.string()),
        "price": pa.array([12.5, 1e6, None, float("nan")], pa.float32()),
        "lat": [1.0, 2.0, 3.0, 4.0],
        "province": [None, "NY", "NY", None],
        "city": ["Ulm", "York", None, None],
        "district": pa.array([None, "East", None, None], pa.string()),
    }
)


def test_order_and_missing_fields() -> None:
    prompts = build_prompts(ITEMS, PromptConfig())
    assert prompts.texts() == [
        "Nudel {1}, Dining > Ramen, Nudel, 12.5 | Ulm",
        "Shop, 1e+06 | NY, York, East",
        "NY",
        "?",
    ]
    assert prompts.content.to_pylist()[2:] == ["", ""] and prompts.location.to_pylist()[3] == ""


def test_parts_mix() -> None:
    prompts = build_prompts(ITEMS, PromptConfig(content=("category",)))
    mixed = prompts.texts(np.array([0, 0, 2, 3]), np.array([1, 3, 1, 3]))
    assert mixed == ["Dining > Ramen | NY, York, East", "Dining > Ramen", "NY, York, East", "?"]
    assert prompts.texts(np.array([2, 0])) == ["NY", "Dining > Ramen | Ulm"]
    assert prompts.location_codes.tolist() == [0, 1, 2, 3]


def test_labels_separators_and_templates() -> None:
    config = PromptConfig(
        content=("price", "name"), labels={"price": "Preis", "city": "Stadt"}, separator="; ", part_separator="\n"
    )
    assert build_prompts(ITEMS, config).texts()[:3] == [
        "Preis: 12.5; Nudel {1}\nStadt: Ulm",
        "Preis: 1e+06\nNY; Stadt: York; East",
        "NY",
    ]
    config = PromptConfig(content_template="«{name}» [{category}]", location_template="in {city} {lat}")
    assert build_prompts(ITEMS, config).texts() == [
        "«Nudel {1}» [Dining > Ramen] | in Ulm 1.0000",
        "«» [Shop] | in York 2.0000",
        "in  3.0000",
        "in  4.0000",
    ]
    config = PromptConfig(content_template="«{name}»", location=())
    assert build_prompts(ITEMS, config).texts() == ["«Nudel {1}»", "?", "?", "?"]


def test_columns_may_be_missing_and_categories_plain() -> None:
    prompts = build_prompts(pa.table({"category": ["Bar", None]}), PromptConfig())
    assert prompts.texts() == ["Bar", "?"]
    sliced = ITEMS.slice(1, 2)  # offsets of the lists do not start at 0
    assert build_prompts(sliced, PromptConfig()).texts() == ["Shop, 1e+06 | NY, York, East", "NY"]


@given(st.lists(st.tuples(*[st.none() | st.text(max_size=5)] * 3), min_size=1, max_size=8))
def test_each_value_that_is_not_blank_is_in_its_part(rows: list[tuple[str | None, ...]]) -> None:
    names, brands, cities = ([row[i] for row in rows] for i in range(3))
    table = pa.table({n: pa.array(x, pa.string()) for n, x in (("name", names), ("brand", brands), ("city", cities))})
    trimmed = [[x.strip() if x else "" for x in column] for column in (names, brands, cities)]
    if not any(any(column) for column in trimmed):
        with pytest.raises(ValueError, match="has any text"):
            build_prompts(table, PromptConfig())
        return
    prompts = build_prompts(table, PromptConfig())
    for i, (name, brand, city) in enumerate(zip(*trimmed, strict=True)):
        assert prompts.content[i].as_py() == ", ".join(x for x in (name, brand) if x)
        assert prompts.location[i].as_py() == city


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"none of the 2 items has any text in \['name'.*derive districts"):
        build_prompts(pa.table({"name": pa.array([None, " "], pa.string())}), PromptConfig())
    with pytest.raises(ValueError, match=r"prompts.content=\['nmae'\]: expected each at most once of name, category"):
        PromptConfig(content=("nmae",))
    with pytest.raises(ValueError, match=r"prompts.location=\['city', 'city'\]"):
        PromptConfig(location=("city", "city"))
    with pytest.raises(ValueError, match=r"got \{city\}, expected plain \{field\} of name"):
        PromptConfig(content_template="{city}")
    with pytest.raises(ValueError, match="expected plain"):
        PromptConfig(content_template="{price:.2f}")
    with pytest.raises(ValueError, match="expected at least one of province"):
        PromptConfig(location_template="here")
    with pytest.raises(ValueError, match=r"content_template='\{name'"):
        PromptConfig(content_template="{name")
    with pytest.raises(ValueError, match=r"prompts.labels has \['nam'\]"):
        PromptConfig(labels={"nam": "x"})
    with pytest.raises(ValueError, match=r"prompts\.unknown=' '"):
        PromptConfig(unknown=" ")
