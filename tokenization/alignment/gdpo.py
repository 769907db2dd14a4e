"""G-DPO: a language model learns distance from a reward model, and keeps what words mean (LGSID, section 4.2.2).

For a pair of prompts with the same content, i+ at the preferred location and i- at the rejected one,

    ΔR(E) = R(E(i+)) - R(E(i-))
    L_align = -log σ(β (ΔR(E_policy) - ΔR(E_ref)))                                        (equation 6)
    L_sim = mean_i [ |E_policy(i) - E_ref(i)|² - mean_{j≠i} |E_policy(i) - E_ref(j)|² ]   (equation 7)
    L = L_align + λ L_sim                                                                 (equation 8)

R is the frozen reward model, the policy the encoder with an adapter, the reference the encoder before. L_sim is over
all prompts of a batch, preferred and rejected, on vectors of length 1: on others its second term has no bound.
Prompts that read the same are not each other's j. All terms need vectors of the reference alone besides the own, so a
batch can be worked through in parts and on several ranks with the gradient of the whole.

On vectors of length 1, L_sim = -2 E_policy(i) · (E_ref(i) - mean_j E_ref(j)): its minimum is the reference less its
mean, not the reference. Language models' vectors share a large mean, so as printed the term that is to hold the policy
at the reference drives it away. ``centred`` takes the mean of the reference's vectors off both sides first; then the
mean over j is about zero and the reference is the minimum.

Which j are in the mean decides what L_sim does. A batch holds each content twice, at two places. The mean over all j,
as printed, gives such a twin 1 / (2B - 1) of the weight, and L_sim only holds the policy back. ``place_contrast``
gives the twins a share w. If a vector is the sum of what its content c and its place l say, the minimum is then
E_ref(i) - w mean(c + l') ~ (1 - w) c + l: the same content elsewhere is pushed away, places weigh more, and the meaning
of neither changes. L_align alone does not get there: on a frozen reward model it finds small steps along that model's
gradient, which raise the margin and leave neighbours as they were (docs/alignment.md).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from ..ranks import Ranks
from ..text.encoders import Encoder, encode_to_store
from ..text.pictures import Input
from ..text.prompts import Prompts
from ..text.store import PROMPT
from .finetune import Losses, finetune
from .locations import Locations
from .pairs import COLLABORATIVE, PreferencePairs
from .reward import RewardModel
from .settings import GDPOConfig, RewardConfig


def alignment_loss(reward: Tensor, reference: Tensor, beta: float) -> Tensor:
    """L_align of each pair, [B], from rewards [B, 2] of (preferred, rejected) by policy and by reference."""
    margin = (reward[:, 0] - reward[:, 1]) - (reference[:, 0] - reference[:, 1])
    return -logsigmoid(beta * margin)


def similarity_loss(
    policy: Tensor, reference: Tensor, at: Tensor, others: Tensor, centre: Tensor | None = None
) -> Tensor:
    """L_sim of each prompt, [n].

    Args:
        policy: vectors [n, D] of some prompts of a batch.
        reference: vectors [m, D] of all prompts of the batch.
        at: which of the m each of the n is, int64 [n].
        others: weights of the m as j in the mean of each of the n, [n, m]; see ``contrast_weights``.
        centre: [D], taken off all vectors of length 1 before they are compared.
    """
    policy, reference = normalize(policy, dim=-1), normalize(reference, dim=-1)
    if centre is not None:
        policy, reference = normalize(policy - centre, dim=-1), normalize(reference - centre, dim=-1)
    squared = 2 - 2 * policy @ reference.T
    return squared.gather(1, at[:, None])[:, 0] - (squared * others).sum(1)


def contrast_weights(same: Tensor, content: Tensor, share: float | None) -> Tensor:
    """Weights of the prompts of a batch in the mean over j of L_sim, float32 [n, m]; rows add up to 1.

    Args:
        same: bool [n, m], prompts that read the same as the n-th, itself included: none of them is a j.
        content: bool [n, m], prompts of the same content as the n-th.
        share: what those of the same content have together; the rest is the others', left out if there are none.
            None: all j weigh the same.
    """
    if share is None:
        return _mean_over(~same)
    return share * _mean_over(content & ~same) + (1 - share) * _mean_over(~content & ~same)


def _mean_over(mask: Tensor) -> Tensor:
    return mask.float() / mask.sum(1, keepdim=True).clamp(min=1)


class PairPrompts:
    """Preference pairs as distinct prompts, with the reference's vectors and rewards of each.

    Attributes:
        at: numbers of the prompts of each pair, (preferred, rejected), int64 [P, 2].
        vectors: E_ref, float32 [U, D].
    """

    def __init__(self, pairs: PreferencePairs, prompts: Prompts, locations: Locations) -> None:
        places = np.stack([pairs.preferred, pairs.rejected], axis=1)
        key = pairs.content[:, None] * len(locations) + locations.code[places]
        _, first, at = np.unique(key, return_index=True, return_inverse=True)
        self.content = np.repeat(pairs.content, 2)[first]
        self.place = places.reshape(-1)[first]
        self.at = torch.from_numpy(at.reshape(-1, 2).astype(np.int64))
        self.prompts = prompts
        self.vectors = torch.empty(0, 0)

    def __len__(self) -> int:
        return len(self.content)

    def inputs(self, which: Any) -> list[Input]:
        """Some prompts as they are encoded, by number."""
        return self.prompts.inputs(self.content[which], self.place[which])

    def encode(self, encoder: Encoder, folder: Path, made_from: dict[str, Any]) -> None:
        """The reference's vectors, once, into a store in ``folder`` and from there into memory."""
        ids = pa.array(np.arange(len(self)))
        store = encode_to_store(encoder, self.inputs, ids, folder, made_from=made_from, title="reference", of=PROMPT)
        self.vectors = store.tensor()


def align_policy(
    encoder: Encoder,
    parameters: list[nn.Parameter],
    reward: RewardModel,
    prompts: Prompts,
    locations: Locations,
    pairs: PreferencePairs,
    config: GDPOConfig,
    folder: Path,
    made_from: dict[str, Any],
    seed: int,
) -> list[dict[str, float]]:
    """Train the encoder's adapter by G-DPO; returns a line a step (see ``finetune``).

    The encoder as it comes is the reference. After a restart its adapter must be as it was before the first step,
    too: the vectors of the reference are taken from ``folder`` as far as they are there, and encoded else.

    Args:
        parameters: of the adapter.
        reward: trained on the same encoder; frozen.
        folder: of checkpoints, metrics and the reference's vectors.
    """
    if len(pairs) == 0:
        raise ValueError("got no preference pairs, expected at least one; are all items at one location?")
    device = encoder.device
    data = PairPrompts(pairs, prompts, locations)
    data.encode(encoder, folder / "reference", made_from)
    reward = reward.to(device).requires_grad_(False)
    with torch.no_grad():
        reference_reward = torch.cat([reward(part.to(device)) for part in data.vectors.split(65_536)]).cpu()
    centre = normalize(data.vectors, dim=-1).mean(0).to(device) if config.centred else None
    contents = torch.from_numpy(data.content)
    per_epoch = -(-len(pairs) // config.batch_pairs)

    def losses(step: int, ranks: Ranks) -> Losses:
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(pairs))
        rows = order[index * config.batch_pairs : (index + 1) * config.batch_pairs]
        batch = data.at[rows]  # [B, 2]
        numbers = batch.reshape(-1)  # prompts of the batch, [2B]
        reference = data.vectors[numbers].to(device)
        mine = np.arange(len(rows))[ranks.rank :: ranks.world]
        for start in range(0, max(1, len(mine)), config.part_pairs):
            part = torch.from_numpy(mine[start : start + config.part_pairs])
            if not len(part):
                yield torch.zeros((), device=device, requires_grad=True), {n: 0.0 for n in _LOGGED}
                return
            own = batch[part].reshape(-1)  # [2b]
            at = (2 * part[:, None] + torch.tensor([0, 1])).reshape(-1).to(device)
            vectors = encoder(data.inputs(own.numpy()))
            scores, before = reward(vectors).view(-1, 2), reference_reward[batch[part]].to(device)
            align = alignment_loss(scores, before, config.beta).sum() / len(rows)
            same, content = (x[own][:, None] == x[numbers] for x in (torch.arange(len(data)), contents))
            others = contrast_weights(same, content, config.place_contrast).to(device)
            similar = similarity_loss(vectors, reference, at, others, centre).sum() / len(numbers)
            with torch.no_grad():
                margin = (scores[:, 0] - scores[:, 1]) - (before[:, 0] - before[:, 1])
                cosine = nn.functional.cosine_similarity(vectors, reference[at], dim=-1)
            logged = {
                "align": float(align.detach()),
                "similarity": float(similar.detach()),
                "margin": float(margin.sum()) / len(rows),
                "preferred_above": float((scores[:, 0] > scores[:, 1]).sum()) / len(rows),
                "cosine_to_reference": float(cosine.sum()) / len(numbers),
            }
            yield align + config.similarity_weight * similar, logged

    steps = per_epoch * config.epochs
    return finetune(encoder, parameters, losses, steps, config.optimizer, folder, seed, "G-DPO")


_LOGGED = ("align", "similarity", "margin", "preferred_above", "cosine_to_reference")


def pair_counts(pairs: PreferencePairs) -> dict[str, int]:
    """How many pairs of each kind."""
    collaborative = int((pairs.kind == COLLABORATIVE).sum())
    return {"geographic": len(pairs) - collaborative, "collaborative": collaborative}


Rung = tuple[RewardConfig, GDPOConfig]


def g_dpo(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """The whole: what the two configs say."""
    return reward, gdpo


def dpo_lrdms(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """Similarity regularized, at λ = 1.

    The paper's table 3 doesn't say how this rung differs from G-DPO. Its figures are those of λ = 1.0 in table 6,
    and those of G-DPO are λ = 1.8's, so the weight is the difference.
    """
    reward, gdpo = g_dpo(reward, gdpo)
    return reward, replace(gdpo, similarity_weight=1.0)


def dpo_lrdm(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """Domain-mixed pairs, without similarity regularization."""
    reward, gdpo = dpo_lrdms(reward, gdpo)
    return reward, replace(gdpo, similarity_weight=0.0)


def dpo_lrd(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """Geographic pairs alone."""
    reward, gdpo = dpo_lrdm(reward, gdpo)
    return reward, replace(gdpo, collaborative_share=0.0)


def dpo_lr(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """A list-wise reward model whose other places are drawn anywhere."""
    reward, gdpo = dpo_lrd(reward, gdpo)
    return replace(reward, density_aware=False), gdpo


def dpo_pr(reward: RewardConfig, gdpo: GDPOConfig) -> Rung:
    """A pairwise reward model: the own place above one drawn anywhere.

    It sees fewer prompts a list, so it gets as many more lists as make the same number of prompts.
    """
    reward, gdpo = dpo_lr(reward, gdpo)
    lists = reward.lists * (reward.negatives + 1) // 2
    return replace(reward, objective="pairwise", lists=lists), gdpo


LADDER = {
    "dpo-pr": dpo_pr,
    "dpo-lr": dpo_lr,
    "dpo-lrd": dpo_lrd,
    "dpo-lrdm": dpo_lrdm,
    "dpo-lrdms": dpo_lrdms,
    "g-dpo": g_dpo,
}
SIMILARITY_WEIGHTS = (1.0, 1.5, 1.8)  # of the paper's table 6
