"""Columns of a delivery service in a simulated city, which the true click probability depends on: ratings and dishes of
places, what people look for, the fee of each offer, the device of each request.

They are drawn from a seed of their own, or hashed from the numbers of request and place, so that the rest of the city
is the same with them and without.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..arrays import hash_ids

DISHES = (
    "burger",
    "curry",
    "dumplings",
    "falafel",
    "noodles",
    "pizza",
    "ramen",
    "salad",
    "sushi",
    "tacos",
    "thali",
    "vegan",
)
DEVICES = ("android", "ios", "web")
# Weights of the logit.
RATING, FEE, DISH = 1.2, 0.5, 1.4
DEVICE = np.array([0.0, 0.5, -0.7])
_RATED, _LOOKING = 0.85, 0.6  # shares of places with a rating, and of people who look for a dish
_FEE_OF_KM, _FEE_SPREAD = 0.3, 1.2


class Delivery:
    """What a city's places, people, requests and offers have.

    Args:
        seed: of the city.
        items, users: how many.
    """

    def __init__(self, seed: int, items: int, users: int) -> None:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
        self.seed = seed
        self.rating = np.clip(np.round(4 + 0.5 * rng.standard_normal(items), 1), 1, 5)
        self.rating[rng.random(items) >= _RATED] = np.nan
        self.dishes = rng.random((items, len(DISHES))) < 0.15
        self.looks_for = np.where(rng.random(users) < _LOOKING, rng.integers(0, len(DISHES), users), -1)

    def device(self, request: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of requests, a row of ``DEVICES`` [N]."""
        return (self._random(request, 0) * len(DEVICES)).astype(np.int64)

    def fee(self, request: NDArray[np.int64], item: NDArray[np.int64], km: NDArray[Any]) -> NDArray[np.float64]:
        """Of offers [N]; ``item`` is a row."""
        noise = -np.log1p(-self._random(request * len(self.rating) + item, 1))
        return np.round(0.5 + _FEE_OF_KM * km.astype(np.float64) + _FEE_SPREAD * noise, 2)

    def _random(self, number: NDArray[np.int64], salt: int) -> NDArray[np.float64]:
        """Of each number one in [0, 1)."""
        hashed = hash_ids(pa.array(number.astype(np.int64) * 4 + salt + (self.seed << 48)))
        return (hashed >> np.uint64(11)).astype(np.float64) / 2**53

    def effect(
        self, request: NDArray[np.int64], user: NDArray[np.int64], item: NDArray[np.int64], km: NDArray[Any]
    ) -> NDArray[np.float32]:
        """What the columns add to the logit of offers [N]."""
        return effect(
            self.rating[item],
            (self.looks_for[user] >= 0) & self.dishes[item, self.looks_for[user]],
            self.fee(request, item, km),
            self.device(request),
        )

    def of_items(self, item: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Columns of the items table, whose rows these are."""
        dishes = [[d for d, has in zip(DISHES, row, strict=True) if has] for row in self.dishes[item]]
        rating = self.rating[item]
        return {"rating": pa.array(rating, mask=np.isnan(rating)), "dishes": pa.array(dishes, pa.list_(pa.string()))}

    def of_users(self) -> dict[str, pa.Array]:
        """Columns of the users table."""
        return {"looks_for": pa.array(DISHES).take(pa.array(self.looks_for, mask=self.looks_for < 0))}

    def of_rows(self, request: NDArray[np.int64], item: NDArray[np.int64], km: NDArray[Any]) -> dict[str, Any]:
        """Columns of the interactions."""
        return {"fee": self.fee(request, item, km), "device": pa.array(DEVICES).take(pa.array(self.device(request)))}


def effect(
    rating: NDArray[np.float64], fits: NDArray[np.bool_], fee: NDArray[np.float64], device: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What own columns add to the logit of offers [N]: rating (NaN = none), whether the place has the dish that the
    person looks for, fee, and row of the device."""
    rated = RATING * np.nan_to_num(rating - 4)
    found: NDArray[np.float32] = (rated + DISH * fits - FEE * (fee - 2.5) + DEVICE[device]).astype(np.float32)
    return found
