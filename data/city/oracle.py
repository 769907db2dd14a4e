"""The true probability of a click in a simulated city, of any person and place at any moment, shown or not."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..manifest import read_manifest
from ..plain import from_plain
from .simulate import SimulateConfig, _City, _sigmoid
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
        user = np.asarray(user_id, np.int64) - 1
        item = self._row[np.asarray(item_id, np.int64) - 1]
        places = self._city.places
        km = flat_km(np.asarray(lat), np.asarray(lon), places.lat[item], places.lon[item]).astype(np.float32)
        logit = self._city._logit(user, np.asarray(time, np.int64), np.arange(len(user)), item, km)
        found: NDArray[np.float64] = _sigmoid(logit.astype(np.float64))
        return found
