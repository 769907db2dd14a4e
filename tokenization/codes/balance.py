"""Codes of bounded size, one item at a time.

An assignment that fills each code up to a limit would need to see all items at once, and a new item could push others
out. Instead each code gets a price, learned once from a sample: an item takes the code with the smallest squared
distance + price, and codes that were too full on the sample have become dear. These are the dual variables of the
balanced transport problem, so prices that hold the limits exactly give the best assignment that does; and encoding
stays a function of one item and the codebooks: streamed, the same for new items, and in the same kernel.

What prices cannot do is to part items with equal embeddings, so a code that is full of copies stays full.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.codebook import residual_encode
from ..ranks import Ranks

ROUNDS, _LAST_ROUNDS = 40, 60
_STEP = 0.1  # first step of a price, as a share of the mean squared distance


def with_prices(z: Tensor, codebooks: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, d + L] and codebooks [L, K, d + L] whose squared distances are those of z [N, d] plus the prices.

    Level l has a dimension of its own, where rows have 0 and centre k has sqrt(prices[l, k]); other levels have 0
    there, so what a chosen centre leaves in it is the same for all centres of later levels.
    """
    levels = codebooks.shape[0]
    own = torch.diag_embed(prices.clamp(min=0).sqrt().T)  # [K, L, L]
    return pad(z, (0, levels)), torch.cat([codebooks, own.transpose(0, 1)], dim=2)


def fit_prices(z: Tensor, codebooks: Tensor, capacity: float, total: int, ranks: Ranks) -> Tensor:
    """Prices float32 [L, K], level by level, of Euclidean codebooks.

    Args:
        z: this rank's rows of the sample, [S, d].
        codebooks: [L, K, d].
        capacity: most rows of a code, in multiples of the even share.
        total: rows of the sample over all ranks.

    Returns:
        The prices under which the fullest code was least full, of those tried: at most the capacity where it can be.
    """
    levels, count, _ = codebooks.shape
    prices = torch.zeros(levels, count, device=z.device)
    residual = z
    for level in range(levels):
        book = codebooks[level : level + 1]
        codes = residual_encode(residual, book)[:, 0]
        error = (residual - book[0, codes]).square().sum().double().reshape(1)
        ranks.sum_(error)
        unit = float(error) / total
        now, best, fullest = prices[level].clone(), prices[level].clone(), float("inf")
        steps, before = torch.full_like(now, _STEP * unit), torch.zeros_like(now)
        for step in range(ROUNDS + _LAST_ROUNDS):
            codes = residual_encode(*with_prices(residual, book, now[None]))[:, 0]
            counts = torch.bincount(codes, minlength=count).double()
            ranks.sum_(counts)
            share = counts * (count / (capacity * total))  # 1 is full
            if float(share.max()) < fullest:
                best, fullest = now.clone(), float(share.max())
            if fullest <= 1:
                break
            # Rprop: each code's step grows while it errs to the same side, and halves when it has crossed its limit.
            side = torch.where(share > 1, 1.0, -1.0).to(now)
            steps = (steps * torch.where(side == before, 1.3, 0.5)).clamp(1e-3 * unit, 4 * unit)
            if step >= ROUNDS:  # at last prices only rise, which leaves no code beyond its limit for others to circle
                steps = steps.clamp(max=_STEP * unit / 10)
                side = side.clamp(min=0)
            now, before = (now + side * steps).clamp(min=0), side
        prices[level] = best
        codes = residual_encode(*with_prices(residual, book, best[None]))[:, 0]
        residual = residual - book[0, codes]
    return prices
