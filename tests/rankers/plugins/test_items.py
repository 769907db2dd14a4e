"""Items from their rows: the warm-up of each combination of attributes equals that of each item."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from placerank.data.batches.features import Features, Table
from placerank.rankers.plugins.akt import AktConfig
from placerank.rankers.plugins.items import ItemEncoder
from placerank.rankers.plugins.rest import RestConfig

D, CATEGORIES, BRANDS = 8, 5, 4


def make(rest: RestConfig, items: int) -> tuple[ItemEncoder, list[Tensor], Tensor]:
    """An encoder, rows of its tables that require gradients, and which of the attributes' rows they are."""
    sizes = {"item": 100, "category": CATEGORIES, "brand": BRANDS}
    features = Features(tuple(Table(n, rows, D, (n,)) for n, rows in sizes.items()), (), (), traits=True)
    torch.manual_seed(0)
    encoder = ItemEncoder(features, rest, AktConfig(enabled=False))
    attributes = torch.stack([torch.randint(CATEGORIES, (items,)), torch.randint(BRANDS, (items,))], dim=1)
    tables = [torch.randn(n, D) for n in (CATEGORIES, BRANDS)]
    rows = [torch.randn(items, D), *(t[a] for t, a in zip(tables, attributes.unbind(1), strict=True))]
    return encoder, [r.requires_grad_() for r in rows], attributes


@pytest.mark.parametrize("items", [0, 1, 60])
def test_warm_up_by_combination_equals_warm_up_by_item(items: int) -> None:
    encoder, rows, attributes = make(RestConfig(enabled=True, warm_up=True), items)
    assert encoder.warm_up is not None
    found = encoder(rows, attributes).vectors
    want = encoder.warm_up(rows[0], torch.stack(rows[1:], dim=1), attributes > 0)
    torch.testing.assert_close(found[:, :D], want)
    torch.testing.assert_close(found, torch.cat([want, *rows[1:]], dim=1))
    leaves = [rows[0], *encoder.parameters()]
    grad = torch.randn(items, D)
    for a, b in zip(
        torch.autograd.grad(found[:, :D], leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_rows_of_the_same_attribute_get_the_same_gradient_together() -> None:
    encoder, rows, attributes = make(RestConfig(enabled=True, warm_up=True), 60)
    assert encoder.warm_up is not None
    grad = torch.randn(60, D)

    def by_row(own: Tensor) -> list[Tensor]:
        got = torch.autograd.grad(own, rows[1:], grad)
        return [torch.zeros(n, D).index_add(0, attributes[:, i], got[i]) for i, n in enumerate((CATEGORIES, BRANDS))]

    each = encoder.warm_up(rows[0], torch.stack(rows[1:], dim=1), attributes > 0)
    for a, b in zip(by_row(encoder(rows, attributes).vectors[:, :D]), by_row(each), strict=True):
        torch.testing.assert_close(a, b)


def test_the_network_runs_once_a_combination_but_once_an_item_with_dropout() -> None:
    for dropout, most in ((0.0, CATEGORIES * BRANDS), (0.5, 60)):
        encoder, rows, attributes = make(RestConfig(enabled=True, warm_up=True, attribute_dropout=dropout), 60)
        assert encoder.warm_up is not None
        with mock.patch.object(encoder.warm_up, "content", wraps=encoder.warm_up.content) as content:
            encoder(rows, attributes)
        seen = content.call_args.args[0].shape[0]
        assert seen == (len(attributes.unique(dim=0)) if not dropout else 60) and seen <= most
