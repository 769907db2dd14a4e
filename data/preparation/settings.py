"""The settings of ``prepare``."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from ..plain import check_numbers, set_places
from ..raw.settings import OnBadRows, Outcomes

Engine = Literal["built-in", "ray"]
Format = Literal["parquet", "csv", "foursquare", "gowalla", "yelp", "places"]
RECENT = 256
"""A user's latest visits that are carried over to another day, whatever they are of."""


@dataclass(kw_only=True)
class PrepareConfig:
    """Turn tables of items and interactions into training, validation and test samples."""

    input: Path
    """Folder (or file, for csv and the public formats) with the raw data."""
    out: Path
    """Folder to make; it appears when it is whole."""
    after: Path | None = None
    """Folder that prepare made of the day before: its rows stay, its visits are known, and only what came since is in
    the input (see docs/day-two.md)."""
    format: Format = "parquet"
    """parquet: a folder in placerank's schema; csv: the same tables as CSV (see columns); or a public dataset."""
    columns: dict[str, str] = field(default_factory=dict)
    """Only for csv: column names in the file, by name in the schema; others are taken as they are."""
    features: Path | None = None
    """TOML file that says what columns of your own are (docs/data.md); default: the input's features.toml, if any."""
    labels: list[str] = field(default_factory=list)
    """Columns of interactions that are further labels of 0 and 1, such as order; none is a feature."""
    amount: str | None = None
    """The column of interactions with an amount, 0 where there is none; no feature."""
    weight: str | None = None
    """The column of interactions that says how much a sample counts in training; no feature."""
    history_length: int = 50
    """The user's last so many positives before a sample make its history."""
    cluster_visits: int = 1
    """With more than 1, what was before the last refresh of 14 days is clustered by category and place, at most so many
    positives a cluster (TWIN-V2 has 20), for --ranker.tower twin_v2; history_length may be a life's (docs/scale.md)."""
    sample_days: float = inf
    """The last so many days make samples; what came before is in histories, and in no split."""
    valid_fraction: float = 0.1
    """Share of the interactions, by time, for validation: those before the test's."""
    test_fraction: float = 0.1
    """Share of the interactions, by time, for the test: the latest."""
    min_user_positives: int = 2
    """Users with fewer positives in the training split share row 0 of the user table."""
    price_buckets: int = 8
    """Prices are cut into so many buckets of about equal numbers of items."""
    reach_km: float = 10.0
    """Check-ins only: negatives lie at most so far from the place of the request."""
    place_max_hours: float = 24.0
    """Check-ins only: a visit at most so old says where the user is."""
    train_negatives: int = 4
    """Check-ins only: negatives a visit in the training split."""
    eval_negatives: int = 49
    """Check-ins only: negatives a visit in the validation and test splits."""
    on_bad_rows: OnBadRows = "error"
    """error: stop at the first bad row; skip: set bad rows aside in OUT/rejected and count them."""
    row_group_rows: int = 65_536
    """Samples of a Parquet row group, at most, in whole requests: the unit that the loader reads."""
    spare_rows: float = 0.0
    """Share of rows that tables of ids get beside those that have an id, for ids to come: with after, a table keeps its
    size, and so the sharding plan stays, until what is new does not fit; then it gets so many again."""
    seed: int = 0
    """Decides the negatives and the order of the training samples."""
    engine: Engine = "built-in"
    """ray: Ray Data shares the work, on its cluster or on this machine; the same bytes. Needs placerank[ray]."""
    overwrite: bool = False
    """Replace the output folder if it exists."""

    def __post_init__(self) -> None:
        many = dict.fromkeys(("history_length", "price_buckets", "train_negatives", "eval_negatives"), 1_000_000)
        check_numbers(
            self,
            "prepare",
            endless=("place_max_hours", "sample_days"),
            least={
                "history_length": 1,
                "cluster_visits": 1,
                "min_user_positives": 1,
                "price_buckets": 1,
                "train_negatives": 1,
                "eval_negatives": 1,
                "seed": 0,
                "spare_rows": 0,
            },
            **many,
        )
        set_places(self)
        for name in ("valid_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"prepare.{name}={getattr(self, name)}: expected a share in [0, 1)")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"prepare.valid_fraction={self.valid_fraction} and test_fraction={self.test_fraction}: "
                "expected a sum below 1, so that training samples are left"
            )
        if not self.reach_km > 0:
            raise ValueError(f"prepare.reach_km={self.reach_km}: expected more than 0 km")
        if not self.place_max_hours >= 0:
            raise ValueError(f"prepare.place_max_hours={self.place_max_hours}: expected 0 hours or more")
        if not 1 <= self.row_group_rows <= 65_536:
            raise ValueError(f"prepare.row_group_rows={self.row_group_rows}: expected 1 to 65,536 rows")
        _ = self.outcomes  # told before anything is read
        if self.columns and self.format != "csv":
            raise ValueError(f"prepare.columns is for format 'csv' alone; got format {self.format!r}: drop columns")
        if not self.sample_days > 0:
            raise ValueError(f"prepare.sample_days={self.sample_days}: expected more than 0 days")
        for name in ("cluster_visits", "sample_days"):
            if self.after is not None and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"prepare.{name} needs whole lives, and after carries {RECENT} visits; leave out one")
        if self.after is not None and self.engine == "ray":
            raise ValueError("prepare.after works with the built-in engine alone; leave out --engine")
        if self.after is not None and self.after.resolve() == self.out.resolve():
            raise ValueError(f"prepare.out={self.out} is the folder to go on from; choose another")
        if self.history_length > RECENT and self.after is not None:
            raise ValueError(
                f"prepare.history_length={self.history_length}: {RECENT} visits of a user are carried over by --after; "
                "expected at most so many"
            )
        if self.input.resolve() == self.out.resolve():
            raise ValueError(f"prepare.out={self.out} is the input; choose another folder")

    @property
    def outcomes(self) -> Outcomes:
        """Labels, amount and weight."""
        return Outcomes(labels=tuple(self.labels), amount=self.amount, weight=self.weight)
