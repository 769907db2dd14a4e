"""The warm-up against equations 3 and 4 by hand, and what it does where attributes are missing."""

import pytest
import torch
from torch import Tensor

from placerank.embeddings.warm_up import MetaWarmUp

D, F = 4, 3


def make(dropout: float = 0.0) -> MetaWarmUp:
    torch.manual_seed(0)
    warm_up = MetaWarmUp(D, F, dropout)
    for parameter in warm_up.parameters():
        torch.nn.init.normal_(parameter)
    return warm_up


def by_hand(warm_up: MetaWarmUp, identity: Tensor, attributes: Tensor, known: Tensor) -> Tensor:
    """One item: [D], [F, D], bool [F] to [D]."""
    if not known.any():
        return identity
    first, _, second, _ = warm_up.excite
    squeezed = torch.stack([attributes[f].mean() if known[f] else torch.zeros(()) for f in range(F)])
    hidden = (first.weight @ squeezed + first.bias).clamp(min=0)
    weights = 1 / (1 + (-(second.weight @ hidden + second.bias)).exp())
    rows = [weights[f] * attributes[f] if known[f] else torch.zeros(D) for f in range(F)]
    inner, _, outer = warm_up.mlp
    return identity + outer.weight @ (inner.weight @ torch.cat(rows) + inner.bias).clamp(min=0) + outer.bias


def test_equals_the_equations_by_hand() -> None:
    warm_up, ids, attributes = make(), torch.randn(20, D), torch.randn(20, F, D)
    known = torch.rand(20, F) < 0.6
    known[0], known[1] = False, True
    expected = torch.stack([by_hand(warm_up, *item) for item in zip(ids, attributes, known, strict=True)])
    torch.testing.assert_close(warm_up(ids, attributes, known), expected)
    torch.testing.assert_close(warm_up(ids, attributes), warm_up(ids, attributes, torch.ones_like(known)))


def test_an_unknown_attribute_says_and_learns_nothing() -> None:
    warm_up, ids, attributes = make(), torch.randn(2, D), torch.randn(2, F, D)
    known = torch.tensor([[True, False, True], [False, False, False]])
    attributes.requires_grad_()
    other = torch.where(known[:, :, None], attributes.detach(), torch.full_like(attributes, torch.nan))
    out = warm_up(ids, attributes, known)
    assert torch.equal(out, warm_up(ids, other, known)) and torch.equal(out[1], ids[1])
    out.sum().backward()
    assert attributes.grad is not None
    assert attributes.grad[known].any(dim=1).all() and not attributes.grad[~known].any()


def test_dropout_takes_each_attribute_away_in_training_only() -> None:
    warm_up = make(dropout=0.3)
    ids, attributes = torch.zeros(1, D), torch.randn(1, F, D)
    rows = 4000
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * F)
    possible = torch.cat([warm_up.eval()(ids, attributes, m[None]) for m in masks])
    torch.testing.assert_close(warm_up(ids, attributes), possible[-1:])
    out = warm_up.train()(ids.expand(rows, -1), attributes.expand(rows, -1, -1))
    which = torch.cdist(out, possible).argmin(dim=1)
    torch.testing.assert_close(out, possible[which])
    kept = masks[which].float().mean(dim=0)
    assert (kept - 0.7).abs().max() < 4 * (0.21 / rows) ** 0.5  # four standard deviations


def test_at_the_start_attributes_are_heard_and_do_not_drown_the_id() -> None:
    torch.manual_seed(0)
    ids, attributes = (torch.empty(s).uniform_(-0.1, 0.1) for s in ((500, 16), (500, 2, 16)))
    content = MetaWarmUp(16, 2)(ids, attributes) - ids
    assert 0.1 < content.std() / ids.std() < 1
    assert (content.mean(dim=0).abs() < content.std()).all()  # no constant that all items share


def test_no_items() -> None:
    warm_up = make(dropout=0.5).train()
    assert warm_up(torch.empty(0, D), torch.empty(0, F, D)).shape == (0, D)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="attributes: got 0, expected 1 or more"):
        MetaWarmUp(D, 0)
    with pytest.raises(ValueError, match=r"attribute dropout: got 1.0, expected a probability in \[0, 1\)"):
        MetaWarmUp(D, 1, 1.0)
