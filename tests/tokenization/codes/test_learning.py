"""Batches over ranks, and an optimizer that goes on from a state."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from placerank.tokenization.codes.learning import batches, keep_adam, restore_adam, step
from placerank.tokenization.ranks import Ranks


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 12), st.integers(1, 4))
def test_ranks_share_each_batch_and_every_pass_sees_every_row(total: int, rows: int, least: int, world: int) -> None:
    alone = [mine.tolist() for mine, _ in batches(total, rows, least, rng(), Ranks())]
    shares = [list(batches(total, rows, least, rng(), Ranks(rank, world))) for rank in range(world)]
    assert len(alone) >= least and len(alone) % -(-total // rows) == 0
    for number, whole in enumerate(alone):
        together = [int(i) * world + rank for rank in range(world) for i in shares[rank][number][0]]
        assert sorted(together) == sorted(whole)
        assert {share[number][1] for share in shares} == {len(whole)}
    passes = len(alone) // -(-total // rows)
    assert sorted(i for batch in alone for i in batch) == sorted(list(range(total)) * passes)


def test_an_optimizer_taken_up_again_is_undisturbed() -> None:
    x = torch.randn(20, 3, generator=rng())

    def train(steps: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = state.get("w", torch.ones(3)).clone().requires_grad_()
        optimizer = restore_adam({"w": weight}, state, lr=0.1)
        for _ in range(steps):
            step(((x @ weight - x[:, 0]) ** 2).mean(), [weight], optimizer, Ranks())
        kept = {"w": weight.detach()}
        keep_adam(optimizer, {"w": weight}, kept)
        return kept

    whole, parts = train(6, {}), train(2, train(4, {}))
    assert whole.keys() == parts.keys() and len(whole) == 4
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
