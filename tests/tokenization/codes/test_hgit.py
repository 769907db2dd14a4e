"""HGIT: its first level, its loss and gradient, training that helps, and dead centres."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from placerank.kernels.codebook import soft_usage_reference
from placerank.tokenization.codes.attributes import AttributeFeatures
from placerank.tokenization.codes.hgit import HGIT, HGITOptions, _evenness
from placerank.tokenization.codes.tokenizer import TokenizerConfig
from placerank.tokenization.judging.measures import nmi, usage
from placerank.tokenization.ranks import Ranks, joined

DIM = 12


def world(rows: int = 400, seed: int = 0) -> tuple[Tensor, pa.Table]:
    """Embeddings that know the category alone; places in eight districts."""
    g = torch.Generator().manual_seed(seed)
    category, district = torch.randint(5, (rows,), generator=g), torch.randint(8, (rows,), generator=g)
    x = torch.randn(5, DIM, generator=g)[category] + 0.5 * torch.randn(rows, DIM, generator=g)
    rng = np.random.default_rng(seed)
    items = pa.table(
        {
            "lat": 30 + district.numpy() / 10 + rng.normal(0, 0.003, rows),
            "lon": 120 + rng.normal(0, 0.003, rows),
            "district": [f"d{d}" for d in district.tolist()],
            "category": pa.array([["Dining", f"k{c}"] for c in category.tolist()]),
        }
    )
    return x, items


def fit(x: Tensor, items: pa.Table, levels: int = 3, codes: int = 8, **options: Any) -> HGIT:
    return HGIT(
        TokenizerConfig(levels=levels, codes=codes), HGITOptions(**{"epochs": 2, "batch_rows": 128, **options})
    ).fit(x, items)


def test_first_codes_are_nearest_clusters_and_centres_mean_embeddings() -> None:
    x, items = world()
    tokenizer = fit(x, items)
    features = AttributeFeatures.fit(items, tokenizer.options.weights)(items)
    codes = tokenizer.encode(x, items)[:, 0]
    assert torch.equal(codes, torch.cdist(features, tokenizer.state["clusters"]).argmin(1))
    for k in codes.unique():
        torch.testing.assert_close(tokenizer.state["codebooks"][0, k], x[codes == k].mean(0), rtol=1e-4, atol=1e-5)


def test_first_codes_say_the_place_which_the_embeddings_do_not_know() -> None:
    x, items = world()
    district = np.array([int(d[1:]) for d in items["district"].to_pylist()])
    codes = fit(x, items, w_category=0.0).encode(x, items)[:, 0].numpy()
    assert nmi(codes, district) == pytest.approx(1)
    by_category = fit(x, items, w_admin=0.0, w_geo=0.0).encode(x, items)[:, 0].numpy()
    found = nmi(by_category, district)
    assert found is not None and found < 0.2


@pytest.mark.parametrize("columns", [["lat", "lon"], ["district"], ["category"]])
def test_one_kind_of_attribute_is_enough(columns: list[str]) -> None:
    x, items = world()
    codes = fit(x, items.select(columns)).encode(x, items.select(columns))
    assert len(codes[:, 0].unique()) >= 5


def test_later_levels_are_nearest_centres_of_the_residual() -> None:
    x, items = world()
    tokenizer = fit(x, items)
    codes, books = tokenizer.encode(x, items), tokenizer.state["codebooks"]
    left = x - books[0][codes[:, 0]]
    for level in (1, 2):
        assert torch.equal(codes[:, level], torch.cdist(left, books[level]).argmin(1))
        left = left - books[level][codes[:, level]]
    torch.testing.assert_close(tokenizer.decode(codes), x - left, rtol=1e-5, atol=1e-5)


def test_a_single_level_needs_no_training() -> None:
    x, items = world()
    assert fit(x, items, levels=1).encode(x, items).shape == (400, 1)


def test_training_keeps_more_of_the_embeddings_than_k_means_alone() -> None:
    x, items = world(1500)
    error = lambda t: float((x - t.decode(t.encode(x, items))).square().sum())  # noqa: E731
    start, trained = fit(x, items, 4, epochs=0), fit(x, items, 4, epochs=10, lambda_reg=0.0)
    assert error(trained) < 0.99 * error(start)


def test_the_entropy_term_evens_out_usage() -> None:
    x, items = world(1500)
    g = torch.Generator().manual_seed(5)
    x[:1000] = x[:1] + 0.1 * torch.randn(1000, DIM, generator=g)  # two thirds of the items nearly alike
    even = lambda t: usage(t.encode(x, items)[:, 2].numpy(), 8)["evenness"]  # noqa: E731
    assert even(fit(x, items, epochs=6, lambda_reg=0.5)) > even(fit(x, items, epochs=6, lambda_reg=0.0)) + 0.02


def kl_of(x: Tensor, centres: Tensor, temperature: float) -> Tensor:
    """The paper's regularizer as it is written, with the soft usage for p."""
    p = soft_usage_reference(x, centres, temperature)
    return (p * (p * len(centres)).log()).sum()


def test_gradient_of_the_entropy_term_is_that_of_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    x, centres = torch.randn(64, 5, generator=g), torch.randn(7, 5, generator=g)
    a, b = centres.clone().requires_grad_(), centres.clone().requires_grad_()
    kl_of(x, a, 0.7).backward()
    _evenness(x, b, 0.7, Ranks()).backward()
    assert a.grad is not None and b.grad is not None and float(a.grad.abs().max()) > 1e-3
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def gradient_on_ranks(shares: list[int]) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x, centres = torch.randn(64, 5, generator=g), torch.randn(7, 5, generator=g).requires_grad_()
    with joined() as ranks:
        start = sum(shares[: ranks.rank])
        _evenness(x[start : start + shares[ranks.rank]], centres, 0.7, ranks).backward()
        assert centres.grad is not None
        ranks.sum_(centres.grad)
        return centres.grad


def test_gradients_of_ranks_add_up_also_when_one_has_no_rows(ranks: Callable[..., list[Any]]) -> None:
    alone = gradient_on_ranks([64])
    for found in ranks(3, gradient_on_ranks, [40, 24, 0]):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


def test_dead_centres_go_where_the_error_is_and_forget_their_momentum() -> None:
    tokenizer = HGIT(TokenizerConfig(levels=2, codes=4), HGITOptions())
    seeds = torch.cat([torch.zeros(50, DIM), torch.full((1, DIM), 9.0)])
    books = torch.zeros(2, 4, DIM)
    books[1, 3] = 1e3
    moments = {f"fit.adam.levels.{m}": torch.ones(1, 4, DIM) for m in ("exp_avg", "exp_avg_sq")}
    state = {"codebooks": books, **moments}
    tokenizer._revive(state, torch.tensor([[5.0, 1, 1, 0]]), seeds, torch.Generator().manual_seed(0))
    assert (state["codebooks"][1, 3] == 9).all() and (state["codebooks"][1, :3] == 0).all()
    for moment in moments:
        assert (state[moment][0, 3] == 0).all() and (state[moment][0, :3] == 1).all()


@pytest.mark.parametrize("epochs", [0, 2])
def test_no_centre_is_left_without_items(epochs: int) -> None:
    """Twelve kinds of residual on the second level, and as many codes; most items are of one kind."""
    g = torch.Generator().manual_seed(0)
    kinds = torch.cat([torch.zeros(800, dtype=torch.int64), torch.arange(1, 12)])
    x = 3 * torch.randn(12, DIM, generator=g)[kinds] + 1e-3 * torch.randn(811, DIM, generator=g)
    items = world(811)[1]
    codes = fit(x, items, levels=2, codes=12, epochs=epochs, lambda_reg=1.0).encode(x, items)
    assert len(codes[:, 1].unique()) == 12


def test_repair_moves_dead_centres_alone() -> None:
    x, items = world()
    tokenizer = fit(x, items, epochs=0)
    data = tokenizer._data(x, items, Ranks())
    books = tokenizer.state["codebooks"].clone()
    assert torch.equal(tokenizer._repair(dict(tokenizer.state), data, torch.Generator())["codebooks"], books)
    books[2, 5] = 1e3
    mended = tokenizer._repair(tokenizer.state | {"codebooks": books}, data, torch.Generator())["codebooks"]
    assert (mended != books).any(2).nonzero().tolist() == [[2, 5]]
    tokenizer.state["codebooks"] = mended
    assert len(tokenizer.encode(x, items)[:, 2].unique()) == 8


def test_settings_that_make_no_sense_are_told() -> None:
    for field, value, rule in (
        ("w_geo", -1.0, "expected 0 or more"),
        ("admin_scale", [1.0], "expected 3 numbers"),
        ("category_scale", [0.0, 0.0], "not all 0"),
        ("temperature", 0.0, "expected more than 0"),
        ("epochs", -1, "expected 0 or more"),
        ("batch_rows", 0, "expected at least 1"),
    ):
        with pytest.raises(ValueError, match=rf"hgit\.{field}=.*{rule}"):
            HGITOptions(**{field: value})
    x, _ = world(50)
    with pytest.raises(ValueError, match=r"hgit looks at the items' attributes: got no items"):
        HGIT(TokenizerConfig(codes=4)).fit(x)
