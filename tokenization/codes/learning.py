"""Gradient training of codebooks: steps summed over ranks, and an optimizer that lies in the state of a fit."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..ranks import Ranks

PREFIX = "fit.adam."  # what begins with "fit." is dropped when the fit ends
_MOMENTS = ("exp_avg", "exp_avg_sq")


def restore_adam(parameters: dict[str, Tensor], state: dict[str, Tensor], lr: float) -> torch.optim.Adam:
    """Adam over named parameters, going on from the moments in a state where there are any."""
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    for name, parameter in parameters.items():
        if f"{PREFIX}{name}.step" in state:
            moments = {moment: state[f"{PREFIX}{name}.{moment}"] for moment in _MOMENTS}
            optimizer.state[parameter] = {"step": state[f"{PREFIX}{name}.step"].cpu(), **moments}
    return optimizer


def keep_adam(optimizer: torch.optim.Adam, parameters: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Write the moments into a state."""
    for name, parameter in parameters.items():
        for kind, value in optimizer.state[parameter].items():
            state[f"{PREFIX}{name}.{kind}"] = value


def step(loss: Tensor, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """One step down the gradient of the sum of the ranks' losses."""
    optimizer.zero_grad()
    loss.backward()
    ranks.sum_(*(p.grad for p in parameters if p.grad is not None))
    optimizer.step()


def batches(
    total: int, rows: int, least: int, generator: torch.Generator, ranks: Ranks
) -> Iterator[tuple[Tensor, int]]:
    """Row numbers of this rank's sample, batch by batch, in a new random order, and the batch's rows over all ranks.

    One pass over the sample, or as many as make ``least`` batches.

    Row i of the whole sample is row i // W of rank i mod W (``draw_sample``), so batches hold the same rows whatever
    the number of ranks; a rank's share may be empty.
    """
    for _ in range(max(1, -(-least // -(-total // rows)))):
        for some in torch.randperm(total, generator=generator).split(rows):
            yield some[some % ranks.world == ranks.rank] // ranks.world, len(some)
