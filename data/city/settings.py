"""The settings of ``simulate``."""

from dataclasses import dataclass
from pathlib import Path

from ..plain import check_numbers, set_places


@dataclass(kw_only=True)
class SimulateConfig:
    """Draw a simulated city: items, users and impressions with clicks.

    The same values give the same files, byte for byte, with the same versions of numpy and pyarrow.
    """

    out: Path
    """Folder to write."""
    country: str = "NL"
    """Country whose real cities are used: ISO 3166, two capital letters."""
    cities: int = 8
    """Number of its largest cities."""
    countryside: float = 0.0
    """Share of the places and people that are in villages around the cities, where people go six times as far; give it
    a reach_km of 30 or so."""
    items: int = 5_000
    """Number of places."""
    users: int = 5_000
    """Number of people."""
    requests: int = 34_000
    """Number of times that somebody looks at a list of places."""
    candidates: int = 20
    """Places drawn for each request; those drawn twice, out of reach or not yet open are left out."""
    days: int = 120
    """Days from 2024-01-01 over which the requests are spread."""
    reach_km: float = 10.0
    """No place farther than this from the person is shown, km."""
    click_rate: float = 0.18
    """Share of shown places that are clicked, in expectation."""
    delivery: bool = False
    """Whether clicks depend on columns of a delivery service too, which the tables then have: rating and dishes of
    places, the dish that people look for, fee and device."""
    pictures: bool = False
    """Draw a storefront of each place, whose colours and shapes follow from category, chain and price: the items then
    have a column image."""
    orders: float = 0.0
    """Share of clicks that become an order, in expectation: interactions then have columns order (0 or 1) and gmv (its
    amount). 0: nobody orders, and there are none."""
    seed: int = 0
    """Seed of everything that is drawn."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        check_numbers(self, "", candidates=100_000, days=36_500)
        set_places(self)
        for name in ("cities", "items", "users", "requests", "candidates", "days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.reach_km <= 100:
            raise ValueError(f"reach_km: got {self.reach_km}, expected more than 0 and at most 100 (one city)")
        if not 0 < self.click_rate < 1:
            raise ValueError(f"click_rate: got {self.click_rate}, expected more than 0 and less than 1")
        if not 0 <= self.orders < 1:
            raise ValueError(f"orders: got {self.orders}, expected 0 (none), or less than 1")
        if not 0 <= self.countryside < 1:
            raise ValueError(f"countryside: got {self.countryside}, expected 0 (none), or less than 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected 0 or more")
