"""Settings of the alignments."""

from dataclasses import dataclass, field
from typing import Literal

from ...data.plain import check_numbers


@dataclass(kw_only=True)
class LoraSettings:
    """Low-rank adapters."""

    rank: int = 8
    """Of the update of each projection."""
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """On the input of the adapters, while training; the encoder's own dropout stays off."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers to adapt; none: the key and value projections, found by architecture."""

    def __post_init__(self) -> None:
        check_numbers(self, "lora", least={"rank": 1}, rank=4_096)
        self.targets = tuple(self.targets)
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha}: expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout}: expected a share in [0, 1)")


@dataclass(kw_only=True)
class OptimizerSettings:
    """How an adapter is trained."""

    learning_rate: float = 2e-4
    """Of AdamW, at its highest."""
    weight_decay: float = 0.0
    """Of AdamW."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls to zero, both in a straight line."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer", least={"checkpoint_every": 1})
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: expected more than 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay}: expected 0 or more")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optimizer.warmup={self.warmup}: expected a share in [0, 1)")


@dataclass(kw_only=True)
class BehaviourConfig:
    """Content-behaviour alignment, before the geographic one."""

    pairs: int = 0
    """Pairs of an anchor and what was visited with it; 0: leave this step out."""
    users: Literal["none", "text", "mean"] = "none"
    """Users as anchors too: the text of their last places, or the mean of those places' vectors. Where that is set,
    users' vectors are written beside those of items, also with pairs 0, when nothing is learned from them."""
    user_share: float = 0.5
    """Share of the pairs whose anchor is a user, if there are any."""
    history: int = 5
    """Last places of a user that make the anchor, and the vector."""
    cooccurrence_threshold: int | None = None
    """Items are visited together if more users than this have both in their training histories. Default: the least
    that at most one in twenty of the pairs with a visitor in common exceed; report.json tells it."""
    temperature: float = 0.05
    """Of InfoNCE (τ)."""
    batch_pairs: int = 64
    """Pairs a step, of all ranks together: each has the others' positives as negatives."""
    epochs: int = 1
    """Passes over the pairs."""
    held_out_pairs: int = 500
    """Pairs kept for the report, at most; a tenth of all if that is fewer."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Of the adapter."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "behaviour",
            least={
                "pairs": 0,
                "history": 1,
                "batch_pairs": 2,
                "epochs": 1,
                "held_out_pairs": 0,
            },
            history=100_000,
        )
        _check_threshold("behaviour", self.cooccurrence_threshold)
        if not 0 <= self.user_share <= 1:
            raise ValueError(f"behaviour.user_share={self.user_share}: expected a share in [0, 1]")
        if not self.temperature > 0:
            raise ValueError(f"behaviour.temperature={self.temperature}: expected more than 0")


@dataclass(kw_only=True)
class RewardConfig:
    """The reward model."""

    objective: Literal["listwise", "pairwise"] = "listwise"
    """listwise: soft labels by rank of distance; pairwise: the own place above one other."""
    density_aware: bool = True
    """Draw other places by neighbour rank; False: anywhere."""
    negatives: int = 15
    """Other places in a list (K)."""
    lists: int = 500
    """Items that training lists are made for, at most; each is K + 1 prompts to encode."""
    held_out_lists: int = 100
    """Items that are kept for the report, at most; a tenth of all if that is fewer."""
    hidden: int = 256
    """Width of the MLP's first layer."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    epochs: int = 30
    """Passes over the lists."""
    batch_lists: int = 64
    """Lists a step."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "reward",
            least=dict.fromkeys(("negatives", "lists", "held_out_lists", "hidden", "epochs", "batch_lists"), 1),
            hidden=65_536,
            negatives=100_000,
        )
        for name, low in (("learning_rate", False), ("weight_decay", True)):
            value = getattr(self, name)
            if not (value > 0 or (low and value == 0)):
                raise ValueError(f"reward.{name}={value}: expected {'0 or more' if low else 'more than 0'}")


@dataclass(kw_only=True)
class GDPOConfig:
    """Geographic preference alignment."""

    beta: float = 0.9
    """Sharpness of the preference (β)."""
    similarity_weight: float = 1.5
    """Weight of staying close to the reference (λ)."""
    centred: bool = True
    """Take the reference's mean off before comparing with it; False: as the paper prints it, see the module."""
    place_contrast: float | None = 0.77
    """Share of the contrast that is the same content elsewhere: how much places come to weigh; None: as printed."""
    pairs: int = 960
    """Preference pairs; each is used once an epoch."""
    collaborative_share: float = 0.5
    """Share of the pairs that come from items visited together, as far as there are such; 0: geographic ones alone."""
    cooccurrence_threshold: int | None = None
    """Items are visited together if more users than this have both in their training histories. Default: the least
    that at most one in twenty of the pairs with a visitor in common exceed; report.json tells it."""
    batch_pairs: int = 16
    """Pairs a step, of all ranks together."""
    part_pairs: int = 32
    """Pairs whose graph is held at a time: less memory, the same result."""
    epochs: int = 1
    """Passes over the pairs."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=2e-3))
    """Of the adapter."""

    def __post_init__(self) -> None:
        check_numbers(self, "gdpo", least=dict.fromkeys(("pairs", "batch_pairs", "part_pairs", "epochs"), 1))
        if not self.beta > 0:
            raise ValueError(f"gdpo.beta={self.beta}: expected more than 0")
        if not self.similarity_weight >= 0:
            raise ValueError(f"gdpo.similarity_weight={self.similarity_weight}: expected 0 or more")
        if self.place_contrast is not None and not 0 <= self.place_contrast <= 1:
            raise ValueError(f"gdpo.place_contrast={self.place_contrast}: expected a share in [0, 1], or None")
        if not 0 <= self.collaborative_share <= 1:
            raise ValueError(f"gdpo.collaborative_share={self.collaborative_share}: expected a share in [0, 1]")
        _check_threshold("gdpo", self.cooccurrence_threshold)


def _check_threshold(part: str, value: int | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"{part}.cooccurrence_threshold={value}: expected 0 or more, or None to follow the data")
