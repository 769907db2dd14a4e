"""ReST's contrast against a loop over pairs of items, its weights by hand, its ablations and its ugly inputs."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from elsewhere import elsewhere, move, moved
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placerank.data.batches.density import density_scale
from placerank.kernels.haversine import haversine_km, unit_vectors
from placerank.rankers.plugins.rest import ContrastItems, RestConfig, SpatialContrast, rest_preset

D, K = 6, 4


def make_items(n: int, seed: int = 0, brands: int = 4, spread: float = 0.1) -> tuple[ContrastItems, Tensor, Tensor]:
    """Items of one town, some of them without a brand, a category or a place; and their degrees."""
    g = torch.Generator().manual_seed(seed)
    lat = 40 + spread * torch.randn(n, generator=g, dtype=torch.float64)
    lon = 10 + spread * torch.randn(n, generator=g, dtype=torch.float64)
    lat[torch.rand(n, generator=g) < 0.1] = torch.nan
    rows = torch.stack([torch.randint(5, (n,), generator=g), torch.randint(brands, (n,), generator=g)], dim=1)
    tables = torch.randn(2, 5, D, generator=g)
    attributes = torch.stack([tables[0][rows[:, 0]], tables[1][rows[:, 1]]], dim=1)
    vectors = torch.randn(n, D, generator=g).requires_grad_()
    return ContrastItems(vectors, rows, attributes, unit_vectors(lat, lon).float(), torch.arange(n)), lat, lon


def make(config: RestConfig) -> SpatialContrast:
    contrast = SpatialContrast(D, config)
    contrast.centres.centres.normal_(generator=torch.Generator().manual_seed(7))
    return contrast


def config(**changes: Any) -> RestConfig:
    return RestConfig(**{"negatives": K, "centres": 3, "positive_km": 15.0, "negative_km": 8.0, **changes})


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def alpha_by_hand(contrast: SpatialContrast, items: ContrastItems, i: int) -> float:
    if not contrast.config.align:
        return 1.0
    known = [items.attributes[i, f] for f in range(2) if items.rows[i, f] > 0]
    semantic = sum(known) / len(known) if known else torch.zeros(D)
    nearest = min(contrast.centres.centres, key=lambda centre: float((semantic - centre).norm()))
    return 1 - (float(cosine(items.vectors[i].detach(), nearest)) + 1) / 2


def loss_by_hand(
    contrast: SpatialContrast, items: ContrastItems, lat: Tensor, lon: Tensor, anchors: int | None = None
) -> tuple[Tensor, float]:
    """The weighted loss, a pair at a time, and the share of items with a known category that have a positive.

    Both are of the first so many items, if that is given.
    """
    settings, n = contrast.config, len(lat)
    first = n if anchors is None else anchors
    total, shares = torch.zeros(()), {}
    for name in settings.contrast:
        values = items.rows[:, ("category", "brand").index(name)].tolist()
        terms, with_positive = [], 0
        for i in range(first):
            scale = 1.0 if items.radius_scale is None else float(items.radius_scale[i])
            km = [float(haversine_km(lat[i], lon[i], lat[j], lon[j])) for j in range(n)]
            others = [j for j in range(n) if j != i and values[i] > 0 and values[j] > 0]
            alike = [float(cosine(items.vectors[i].detach(), items.vectors[j].detach())) for j in range(n)]
            positives = [j for j in others if values[j] == values[i] and km[j] <= settings.positive_km * scale]
            negatives = [j for j in others if values[j] != values[i] and km[j] <= settings.negative_km * scale]
            with_positive += bool(positives)
            if not positives or not negatives:
                continue
            chosen = [min(positives, key=alike.__getitem__)]
            chosen += sorted(negatives, key=alike.__getitem__, reverse=True)[: settings.negatives]
            powers = [(cosine(items.vectors[i], items.vectors[j]) / settings.temperature).exp() for j in chosen]
            terms.append(alpha_by_hand(contrast, items, i) * -(powers[0] / sum(powers)).log())
        if terms:
            total = total + sum(terms) / len(terms)
        shares[name] = with_positive / max(1, sum(v > 0 for v in values[:first]))
    return settings.weight * total, shares.get("category", 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"align": False},
        {"contrast": ["brand"]},
        {"positive_km": math.inf, "negative_km": math.inf},
        {"temperature": 0.7, "weight": 2.0, "negatives": 1},
    ],
)
def test_loss_and_gradient_equal_a_loop_over_pairs(changes: dict[str, Any]) -> None:
    contrast = make(config(**changes))
    items, lat, lon = make_items(40)
    loss, logged = contrast(items)
    expected, share = loss_by_hand(contrast, items, lat, lon)
    assert loss > 0
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, items.vectors)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, items.vectors)[0], rtol=1e-4, atol=1e-6)
    if "category" in contrast.config.contrast:
        assert float(logged["category_positives"]) == pytest.approx(share)


PARTS = [[3, 0, 11, 25, 7, 8, 30, 20, 21, 22, 23, 24], [7, 12, 13, 3, 26, 31, 14, 15, 38, 1, 2], [], [39, 7]]
"""Items of each rank: unequal in number, some on several ranks, none on one."""


def on_ranks(parts: list[list[int]], most: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """On each rank: loss, gradient of its items, and what is logged; a GPU would have the same, without a wait."""
    dist.init_process_group("gloo")
    mine = torch.tensor(parts[dist.get_rank()], dtype=torch.int64)
    contrast, (items, _, _) = make(config(across_ranks=True)), make_items(40)
    own = ContrastItems(*(x.detach()[mine] for x in items[:5]))
    own.vectors.requires_grad_()
    there = ContrastItems(*map(moved, own[:5]))
    loss, logged = contrast(own, most)
    loss.backward()
    move(contrast)
    with elsewhere() as waits:
        other, _ = contrast(there, most)
        other.backward()
    assert not len(waits), str(waits)
    torch.testing.assert_close(other.here, loss)
    torch.testing.assert_close(there.vectors.grad.here, own.vectors.grad)
    dist.destroy_process_group()
    return loss.detach(), own.vectors.grad, logged


@pytest.mark.parametrize("parts", [PARTS[:1], PARTS[:2], PARTS[:3], PARTS], ids=len)
def test_across_ranks_it_is_one_process_with_all_items(ranks: Callable[..., list[Any]], parts: list[list[int]]) -> None:
    items, lat, lon = make_items(40)
    for own, (loss, gradient, logged) in zip(parts, ranks(len(parts), on_ranks, parts, 12), strict=True):
        everyone = torch.tensor([*own, *sorted({i for part in parts for i in part} - {*own})])
        together = ContrastItems(*(x.detach()[everyone] for x in items[:5]))
        together.vectors.requires_grad_()
        contrast = make(config())
        expected, share = loss_by_hand(contrast, together, lat[everyone], lon[everyone], len(own))
        torch.testing.assert_close(loss, expected.detach())
        assert float(logged["category_positives"]) == pytest.approx(share)
        if not own:
            assert loss == 0
            continue
        (whole,) = torch.autograd.grad(expected, together.vectors)
        torch.testing.assert_close(gradient, whole[: len(own)], rtol=1e-4, atol=1e-6)
        alone = contrast(ContrastItems(*(x.detach()[everyone[: len(own)]] for x in items[:5])))[0]
        assert torch.equal(loss, alone) == (len(parts) == 1), "other ranks matter where there are any"


def test_radii_of_each_item() -> None:
    contrast = make(config())
    items, lat, lon = make_items(40, seed=1)
    scaled = items._replace(radius_scale=torch.linspace(0.3, 3, 40))
    loss, _ = contrast(scaled)
    torch.testing.assert_close(loss, loss_by_hand(contrast, scaled, lat, lon)[0])
    assert not torch.isclose(loss, contrast(items)[0])
    torch.testing.assert_close(contrast(items._replace(radius_scale=torch.ones(40)))[0], contrast(items)[0])


def test_alpha_by_hand() -> None:
    contrast = SpatialContrast(2, RestConfig(centres=2))
    contrast.centres.centres.copy_(torch.tensor([[1.0, 0], [0, 10]]))
    items = ContrastItems(
        # the attributes' mean is (0.5, 9.5), nearest to (0, 10), where both are known; (1, 0) and (0, 19) alone
        vectors=torch.tensor([[3.0, 0], [0, -2], [1, 1], [4, 0], [0, 5], [0, 0]]),
        rows=torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0], [0, 2], [1, 1]]),
        attributes=torch.tensor([[1.0, 0], [0, 19]]).expand(6, 2, 2),
        places=torch.zeros(6, 3),
        ids=torch.arange(6),
    )
    torch.testing.assert_close(contrast.alpha(items), torch.tensor([0.5, 1.0, 0.5 - 0.5**1.5, 0.0, 0.0, 0.5]))
    assert not contrast.alpha(items).requires_grad


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(0, 30), brands=st.integers(1, 4), spread=st.sampled_from([0.0, 0.05, 5.0]), seed=st.integers(0, 99)
)
def test_the_order_of_items_does_not_matter_and_gradients_are_finite(
    n: int, brands: int, spread: float, seed: int
) -> None:
    contrast = make(config())
    items, _, _ = make_items(n, seed, brands, spread)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = ContrastItems(*(x[order] for x in items[:5]))
    (loss, logged), (other, _) = contrast(items), contrast(shuffled)
    torch.testing.assert_close(loss, other)
    (gradient,) = torch.autograd.grad(loss, items.vectors)
    assert gradient.isfinite().all() and all(x.isfinite() and not x.requires_grad for x in logged.values())
    assert not gradient[items.places.isnan().any(dim=1)].any(), "who has no place learns nothing"
    assert not gradient[(items.rows == 0).all(dim=1)].any(), "who has no attribute learns nothing"
    assert 0 <= logged["alpha"] <= 1 and 0 <= logged["category_positives"] <= 1


@pytest.mark.parametrize("missing", ["brand", "category", "both", "places"])
def test_what_all_items_lack_makes_no_loss(missing: str) -> None:
    contrast = make(config())
    items, lat, lon = make_items(30)
    if missing == "places":
        items = items._replace(places=torch.full_like(items.places, torch.nan))
    for column, name in enumerate(("category", "brand")):
        if missing in (name, "both"):
            items.rows[:, column] = 0
    loss, logged = contrast(items)
    assert (loss == 0) == (missing in ("both", "places"))
    loss.backward()
    assert items.vectors.grad is not None and items.vectors.grad.isfinite().all()
    if missing == "brand":
        assert logged["brand_loss"] == 0 and logged["brand_positives"] == 0
        torch.testing.assert_close(loss, loss_by_hand(contrast, items, lat, lon)[0])


def test_ablations_are_what_they_say() -> None:
    items, _, _ = make_items(40)
    full, no_align, no_brand, no_category, no_warm_up = (
        rest_preset(name) for name in ("rest", "rest-1", "rest-2", "rest-3", "rest-4")
    )
    assert (no_align.align, full.align) == (False, True) and (no_warm_up.warm_up, full.warm_up) == (False, True)
    whole = make(full)(items)[1]
    category, brand = make(no_brand)(items)[1], make(no_category)(items)[1]
    assert "brand_loss" not in category and "category_loss" not in brand
    assert category["category_loss"] == whole["category_loss"] > 0 and brand["brand_loss"] == whole["brand_loss"] > 0
    even = make(no_align)
    assert torch.equal(even.alpha(items), torch.ones(40)) and even(items)[1]["category_loss"] > whole["category_loss"]
    assert make(no_warm_up)(items)[0] == make(full)(items)[0]  # the warm-up is not the contrast's
    with pytest.raises(ValueError, match="preset 'rest-5' does not exist; there are rest, rest-1, rest-2"):
        rest_preset("rest-5")


def test_training_on_the_loss_parts_categories() -> None:
    items, _, _ = make_items(60, brands=1)
    contrast = make(config(weight=1.0, positive_km=math.inf, negative_km=math.inf))
    same = items.rows[:, :1] == items.rows[:, 0]
    there = ~items.places.isnan().any(dim=1) & (items.rows[:, 0] > 0)
    pairs = there & there[:, None] & ~torch.eye(60, dtype=torch.bool)

    def gap() -> float:
        """Mean cosine within categories less that between them."""
        unit = torch.nn.functional.normalize(items.vectors.detach(), dim=1)
        cosines = unit @ unit.t()
        return float(cosines[pairs & same].mean() - cosines[pairs & ~same].mean())

    assert abs(gap()) < 0.1
    optimizer = torch.optim.Adam([items.vectors], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        contrast(items)[0].backward()
        optimizer.step()
    assert gap() > 0.9


def test_centres_are_fitted_to_known_attributes_and_on_schedule() -> None:
    contrast = SpatialContrast(2, RestConfig(centres=2, refresh_every=10))
    assert [step for step in range(25) if contrast.due(step)] == [0, 1, 2, 4, 8, 10, 20]
    assert not SpatialContrast(2, RestConfig(align=False)).due(0)
    attributes = torch.tensor([[[2.0, 0], [4, 0]], [[0, 6], [9, 9]], [[50, 50], [50, 50]]])
    known = torch.tensor([[True, True], [True, False], [False, False]])
    contrast.refresh(attributes, known, torch.tensor([3, 1, 99]))
    assert sorted(contrast.centres.centres.tolist()) == [[0, 6], [3, 0]]
    assert set(contrast.state_dict()) == {"centres.centres", "centres.drift", "centres.refreshes"}


def test_density_lengthens_radii_in_the_country() -> None:
    rng = np.random.default_rng(0)
    lat = np.concatenate([rng.normal(40, 0.01, 200), rng.normal(40, 0.03, 100), rng.normal(41, 1, 50), [np.nan]])
    lon = np.concatenate([rng.normal(10, 0.01, 200), rng.normal(10.5, 0.03, 100), rng.normal(12, 1, 50), [np.nan]])
    scale = density_scale(lat, lon)
    assert scale[-1] == 1 and scale.min() >= np.float32(1 / 3) and scale.max() == 3
    assert np.median(scale[:-1]) == pytest.approx(1)
    assert np.median(scale[:200]) < np.median(scale[200:300]) < np.median(scale[300:350])
    for places in (0, 1, 50):  # none, too few to tell, all at one point
        assert (density_scale(np.full(places, 40.0), np.full(places, 10.0)) == np.ones(places)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast": ["brand", "brand"]}, r"rest.contrast=\['brand', 'brand'\]: expected each attribute once"),
        ({"positive_km": 0.0}, "rest.positive_km=0.0: expected a positive number"),
        ({"temperature": math.nan}, "rest.temperature=nan: expected a finite number"),
        ({"negatives": 0}, "rest.negatives=0: expected at least 1"),
        ({"attribute_dropout": 0.2}, "rest.attribute_dropout=0.2 drops attributes of the warm-up, which is off; set"),
        ({"attribute_dropout": 1.0}, r"rest.attribute_dropout=1.0: expected a probability in \[0, 1\)"),
        ({"warm_up": False, "contrast": []}, "it would do nothing; set rest.enabled"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RestConfig(**changes)


def test_any_number_of_attributes() -> None:
    """A third attribute, an own column, adds the loss that it has alone; so do the two before it."""
    items, _, _ = make_items(60)
    kitchen = torch.randint(4, (60, 1), generator=torch.Generator().manual_seed(3))
    items = items._replace(rows=torch.cat([items.rows, kitchen], dim=1))
    items = items._replace(attributes=torch.cat([items.attributes, items.attributes[:, :1]], dim=1))
    names = ["category", "brand", "kitchen"]

    def loss(contrasted: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        contrast = SpatialContrast(D, config(contrast=contrasted), names)
        contrast.centres.centres.normal_(generator=torch.Generator().manual_seed(7))
        found: tuple[Tensor, dict[str, Tensor]] = contrast(items)
        return found

    together, logged = loss(names)
    alone = [loss([name])[0] for name in names]
    torch.testing.assert_close(together, sum(alone, torch.zeros(())))
    assert all(x > 0 for x in alone) and {f"{name}_loss" for name in names} <= {*logged}


def test_attributes_that_the_data_lacks_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="these items have no attributes; contrast one that they have"):
        SpatialContrast(D, RestConfig(), [])
    with pytest.raises(
        ValueError, match=r"rest.contrast: got 'colour', target and history have brand; name one of them"
    ):
        SpatialContrast(D, RestConfig(contrast=["colour", "brand"]), ["brand"])
    with caplog.at_level(logging.WARNING):
        contrast = SpatialContrast(D, RestConfig(), ["category"])
    assert "no item has a brand, so it makes no loss" in caplog.text
    items, _, _ = make_items(30)
    alone = items._replace(rows=items.rows[:, :1], attributes=items.attributes[:, :1])
    loss, logged = contrast(alone)
    assert loss > 0 and "brand_loss" not in logged
