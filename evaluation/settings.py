"""Settings of ``evaluate``, ``compare``, ``generate``, ``rank``, ``predict`` and ``advise``."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..data.plain import check_numbers, set_places
from ..data.urls import Url, place

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
    user_semantic_ids: Path | None = None
    """The same of users' semantic IDs."""
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


@dataclass(kw_only=True)
class RankConfig:
    """The best places for one user, from an export of a ranker of any kind."""

    export: Path
    """Folder that `placerank export` made."""
    user: str
    """Raw id, one that training did not know too."""
    place: tuple[float, float] | None = None
    """Latitude and longitude of the request in degrees; without it name candidates, or --within-km inf."""
    time: str | None = None
    """Of the request: unix seconds, or as 2024-05-01T12:00:00+02:00; default: now."""
    visits: Path | None = None
    """Parquet or CSV with what is known of users' earlier visits: user_id, item_id, timestamp (as prepare takes them),
    and label where there are impressions too; the interactions that the ranker was prepared from are such a file."""
    candidates: list[str] | None = None
    """Raw ids of the places to rank; default: all within reach."""
    within_km: float = 3.0
    """The reach; inf: all places."""
    k: int = 10
    """Places of the list, at most."""
    by: str | None = None
    """Of a ranker of several objectives, which one orders the list; default: the first."""
    utc_offset: float | None = None
    """Minutes east of UTC there and then, for rankers that were trained with it."""
    own: dict[str, str] = field(default_factory=dict)
    """Own columns of interactions, as device ios fee 2.5; a date as 2024-05-01T12:00:00+02:00. One of candidates has a
    value for each, in their order, with commas between; nothing is unknown."""
    out: Path | None = None
    """An HTML file to write as well, with the list on a map."""
    overwrite: bool = False
    """Replace the file if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", endless=("within_km",), least={"k": 1})
        set_places(self)
        _check_reach(self.within_km)
        if isinstance(self.out, Url):
            raise ValueError(f"out={self.out}: expected a file on this machine, which a browser opens")
        if self.place is None and self.candidates is None and not math.isinf(self.within_km):
            raise ValueError("place: got none; give latitude and longitude, or candidates, or --within-km inf")
        self.moment()

    def moment(self) -> datetime | int:
        """The time of the request."""
        return moment_of(self.time)


def moment_of(time: str | None) -> datetime | int:
    """A setting as a moment; None is now.

    Raises:
        ValueError: it is neither whole seconds nor a time with its zone.
    """
    if time is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return int(time)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"time={time!r}: expected unix seconds, or a time with its zone as 2024-05-01T12:00+02")
    return found


@dataclass(kw_only=True)
class AdviseConfig:
    """Answer a question of one user: places within reach, each with a reason, or why a place."""

    advisor: Path
    """Folder that `placerank adapt` made, the run's or its advisor/; named first it needs no flag."""
    ask: str = "Where to next?"
    """The question. Whether places are wanted or a reason is found out from it."""
    item: str | None = None
    """Raw id of a place: say why this one, whatever the question is."""
    user: str | None = None
    """Raw id, of whom visits are read; default: nobody, who has been nowhere."""
    visits: Path | None = None
    """Parquet or CSV with what is known of users' earlier visits: user_id, item_id, timestamp (as prepare takes them),
    and label where there are impressions too; the interactions that were prepared are such a file."""
    place: tuple[float, float] | None = None
    """Latitude and longitude of the request in degrees; without it reach goes from the last visit."""
    time: str | None = None
    """Of the request: unix seconds, or as 2024-05-01T12:00:00+02:00; default: now."""
    utc_offset: float | None = None
    """Minutes east of UTC there and then; without it nothing is said of opening hours."""
    within_km: float = 3.0
    """The reach; inf: all places."""
    k: int = 10
    """Places of the list, at most."""

    def __post_init__(self) -> None:
        check_numbers(self, "", endless=("within_km",), least={"k": 1})
        set_places(self)
        _check_reach(self.within_km)
        if not self.ask.strip():
            raise ValueError("ask: got nothing, expected a question")
        if (self.user is None) != (self.visits is None):
            raise ValueError("user and visits: got one of them; a user's visits take both")
        moment_of(self.time)


@dataclass(kw_only=True)
class PredictConfig:
    """Lists for a file of requests, from an export of a ranker of any kind."""

    export: Path
    """Folder that `placerank export` made."""
    requests: Path
    """Parquet with a request a row: user_id, time (unix seconds, or a timestamp with a zone), and where known lat and
    lon, utc_offset, history and history_time (lists: items and times of earlier visits), candidates (a list in every
    row; without this column all places within reach), and own columns of interactions."""
    out: Path
    """Folder to write: lists.parquet."""
    within_km: float = 3.0
    """The reach of requests without candidates; inf: all places."""
    k: int = 10
    """Places of a list, at most."""
    by: str | None = None
    """Of a ranker of several objectives, which one orders the lists; default: the first."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", endless=("within_km",), least={"k": 1})
        set_places(self)
        _check_reach(self.within_km)


def _check_reach(km: float) -> None:
    if not km > 0:
        raise ValueError(f"within_km={km}: expected more than 0 km")
