"""Settings of the plug-ins."""

from dataclasses import dataclass, field

from ...data.plain import check_numbers

ATTRIBUTES = ("category", "brand")


@dataclass(kw_only=True)
class RestConfig:
    """ReST: spatially constrained contrast of item embeddings, and their warm-up from attributes.

    The defaults are the paper's where it has any, but for the warm-up: the contrast alone gained on real data, with the
    warm-up it did not (docs/papers.md). ``rest_preset("rest")`` is all of the paper.
    """

    enabled: bool = False
    """Whether the plug-in is on."""
    warm_up: bool = False
    """Whether item embeddings are warmed up from attributes."""
    attribute_dropout: float = 0.0
    """Probability with which the warm-up takes a known attribute for missing, in training."""
    contrast: list[str] = field(default_factory=lambda: list(ATTRIBUTES))
    """Attributes with a contrastive loss each: category, brand, or what else features.history_attributes has; none: no
    contrast."""
    align: bool = True
    """Whether items weigh in by how far they are from the centre of their attributes; else all weigh 1."""
    positive_km: float = 30.0
    """Farthest positive; inf for no limit."""
    negative_km: float = 10.0
    """Farthest negative; inf for no limit."""
    density_adaptive: bool = False
    """Whether radii follow how dense it is around an item; at the median they are those above."""
    negatives: int = 9
    """Hard negatives of an item."""
    temperature: float = 0.1
    """Of InfoNCE; cosines are divided by it."""
    across_ranks: bool = False
    """Whether an item's positive and negatives are sought among the items of all ranks, or of its own alone."""
    weight: float = 0.01
    """Of the contrastive losses beside the cross-entropy."""
    centres: int = 50
    """k-means centres of attribute embeddings."""
    refresh_every: int = 500
    """Steps between refreshes of the centres; before the first so many, at steps 0, 1, 2, 4, 8, ..."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "rest",
            endless=("positive_km", "negative_km"),
            least=dict.fromkeys(("negatives", "centres", "refresh_every"), 1),
            negatives=100_000,
            centres=1_000_000,
        )
        if len(set(self.contrast)) != len(self.contrast):
            raise ValueError(f"rest.contrast={self.contrast}: expected each attribute once")
        for name in ("positive_km", "negative_km", "temperature", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rest.{name}={getattr(self, name)}: expected a positive number")
        if not 0 <= self.attribute_dropout < 1:
            raise ValueError(f"rest.attribute_dropout={self.attribute_dropout}: expected a probability in [0, 1)")
        if not self.warm_up and not self.contrast:
            raise ValueError("rest has neither warm_up nor contrast, so it would do nothing; set rest.enabled to false")
        if self.attribute_dropout and not self.warm_up:
            raise ValueError(
                f"rest.attribute_dropout={self.attribute_dropout} drops attributes of the warm-up, which is off; set "
                "rest.warm_up to true, or leave it at 0"
            )


@dataclass(kw_only=True)
class AktConfig:
    """AKT-Rec on any tower: cluster-guided embeddings of items and users, one-way transfer, hierarchical views.

    The defaults are what gained on real data (docs/papers.md): items' clusters, one-way transfer and gate. Users'
    clusters and views, the paper's other parts, are off. ``akt_ladder`` gives the steps in between by name.
    """

    enabled: bool | None = None
    """Whether there are clusters at all; needs semantic IDs. Default: where there are semantic IDs."""
    prefix: int = 1
    """Levels of the semantic ID that make a cluster, of items and of users."""
    cluster_rows: int = 65_536
    """Rows of a cluster table, at most; more prefixes than that are hashed."""
    users: bool | None = None
    """Users have clusters too: of their own semantic IDs (features.user_semantic_ids), else the most frequent one of
    their history. Default: where there are users' semantic IDs."""
    gate: bool = True
    """Mix individual and cluster embedding by activity, and scale the cluster's gradient; else in equal parts."""
    one_way_weight: float = 0.01
    """Weight of the one-way contrastive loss; 0: none."""
    temperature: float = 0.1
    """Of the one-way loss."""
    views: bool = False
    """Towers on the individual, the cluster and the content view, fused by activity; else one on all together."""
    view_visits: int = 10
    """Latest visits that the cluster and the content view see; 0: the whole history."""

    def __post_init__(self) -> None:
        check_numbers(self, "akt", least={"prefix": 1, "cluster_rows": 1})
        if self.view_visits < 0:
            raise ValueError(f"akt.view_visits={self.view_visits}: expected 0 (the whole history) or more")
        if not self.one_way_weight >= 0:
            raise ValueError(f"akt.one_way_weight={self.one_way_weight}: expected 0 or more")
        if not self.temperature > 0:
            raise ValueError(f"akt.temperature={self.temperature}: expected more than 0")
