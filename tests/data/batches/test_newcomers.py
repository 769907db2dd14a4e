"""Places that training takes for new ones: what is left out of a batch, against a loop, and what the ranker gets."""

import pytest
import torch
from catalogs import all_features, make_sample, make_tables, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from placerank.data.batches.activity import activity_features
from placerank.data.batches.batch import SampleBatch
from placerank.data.batches.catalog import Catalog
from placerank.data.batches.newcomers import with_newcomers


def visits_of(sample: SampleBatch, request: int) -> list[tuple[int, float]]:
    some = slice(sample.offsets[request], sample.offsets[request + 1])
    return list(zip(sample.history[some].tolist(), sample.history_hours[some].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), max_size=8), st.integers(1, 20), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0)
)
def test_nothing_is_left_of_visits_to_new_places(lengths: list[int], items: int, share: float, seed: int) -> None:
    sample = make_sample(items, lengths, candidates=[1 + n % 3 for n in lengths])
    got, new = with_newcomers(sample, share, seed)
    fresh = set(new.tolist())
    assert fresh <= set(sample.item.tolist()) and new.tolist() == sorted(fresh)
    assert share not in (0.0, 1.0) or fresh == (set(sample.item.tolist()) if share else set())
    assert len(got.offsets) == len(sample.offsets)
    for request in range(len(lengths)):
        assert visits_of(got, request) == [v for v in visits_of(sample, request) if v[0] not in fresh]
    pairs = zip(sample.item.tolist(), sample.visits.tolist(), strict=True)
    assert got.visits.tolist() == [0 if item in fresh else count for item, count in pairs]
    assert torch.equal(got.item, sample.item) and torch.equal(got.label, sample.label)
    again = with_newcomers(sample, share, seed)[1]
    assert torch.equal(new, again), "a run that is resumed has the same"


def test_as_many_are_new_as_was_asked_for_and_seeds_draw_others() -> None:
    sample = make_sample(5_000, [0] * 20_000)
    draws = [with_newcomers(sample, 0.1, seed)[1] for seed in (0, 1)]
    for new in draws:
        assert 0.08 < len(new) / len(sample.item.unique()) < 0.12
    assert len(set(draws[0].tolist()) & set(draws[1].tolist())) < 0.2 * len(draws[0])


@pytest.mark.parametrize("plain", [True, False])
def test_new_places_have_row_0_and_no_activity_but_all_else(plain: bool) -> None:
    features = all_features(40, plain)
    catalog = Catalog.of(*make_tables(40), features, torch.device("cpu"))
    sample = make_sample(40, [3, 0, 7, 1] * 5)
    found = torch.cat([sample.item, sample.history]).unique()
    new = sample.item.unique()[::2]
    fresh = torch.isin(found, new)
    assert 3 < fresh.sum() < len(found) - 3
    plainly, got = (tensors_of(catalog.expand(catalog.gather(sample, x))) for x in (None, new))
    want = plainly | {"items.item": found.where(~fresh, 0)}
    if not plain:
        cold = activity_features(torch.zeros(1), torch.zeros(1))
        activity = plainly["dense.traits.activity"].where(~fresh[:, None], cold)
        assert (activity != plainly["dense.traits.activity"]).any()
        columns = plainly["dense.features"].clone()
        columns[:, 3 : 3 + cold.shape[1]] = activity[plainly["dense.target"]]  # after distance and visits
        want |= {"dense.traits.activity": activity, "dense.features": columns}
        for name in ("item_cluster", "item_head"):
            key = f"dense.loss_inputs.{name}"
            want[key] = plainly[key].where(~fresh, torch.zeros_like(plainly[key]))
        place = "dense.loss_inputs.place"
        want[place] = plainly[place].where(~fresh[:, None], torch.nan)
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
