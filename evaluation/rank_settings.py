"""Settings of ``placerank rank`` and ``predict``; nothing heavy is imported here."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..data.plain import check_numbers, set_places
from ..data.urls import Url


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
    """Parquet with what is known of users' earlier visits: user_id, item_id, timestamp (unix seconds, or a timestamp),
    and label where there are impressions too; the interactions.parquet that the ranker was prepared from is one."""
    candidates: list[str] | None = None
    """Raw ids of the places to rank; default: all within reach."""
    within_km: float = 3.0
    """The reach; inf: all places."""
    k: int = 10
    """Places of the list, at most."""
    by: str | None = None
    """Of a ranker of several objectives, which one orders the list; default: the first."""
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
        """The time of the request.

        Raises:
            ValueError: it is neither whole seconds nor a time with its zone.
        """
        if self.time is None:
            return datetime.now(UTC).replace(microsecond=0)
        try:
            return int(self.time)
        except ValueError:
            pass
        try:
            found = datetime.fromisoformat(self.time)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise ValueError(
                f"time={self.time!r}: expected unix seconds, or a time with its zone as 2024-05-01T12:00+02"
            )
        return found


@dataclass(kw_only=True)
class PredictConfig:
    """Lists for a file of requests, from an export of a ranker of any kind."""

    export: Path
    """Folder that `placerank export` made."""
    requests: Path
    """Parquet with a request a row: user_id, time (unix seconds, or a timestamp with a zone), and where known lat and
    lon, utc_offset, history and history_time (lists: items and times of earlier visits), candidates (lists; else all
    places within reach), and own columns of interactions."""
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
