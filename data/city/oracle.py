"""The true probability of a click in a simulated city, of any person and place at any moment, shown or not."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..manifest import read_manifest
from ..plain import from_plain
from .simulate import BASKET, SimulateConfig, _City, _sigmoid
from .world import flat_km


class Oracle:
    """What ``simulate`` drew clicks with.

    Args:
        folder: that ``simulate`` wrote; its config is read, and the same city drawn again.

    Raises:
        FileNotFoundError, ValueError: no such folder, or not of a simulated city.
    """

    def __init__(self, folder: Path) -> None:
        config = read_manifest(folder, "raw").get("config")
        if config is None or "click_rate" not in config:
            raise ValueError(f"{folder}: expected a folder that placerank simulate wrote; nobody knows others' truth")
        if config.get("delivery"):
            raise ValueError(
                f"{folder}: clicks depend on the fee and device of each offer there, so that user, place and time "
                "alone have no probability; take that of the interactions"
            )
        self._city = _City(from_plain(SimulateConfig, config, str(folder)))
        self._city.calibrate()
        self._row = np.argsort(self._city.places.item_id)  # item_id is 1 to N, in another order

    def probability(
        self, user_id: ArrayLike, item_id: ArrayLike, time: ArrayLike, lat: ArrayLike, lon: ArrayLike
    ) -> NDArray[np.float64]:
        """Of each [N]: ids as in the folder's tables, unix seconds, and the person's place in degrees.

        What is out of reach or not open yet is never shown, but has a probability all the same.
        """
        user, item = self._rows(user_id, item_id)
        km = self._km(item, lat, lon)
        logit = self._city._logit(user, np.asarray(time, np.int64), np.arange(len(user)), item, km)
        found: NDArray[np.float64] = _sigmoid(logit.astype(np.float64))
        return found

    def conversion(self, user_id: ArrayLike, item_id: ArrayLike, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float64]:
        """Probability of an order after a click, clicked or not, of each [N]; arguments as of ``probability``.

        Raises:
            ValueError: a city without orders.
        """
        self._check_orders()
        user, item = self._rows(user_id, item_id)
        found: NDArray[np.float64] = _sigmoid(self._city.order_logit(user, item, self._km(item, lat, lon)))
        return found

    def amount(self, user_id: ArrayLike, item_id: ArrayLike) -> NDArray[np.float64]:
        """Expected amount of an order, of each [N]; what is expected of a place that is shown is this times both
        probabilities.

        Raises:
            ValueError: a city without orders.
        """
        self._check_orders()
        found: NDArray[np.float64] = np.exp(self._city.log_amount(*self._rows(user_id, item_id)) + BASKET**2 / 2)
        return found

    def _check_orders(self) -> None:
        if not self._city.config.orders:
            raise ValueError("nobody orders in this city; simulate one with --orders 0.3, or another share of clicks")

    def _rows(self, user_id: ArrayLike, item_id: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        item: NDArray[np.int64] = self._row[np.asarray(item_id, np.int64) - 1]
        return np.asarray(user_id, np.int64) - 1, item

    def _km(self, item: NDArray[np.int64], lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float32]:
        """From places in degrees to items, as clicks are drawn with."""
        places = self._city.places
        km: NDArray[np.float32] = flat_km(np.asarray(lat), np.asarray(lon), places.lat[item], places.lon[item]).astype(
            np.float32
        )
        return km
