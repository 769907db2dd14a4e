"""What may be said of raw tables: which columns are outcomes, and what becomes of bad rows."""

from dataclasses import dataclass
from typing import Literal

from ..plain import check_types

OnBadRows = Literal["error", "skip"]
INTERACTIONS = (
    "user_id",
    "item_id",
    "timestamp",
    "label",
    "user_lat",
    "user_lon",
    "request_id",
    "probability",
    "utc_offset",
)
"""Names of the schema's columns of interactions; ``columns`` says what they are."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Columns of interactions, by what they are; none is a feature.

    Attributes:
        labels: of 0 and 1.
        amount: 0 or more.
        weight: of samples in training, 0 or more.
    """

    labels: tuple[str, ...] = ()
    amount: str | None = None
    weight: str | None = None

    def __post_init__(self) -> None:
        check_types(self, "")
        seen = set[str]()
        for setting, names in (("labels", self.labels), ("amount", (self.amount,)), ("weight", (self.weight,))):
            for name in names:
                if name is None:
                    continue
                if name == "label":
                    raise ValueError(f"prepare.{setting}: got 'label', which is always one; leave it out")
                if name in INTERACTIONS:
                    raise ValueError(
                        f"prepare.{setting}: got {name!r}, which the schema gives another meaning; name another column"
                    )
                if name in seen or not name:
                    raise ValueError(f"prepare.{setting}: got {name!r}, expected names of columns, each once in all")
                seen.add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return *self.labels, *(name for name in (self.amount, self.weight) if name is not None)
