"""The geography-aware reward model: how well does this content go with that location (LGSID, section 4.2.1).

A frozen encoder turns prompts [content_i, location_j] into vectors, and a two-layer MLP on them gives r_ij, high
where j is near i. The encoder never learns here, so each prompt is encoded once, whatever the number of epochs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ...reports.progress import tracked
from ..ranks import Ranks
from ..text.encoders import Encoder, encode_to_store
from ..text.prompts import Prompts
from ..text.store import PROMPT
from .locations import Lists, Locations
from .reward_measures import list_measures
from .settings import RewardConfig


class RewardModel(nn.Module):
    """r = MLP(E): vectors [..., D] to scores [...]; the sigmoid is in the loss (LGSID, equation 2).

    Vectors are standardised by ``mean`` and ``scale`` [D] of the training prompts first. The numbers of a vector of
    length 1 are small and share a large mean; left so, the first layer learns many times slower.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, 1)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and scale from vectors [U, D]."""
        self.mean.copy_(vectors.mean(0))
        self.scale.copy_(vectors.std(0, correction=0).clamp(min=1e-6))

    def forward(self, vectors: Tensor) -> Tensor:
        score: Tensor = self.second(nn.functional.gelu(self.first((vectors - self.mean) / self.scale)))
        return score[..., 0]

    def save(self, file: Path) -> None:
        """Weights as safetensors; the sizes follow from them."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, file)

    @classmethod
    def load(cls, file: Path) -> "RewardModel":
        """What ``save`` wrote."""
        state = load_file(file)
        model = cls(state["first.weight"].shape[1], state["first.weight"].shape[0])
        model.load_state_dict(state)
        return model.eval()


def listwise_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with soft labels p: -[p log σ(r) + (1 - p) log(1 - σ(r))], mean over lists and candidates [n, k].

    LGSID's equation 4 prints the first term alone; r → ∞ minimises it, so both terms must be meant.
    """
    return binary_cross_entropy_with_logits(scores, labels)


def pairwise_loss(scores: Tensor) -> Tensor:
    """-log σ(r_own - r_other), scores [n, 2] with the own place first (Bradley-Terry): the ladder's first rung."""
    return -logsigmoid(scores[:, :1] - scores[:, 1:]).mean()


@dataclass(frozen=True)
class EncodedLists:
    """Lists with the vectors of their prompts.

    Attributes:
        lists: n lists of k + 1 candidates.
        vectors: of the distinct prompts, float32 [U, D].
        at: rows of ``vectors``, int64 [n, k + 1].
    """

    lists: Lists
    vectors: Tensor
    at: Tensor

    def scores(self, model: RewardModel) -> Tensor:
        """r of every candidate, [n, k + 1], without gradients."""
        with torch.no_grad():
            return model(self.vectors)[self.at]


def encode_lists(
    encoder: Encoder,
    prompts: Prompts,
    locations: Locations,
    lists: Lists,
    folder: Path,
    made_from: dict[str, Any],
    title: str,
) -> EncodedLists:
    """Encode each distinct prompt [content_i, location_j] of lists once, into a store in ``folder``."""
    content = np.repeat(lists.items[:, :1], lists.items.shape[1], axis=1)
    key = content * len(locations) + locations.code[lists.items]
    _, first, at = np.unique(key, return_index=True, return_inverse=True)
    rows, places = content.reshape(-1)[first], lists.items.reshape(-1)[first]
    store = encode_to_store(
        encoder,
        lambda part: prompts.inputs(rows[part], places[part]),
        pa.array(np.arange(len(rows))),
        folder,
        made_from=made_from,
        title=title,
        of=PROMPT,
    )
    return EncodedLists(lists, store.tensor(), torch.from_numpy(at.reshape(key.shape)))


def train_reward(
    encoder: Encoder,
    prompts: Prompts,
    locations: Locations,
    config: RewardConfig,
    folder: Path,
    made_from: dict[str, Any],
    seed: int,
) -> tuple[RewardModel, dict[str, Any]]:
    """Train the reward model; returns it and its report, which ``folder`` keeps.

    Items for the report are set aside first: no prompt with their content is in training. The report's lists are
    drawn in both ways, whatever the model was trained on, so that reports can be compared.

    Returns:
        The model, and {"curve": a line an epoch, "held_out": {"density": measures, "uniform": measures}, sizes};
        see ``reward_measures``.
    """
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permutation(locations.known)
    aside = min(config.held_out_lists, len(shuffled) // 10)
    held_out, training = shuffled[:aside], shuffled[aside:][: config.lists]
    k = 1 if config.objective == "pairwise" else config.negatives
    lists = locations.lists(training, k, config.density_aware, rng)
    data = encode_lists(encoder, prompts, locations, lists, folder / "training", made_from, "reward prompts")
    tests = {
        name: encode_lists(
            encoder,
            prompts,
            locations,
            locations.lists(held_out, config.negatives, name == "density", rng),
            folder / f"held_out_{name}",
            made_from,
            f"held-out prompts ({name})",
        )
        for name in ("density", "uniform")
        if aside
    }
    file = folder / "reward.safetensors"
    if Ranks.current().is_first:
        model, curve = _fit(data, tests, config, seed)
        model.save(file)
    else:
        curve = []
    Ranks.current().barrier()
    model = RewardModel.load(file)  # all ranks have the first one's, to the bit
    measured = {name: list_measures(test.scores(model), test.lists) for name, test in tests.items()}
    return model, {
        "curve": curve,
        "held_out": measured,
        "training_lists": len(training),
        "held_out_items": aside,
        "negatives": data.lists.items.shape[1] - 1,
        "locations": len(locations),
        "prompts_encoded": len(data.vectors) + sum(len(test.vectors) for test in tests.values()),
    }


def _fit(
    data: EncodedLists, tests: dict[str, EncodedLists], config: RewardConfig, seed: int
) -> tuple[RewardModel, list[dict[str, float]]]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RewardModel(data.vectors.shape[1], config.hidden)
    model.standardise(data.vectors)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    labels = torch.from_numpy(data.lists.labels).float()
    rng = np.random.default_rng([seed, 2])
    curve = []

    def loss_of(rows: NDArray[np.int64] | slice) -> Tensor:
        scores = model(data.vectors[data.at[rows]])
        return pairwise_loss(scores) if config.objective == "pairwise" else listwise_loss(scores, labels[rows])

    for epoch in tracked(range(config.epochs), "reward model", unit="epochs"):
        total, order = 0.0, rng.permutation(len(labels))
        for start in range(0, len(order), config.batch_lists):
            rows = order[start : start + config.batch_lists]
            loss = loss_of(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        line = {"epoch": epoch + 1, "loss": total / len(order)}
        for name, test in tests.items():
            line[f"spearman_{name}"] = list_measures(test.scores(model), test.lists)["spearman"]
        curve.append(line)
    return model.eval(), curve
