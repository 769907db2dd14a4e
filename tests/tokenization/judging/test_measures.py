"""Measures of tokens against scikit-learn, loops and hand computation."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import normalized_mutual_info_score

from placerank.tokenization.codes.collisions import id_numbers
from placerank.tokenization.codes.tokenizers import KMeansOptions, ResidualKMeans, TokenizerConfig
from placerank.tokenization.judging.measures import (
    REGIONS,
    RegionOfRows,
    category_labels,
    cohesion,
    cohesion_examples,
    nmi,
    reconstruction,
    region_labels,
    token_measures,
    usage,
)

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), min_size=1, max_size=60)


def ints(values: object) -> np.ndarray:
    return np.array(values, np.int64)


def test_usage_by_hand_and_by_scipy() -> None:
    code = ints([0] * 6 + [1] * 3 + [3])
    found = usage(code, 5)
    want = entropy([0.6, 0.3, 0.1])
    assert found["entropy"] == pytest.approx(want)
    assert found["evenness"] == pytest.approx(want / np.log(5))
    assert found["perplexity"] == pytest.approx(np.exp(want))
    assert found["dead"] == 2
    assert found["items"]["p50"] == 1 and found["items"]["max"] == 6
    assert usage(ints([0, 1, 2, 3]), 4)["evenness"] == pytest.approx(1)


@given(labels)
def test_nmi_is_scikit_learns(pairs: list) -> None:
    a, b = ints([p[0] for p in pairs]), ints([p[1] for p in pairs])
    known = b >= 0
    if not known.any():
        assert nmi(a, b) is None
    else:
        want = normalized_mutual_info_score(b[known], a[known])
        assert nmi(a, b) == pytest.approx(want, abs=1e-9)


@given(labels)
def test_cohesion_is_that_of_a_loop(pairs: list) -> None:
    prefix, category = ints([p[0] for p in pairs]), ints([p[1] for p in pairs])
    rows = [(p, c) for p, c in pairs if c >= 0]
    found = cohesion(prefix, category)
    if not rows:
        assert found is None
        return
    assert found is not None
    purity = concentration = scatter = 0.0
    for p, c in rows:
        here = Counter(c2 for p2, c2 in rows if p2 == p)
        there = Counter(p2 for p2, c2 in rows if c2 == c)
        purity += max(here.values()) / sum(here.values())
        concentration += max(there.values()) / sum(there.values())
        scatter -= np.log(there[p] / sum(there.values()))
    assert found["purity"] == pytest.approx(purity / len(rows))
    assert found["concentration"] == pytest.approx(concentration / len(rows))
    assert found["prefixes_a_category"] == pytest.approx(np.exp(scatter / len(rows)))
    assert found["purity_by_chance"] == pytest.approx(max(Counter(c for _, c in rows).values()) / len(rows))


def test_districts_of_one_name_in_two_cities_are_two() -> None:
    items = pa.table(
        {
            "province": pa.nulls(5, pa.string()),
            "city": ["a", "a", "b", "b", None],
            "district": ["x", "y", "x", None, "x"],
        }
    )
    found = region_labels(items)
    assert set(found) == {"city", "district"}
    label, names = found["district"]
    assert label[3] == -1 and len({*label[[0, 1, 2, 4]].tolist()}) == 4
    assert [names[k] for k in label[[0, 1, 2, 4]]] == ["x", "y", "x", "x"]
    assert found["city"][0].tolist() == [0, 0, 1, 1, -1] and found["city"][1] == ["a", "b"]


def test_categories_are_cut_at_a_depth() -> None:
    items = pa.table({"category": pa.array([["a", "b", "c"], ["a", "b"], ["a"], [], None, ["a", "d"]])})
    label, names = category_labels(items, 2)
    assert [None if k < 0 else names[k] for k in label] == ["a > b", "a > b", "a", None, None, "a > d"]
    assert category_labels(items, 1)[1] == ["a"]
    assert category_labels(pa.table({"lat": [1.0]}), 1)[0].tolist() == [-1]


def test_examples_are_the_largest_prefixes_with_their_categories() -> None:
    codes = ints([[7, 1]] * 3 + [[7, 2]] * 2 + [[5, 1]])
    found = cohesion_examples(codes, ints([0, 1, 1, 0, 0, -1]), ["bbq", "tea"], most=1)
    assert found == [
        {"prefix": [7], "items": 5, "categories": [["bbq", 3], ["tea", 2]]},
        {"prefix": [7, 1], "items": 3, "categories": [["tea", 2], ["bbq", 1]]},
    ]


def test_reconstruction_is_the_error_of_decoding() -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 3
    tokenizer = ResidualKMeans(TokenizerConfig(levels=2, codes=8), KMeansOptions(iterations=4)).fit(x)
    codes = tokenizer.encode(x)
    found = reconstruction(tokenizer, x, codes.numpy(), block_rows=64)
    for level in (1, 2):
        left = x - tokenizer.decode(codes[:, :level])
        assert found["error"][level - 1] == pytest.approx(float(left.square().sum(1).mean()), rel=1e-5)
        want = 1 - float(left.square().sum() / (x - x.mean(0)).square().sum())
        assert found["explained"][level - 1] == pytest.approx(want, rel=1e-4)
    assert found["rows"] == 300
    some = reconstruction(tokenizer, x, codes.numpy(), rows=128, block_rows=64)
    assert some["rows"] in (128, 108) and abs(some["explained"][1] - found["explained"][1]) < 0.1


def test_all_measures_of_tokens_that_say_the_district() -> None:
    rng = np.random.default_rng(0)
    district = rng.integers(0, 6, 200)
    codes = np.column_stack([district, rng.integers(0, 4, 200)])
    items = pa.table(
        {
            "district": [f"d{d}" for d in district],
            "category": pa.array([["Dining", f"k{d % 2}"] for d in district]),
        }
    )
    found = token_measures(codes, 8, items)
    first, second = found["levels"]
    assert first["nmi"] == {"district": pytest.approx(1)} and second["nmi"]["district"] < 0.9
    assert first["cohesion"]["secondary"]["purity"] == 1 and first["prefixes"] == 6
    assert first["usage"]["dead"] == 2
    assert len(found["examples"]) == 6


def test_regions_of_some_rows_are_those_of_all() -> None:
    """Two rows share a label exactly where they do when all items are labelled."""
    rng = np.random.default_rng(0)
    names = {n: pa.array(rng.choice([None, "a", "b", "c"], 300).tolist(), pa.string()) for n in REGIONS}
    items = pa.table(names)
    whole = region_labels(items)
    rows = rng.integers(0, 300, (40, 5))
    for name in REGIONS:
        mine, theirs = RegionOfRows(items, name)[rows], whole[name][0][rows]
        assert mine.shape == rows.shape and ((mine < 0) == (theirs < 0)).all()
        flat, other = mine.reshape(-1), theirs.reshape(-1)
        assert ((flat[:, None] == flat) == (other[:, None] == other)).all()


def test_token_measures_of_some_items() -> None:
    rng = np.random.default_rng(0)
    codes, rows = rng.integers(0, 6, (500, 2)), np.arange(0, 500, 3)
    items = pa.table({"district": [f"d{c}" for c in codes[:, 0]]})
    found, all_of_them = token_measures(codes, 6, items.take(pa.array(rows)), rows), token_measures(codes, 6, items)
    for some, every in zip(found["levels"], all_of_them["levels"], strict=True):
        assert some["usage"] == every["usage"] and some["prefixes"] == every["prefixes"]
    assert found["levels"][0]["nmi"]["district"] == pytest.approx(1)
    assert found["levels"][1]["nmi"]["district"] == nmi(id_numbers(codes)[rows], codes[rows, 0])
