"""Settings of ``evaluate``, ``compare`` and ``generate``."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.plain import check_numbers, set_places
from ..data.urls import place

SPLITS = ("train", "valid", "test")


@dataclass(kw_only=True)
class ListsConfig:
    """What lists of a generative ranker are asked."""

    visits: int = 3000
    """Visits of the split that are asked, drawn once; all where there are fewer."""
    reach_km: float = 10.0
    """How far from the request's place a list within reach goes."""

    def __post_init__(self) -> None:
        check_numbers(self, "lists", least={"visits": 1})
        if not self.reach_km > 0:
            raise ValueError(f"lists.reach_km={self.reach_km}: expected more than 0 km")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Measure a trained ranker against baselines and the oracle, and write a report with pictures."""

    run: Path
    """Folder that `placerank train` made."""
    data: Path | None = None
    """Folder that `placerank prepare` made; default: the one that the run was trained on."""
    semantic_ids: Path | None = None
    """The semantic IDs that it was trained with, where they have moved since, or have more items by now."""
    split: str = "test"
    """Which samples: train, valid or test."""
    checkpoint: str = "best"
    """best (by validation AUC), latest, or a step number."""
    batch_size: int = 4096
    """Samples scored at a time on each rank."""
    out: Path | None = None
    """Folder to write; default: evaluation/ in the run folder."""
    lists: ListsConfig = field(default_factory=ListsConfig)
    """What lists of a generative ranker are asked."""
    overwrite: bool = False
    """Replace that folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", least={"batch_size": 1}, batch_size=10_000_000)
        set_places(self)
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: expected one of {', '.join(SPLITS)}")
        if self.checkpoint not in ("best", "latest") and not self.checkpoint.isdecimal():
            raise ValueError(f"checkpoint={self.checkpoint!r}: expected best, latest or a step number such as 1200")


@dataclass(kw_only=True)
class GenerateConfig:
    """Lists of places for requests, from a generative ranker."""

    run: Path
    """Folder that `placerank train --ranker.kind generative` (or tiger, onerec) made."""
    out: Path
    """Folder to write: lists.parquet, and report.html with a map."""
    requests: Path | None = None
    """Parquet with a request a row: user_id, time (unix seconds, or a timestamp), and where known lat and lon, and
    utc_offset (minutes). Default: visits of the split, each asked with what was known before it."""
    split: str = "test"
    """Which visits, without requests: train, valid or test."""
    visits: int = 1000
    """How many of them, drawn once; all where there are fewer."""
    within_km: float = 5.0
    """How far from the request's place a list goes; inf: all places. Requests without a place go by the last visit."""
    open_now: bool = False
    """List only places that are open at the request's local time: by its utc_offset where that is known, else in solar
    time. Places whose hours nobody knows count as open."""
    k: int = 10
    """Places of a list, at most."""
    beams: int = 0
    """Look for a list with so many beams (k or more) instead of scoring all places within reach; 0: score all. Where
    reach is wide it is faster, and may miss some of the best that the user has not been to."""
    new: int = 0
    """Places of a list, at least, where the user has not been in the visits that the ranker looks back on; k: only
    such. The last of the others make room for them."""
    places: Path | None = None
    """Parquet with places that opened since: item_id, lat, lon, opening_hours where known. Their semantic IDs are in
    the folder that `placerank tokenize --add` made; they are generated at once, without training."""
    data: Path | None = None
    """Folder that `placerank prepare` made; default: the one that the run was trained on."""
    semantic_ids: Path | None = None
    """The semantic IDs that it was trained with, where they have moved since, or have more items by now."""
    checkpoint: str = "best"
    """best (by likelihood of the validation split), latest, or a step number."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", endless=("within_km",), least={"visits": 1, "k": 1, "beams": 0})
        set_places(self)
        if not 0 <= self.new <= self.k:
            raise ValueError(f"new={self.new}: expected 0 to k = {self.k}")
        if self.beams and (self.beams < self.k or 0 < self.new < self.k):
            raise ValueError(
                f"beams={self.beams}: expected 0, or k = {self.k} and more without new; lists of which some places are "
                "new take the scores of all"
            )
        if not self.within_km > 0:
            raise ValueError(f"within_km={self.within_km}: expected more than 0 km")
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: expected one of {', '.join(SPLITS)}")


@dataclass(kw_only=True)
class CompareConfig:
    """Compare evaluated runs: grouped by the settings that differ, paired by seed, with intervals."""

    runs: tuple[Path, ...]
    """Run folders, or evaluation folders of `placerank evaluate`; named first they need no flag. The others are
    compared with the first one's group."""
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
