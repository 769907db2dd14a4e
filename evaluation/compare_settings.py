"""Settings of ``placerank compare``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..data.plain import check_numbers
from ..data.urls import place


@dataclass(kw_only=True)
class CompareConfig:
    """Compare evaluated runs: grouped by the settings that differ, paired by seed, with intervals."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or evaluation folders of `placerank evaluate`. Compared with the first one's group."""
    out: Path | None = None
    """Folder for a page, its picture and comparison.json; default: none is written."""
    json: bool = False
    """Print JSON instead of tables."""
    ignore: tuple[str, ...] = ()
    """Settings that may differ within a group besides the seed, such as features.semantic_ids."""
    resamples: int = 1000
    """Times that requests are drawn anew for their intervals."""
    overwrite: bool = False
    """Replace that folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"resamples": 20}, resamples=100_000)
        self.runs = tuple(place(path) for path in self.runs)
        self.out = None if self.out is None else place(self.out)
        if len(self.runs) < 2:
            raise ValueError(f"runs: got {len(self.runs)}, expected at least two run or evaluation folders")
        if self.json and self.out is not None:
            raise ValueError("json and out are both set; the folder has comparison.json anyway: choose one")
