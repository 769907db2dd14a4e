"""Settings of rankers."""

from dataclasses import dataclass, field
from typing import Any

from ..data import LABEL
from ..data.plain import check_numbers
from .generative.config import SETTINGS, GeneratorConfig, OneRecConfig, TigerConfig
from .plugins.settings import AktConfig, RestConfig

HEADS = ("shared", "mmoe", "ple")


@dataclass(kw_only=True)
class ObjectivesConfig:
    """What a ranker of candidates learns to predict."""

    labels: list[str] = field(default_factory=lambda: [LABEL])
    """Columns to learn: label, the click or visit, and those that placerank prepare was told of with --labels and
    --amount. One of them is as a ranker always was. Checkpoints are compared by the mean of the labels' AUC."""
    heads: str = "shared"
    """Of several: shared (one bottom), mmoe (experts, which each label mixes), ple (experts of its own beside shared
    ones for each label)."""
    experts: int = 4
    """mmoe: so many experts; ple: so many of each label, and so many shared ones."""
    esmm: bool = False
    """A label happens only where the one before it did: p(order) is p(click) p(order | click), learned over all
    impressions, so that p(order | click) holds for all of them and not only for those that were clicked."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each objective's loss, by name; 1 where it isn't told."""

    def __post_init__(self) -> None:
        check_numbers(self, "ranker.objectives", least={"experts": 1}, experts=1_000)
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"ranker.objectives.labels={self.labels}: expected one or more names, each once")
        if self.heads not in HEADS:
            raise ValueError(f"ranker.objectives.heads={self.heads!r}: expected one of {', '.join(HEADS)}")
        if self.esmm and len(self.labels) < 2:
            raise ValueError(
                f"ranker.objectives.esmm with labels={self.labels}: expected two or more, each of which happens only "
                "where the one before it did, such as label order"
            )
        for name, weight in self.weights.items():
            if name not in self.labels:
                raise ValueError(
                    f"ranker.objectives.weights: got {name!r}, expected some of the labels {', '.join(self.labels)}"
                )
            if not weight > 0:
                raise ValueError(f"ranker.objectives.weights {name}={weight}: expected more than 0")


@dataclass(kw_only=True)
class RankerConfig:
    """The dense part of a ranker, and its plug-ins."""

    kind: str = "tower"
    """tower: scores candidates, by what is below. generative, tiger, onerec: distributions over all places, to which
    settings of towers and plug-ins mean nothing (docs/generative.md)."""
    generative: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The default generative ranker."""
    tiger: TigerConfig = field(default_factory=TigerConfig)
    """TIGER as published."""
    onerec: OneRecConfig = field(default_factory=OneRecConfig)
    """OneRec."""
    tower: str = "twin"
    """Interest tower: twin, twin_v2, din, dien, sim, sim_soft, eta, hstu, trisan, basm, or your own as
    package.module:Class."""
    tower_options: dict[str, float] = field(default_factory=dict)
    """Numbers of the tower that are not its defaults, by name: top_k of twin, auxiliary_weight of dien, ..."""
    mlp: list[int] = field(default_factory=lambda: [128, 64])
    """Widths of the hidden layers between tower and logit."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What it learns to predict: one label or several, an amount."""
    rest: RestConfig = field(default_factory=RestConfig)
    """ReST: spatial contrast; warm-up on request."""
    akt: AktConfig = field(default_factory=AktConfig)
    """AKT-Rec: clusters, one-way transfer, views."""

    @property
    def uses_context(self) -> bool:
        """Whether batches must carry a Context for the tower."""
        from .towers.tower import find_tower

        return bool(getattr(find_tower(self.tower), "uses_context", False))

    @property
    def uses_traits(self) -> bool:
        """Whether batches must carry Traits for the plug-ins."""
        return self.rest.enabled or bool(self.akt.enabled)

    @property
    def generates(self) -> bool:
        """Whether it is a generative ranker."""
        return self.kind != "tower"

    @property
    def suffixed(self) -> bool:
        """Whether the suffix that tells items of one semantic ID apart is a code to it."""
        return self.kind == "tiger"

    @property
    def generator(self) -> Any:
        """Settings of the generative ranker that it is."""
        return getattr(self, self.kind)

    def __post_init__(self) -> None:
        check_numbers(self, "ranker", mlp=65_536)
        if self.kind not in ("tower", *SETTINGS):
            raise ValueError(f"ranker.kind={self.kind!r}: expected one of tower, {', '.join(SETTINGS)}")
        if self.generates and (self.rest.enabled or self.akt.enabled):
            raise ValueError(
                f"ranker.kind={self.kind} and ranker.{'rest' if self.rest.enabled else 'akt'}.enabled: the plug-ins "
                "are for towers; leave one of them out"
            )
        if self.generates and self.objectives != ObjectivesConfig():
            raise ValueError(
                f"ranker.kind={self.kind} and ranker.objectives: objectives are those of towers, a generative ranker "
                "learns which places are visited; leave them out"
            )
        if not self.mlp or min(self.mlp) < 1:
            raise ValueError(f"ranker.mlp={self.mlp}: expected one or more positive widths")
