"""Settings of the report of ``tokenize``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...data.plain import check_numbers, set_places


@dataclass(kw_only=True)
class ReportConfig:
    """What is measured and drawn."""

    before: Path | None = None
    """Embeddings of the same items by the encoder before alignment: shown beside."""
    queries: int = 1_000
    """Items whose exact neighbours are looked up for coverage; 0: no coverage and no clusters."""
    rows: int = 262_144
    """Items that reconstruction is measured on, at most."""
    picture: Literal["pca", "tsne"] = "pca"
    """How embeddings come onto two axes."""
    points: int = 2_000
    """Items in that picture."""

    def __post_init__(self) -> None:
        check_numbers(self, "report", least={"rows": 1, "points": 1})
        set_places(self)
        if self.queries < 0:
            raise ValueError(f"report.queries={self.queries}: expected 0 or more")
