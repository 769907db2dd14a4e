"""Settings of what a ranker sees of the data."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..plain import check_numbers, set_places

DENSE = ("distance", "visits", "activity")
"""Dense features; ``features`` says what each is."""
ACTIVITY_DIM = 8
"""Columns of ``activity.activity_features``."""


@dataclass(kw_only=True)
class FeatureConfig:
    """Which features the ranker sees and how wide their embeddings are."""

    embedding_dim: int = 16
    """Columns of every table that the target item and the history share."""
    pooled_dim: int = 8
    """Columns of every pooled table (user, hour of the week, ...)."""
    history_attributes: list[str] = field(default_factory=lambda: ["category", "brand"])
    """Item attributes, own columns among them, that join the item's id in the target and in the history."""
    pooled: list[str] | None = None
    """Pooled features; default: user, hour, category_path, all remaining item attributes, all own columns."""
    own: list[str] | None = None
    """Own columns that are features; default: all that placerank prepare found."""
    dense: list[str] = field(default_factory=lambda: ["distance", "visits"])
    """Dense features: distance (request to item), visits (the user's earlier visits to the item), activity (how often
    and how recently the item was chosen, and the user chose)."""
    semantic_ids: Path | None = None
    """Folder that `placerank tokenize` made: its semantic IDs join the features of target and history."""
    user_semantic_ids: Path | None = None
    """Folder that `placerank tokenize` made of users' vectors: AKT-Rec's clusters of users are of them."""
    ngram_rows: int = 65_536
    """Rows of a table of prefix n-grams, at most; where there are more prefixes they are hashed."""

    def __post_init__(self) -> None:
        check_numbers(self, "features", least={"ngram_rows": 1}, embedding_dim=4_096, pooled_dim=4_096)
        set_places(self)
        for name in ("embedding_dim", "pooled_dim"):
            value = getattr(self, name)
            if value < 4 or value % 4:
                raise ValueError(f"features.{name}={value}: fbgemm needs a positive multiple of 4")
        if self.pooled is not None and not self.pooled:
            raise ValueError("features.pooled is empty: name one or more, such as user, or leave it out for all")
        for value in self.dense:
            if value not in DENSE:
                raise ValueError(f"features.dense: got {value!r}, expected some of {', '.join(DENSE)}")

    def moved(self, semantic_ids: Path | None, user_semantic_ids: Path | None) -> "FeatureConfig":
        """The same, with semantic IDs, and those of users, from other folders where such are given."""
        of_users = user_semantic_ids or self.user_semantic_ids
        return replace(self, semantic_ids=semantic_ids or self.semantic_ids, user_semantic_ids=of_users)
