"""RQ-VAE (TIGER, Rajput et al. 2023): an autoencoder whose latent is the sum of residual codes.

    z = E(x), codes by nearest centres of the running residual r_l, q = sum of the chosen centres, x' = D(z + sg(q - z))
    L = |x - x'|^2 + sum_l |sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2

The straight-through q hands the decoder's gradient to the encoder as it is. Codebooks start from k-means on the latents
of the first, untrained encoder, and centres that no item chose in an epoch start again where the error is. Embeddings
are centred and scaled to variance 1 a dimension before the encoder; squared errors are means over dimensions.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.codebook import residual_encode
from .kmeans import add_level, seed_centres
from .learning import PREFIX, batches, keep_adam, restore_adam, step
from .settings import RQVAEOptions
from .tokenizer import FitData, Round, State, Tokenizer

_START_ROWS = 65_536  # rows of k-means that codebooks start from; an encoder that is not trained yet deserves no more


def _mlp(x: Tensor, state: State, name: str) -> Tensor:
    """ReLU between the layers ``name.0``, ``name.1`` ... of a state."""
    depth = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in state)
    for layer in range(depth):
        x = F.linear(x, state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"])
        if layer < depth - 1:
            x = F.relu(x)
    return x


class RQVAE(Tokenizer):
    """Residual-quantized variational autoencoder. See the module."""

    name = "rqvae"
    options_type = RQVAEOptions
    options: RQVAEOptions

    def _rounds(self, data: FitData) -> list[Round]:
        epochs = self.options.epochs
        return [
            Round("start", self._start),
            *(Round(f"epoch {e + 1}", partial(self._epoch, e == epochs - 1)) for e in range(epochs)),
        ]

    def _project(self, x: Tensor, state: State) -> Tensor:
        return _mlp((x - state["mean"]) * state["scale"], state, "encoder")

    def _unproject(self, z: Tensor, state: State) -> Tensor:
        return _mlp(z, state, "decoder") / state["scale"] + state["mean"]

    def _start(self, state: State, data: FitData, generator: torch.Generator) -> State:
        """The first weights (uniform, He's bound) and codebooks by k-means on the latents they give."""
        o, config = self.options, self.config
        widths = [self.dim, *o.hidden, o.latent]
        for name, sizes in (("encoder", widths), ("decoder", widths[::-1])):
            for layer, (before, after) in enumerate(pairwise(sizes)):
                bound = (3 * (2 if layer < len(sizes) - 2 else 1) / before) ** 0.5
                weight = (torch.rand(after, before, generator=generator) * 2 - 1) * bound
                state[f"{name}.{layer}.weight"] = weight.to(self.device)
                state[f"{name}.{layer}.bias"] = torch.zeros(after, device=self.device)
        state["mean"] = data.sample.mean
        state["scale"] = torch.tensor((self.dim / max(data.sample.variance, 1e-30)) ** 0.5, device=self.device)
        x, seeds = data.sample.x[: -(-_START_ROWS // data.ranks.world)], data.sample.seeds
        z, z_seeds = self._project(x, state), self._project(seeds, state)
        books: Tensor | None = None
        for _ in range(config.levels):
            books = add_level(books, z, z_seeds, config.codes, o.iterations, generator, data.ranks)
        assert books is not None
        state["codebooks"] = books
        return state

    def _epoch(self, last: bool, state: State, data: FitData, generator: torch.Generator) -> State:
        o, ranks, count = self.options, data.ranks, self.config.codes
        fixed = {"mean", "scale"}
        learned = {
            name: tensor.clone().requires_grad_()
            for name, tensor in state.items()
            if name not in fixed and not name.startswith(PREFIX)
        }
        optimizer = restore_adam(learned, state, o.lr)
        now = state | learned
        used = torch.zeros(self.config.levels, count, dtype=torch.float64, device=self.device)
        for rows, total in batches(data.sample.total, o.batch_rows, o.epoch_steps, generator, ranks):
            if len(rows):
                loss, codes = self._loss(data.sample.x[rows], now)
                for level in range(self.config.levels):
                    used[level] += torch.bincount(codes[:, level], minlength=count)
            else:
                loss = sum((p.sum() * 0 for p in learned.values()), start=torch.zeros((), device=self.device))
            step(loss / total, list(learned.values()), optimizer, ranks)
        ranks.sum_(used)
        keep_adam(optimizer, learned, state)
        state |= {name: tensor.detach() for name, tensor in learned.items()}
        if not last:
            self._revive(state, used, data, generator)
        return state

    def _loss(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Sum over rows of the loss, and the codes."""
        target = (x - state["mean"]) * state["scale"]
        z = _mlp(target, state, "encoder")
        books = state["codebooks"]
        codes = residual_encode(z, books, metric=self.metric)
        r, q, penalty = z, torch.zeros_like(z), torch.zeros((), device=x.device)
        for level in range(len(books)):
            e = F.embedding(codes[:, level], books[level])
            # Later residuals see earlier centres as constants: each centre moves by its own level's error alone.
            penalty = penalty + F.mse_loss(e, r.detach()) + self.options.beta * F.mse_loss(r, e.detach())
            q, r = q + e.detach(), r - e.detach()
        decoded = _mlp(z + (q - z).detach(), state, "decoder")
        return (F.mse_loss(decoded, target) + penalty) * len(x), codes

    def _revive(self, state: State, used: Tensor, data: FitData, generator: torch.Generator) -> None:
        """Put centres that nobody chose where the error is, and forget their momentum."""
        left = self._project(data.sample.seeds, state)
        books = state["codebooks"].clone()
        for level, counts in enumerate(used):
            dead = (counts == 0).nonzero().flatten()
            if len(dead):
                books[level, dead] = seed_centres(left, len(dead), generator, books[level][counts > 0])
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[f"{PREFIX}codebooks.{moment}"][level, dead] = 0
            left = left - books[level, residual_encode(left, books[level : level + 1], metric=self.metric[level])[:, 0]]
        state["codebooks"] = books


class UnifiedSID(RQVAE):
    """UnifiedSID (Lin et al. 2025): an RQ-VAE that chooses by cosine on all levels but the last, there by distance.

    Direction groups items whatever the length of their residual; the last level tells them apart. What is subtracted
    is the centre as it is, on every level. Its other part, a short learned ID embedding beside the semantic ID, belongs
    to the ranker, which has an ID table anyway.
    """

    name = "unified_sid"

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.metric[:-1] = ["cosine"] * (self.config.levels - 1)


class RQVAENgram(RQVAE):
    """RQ-VAE n-gram (Zheng et al. 2025): the codes of an RQ-VAE, which the ranker looks up by prefix.

    The paper changes no code: prefixes (s1), (s1, s2), (s1, s2, s3) become features, so that items share what they have
    in common on each depth (LGSID's figures 8 and 10 show the same tokens for RQ-VAE and for this). ``prefix_ngrams``
    numbers the prefixes; tables and hashing are the ranker's.
    """

    name = "rqvae_ngram"
    lookup = "prefix_ngrams"


def prefix_ngrams(codes: Tensor, count: int) -> Tensor:
    """Numbers of the prefixes of codes int64 [N, L] with K = count: int64 [N, L], prefix l in [0, K^l).

    Two items have the same number at l if and only if they share their first l codes.

    Raises:
        ValueError: K^L is beyond int64.
    """
    if count ** codes.shape[1] > 2**63 - 1:
        raise ValueError(f"{codes.shape[1]} levels of {count} codes: expected K^L below 2^63; use fewer of them")
    out, prefix = torch.empty_like(codes), torch.zeros_like(codes[:, 0])
    for level in range(codes.shape[1]):
        prefix = prefix * count + codes[:, level]
        out[:, level] = prefix
    return out
