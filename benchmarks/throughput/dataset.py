"""The one synthetic dataset that every side trains on: fixed NumPy arrays, made once from a seed.

Users and items follow a power law, histories a skewed length distribution (median about 10, mean about 14, cut at 50),
and labels follow taste, so that a side that really trains shows a falling loss.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Sizes of the dataset. Tables have their row 0 for padding, so ids start at 1."""

    rows: int = 131_072
    users: int = 100_000
    items: int = 100_000
    categories: int = 500
    history: int = 50
    seed: int = 7


def _power_law(rng: np.random.Generator, rows: int, exponent: float, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Ids in [1, rows) whose frequency falls as rank ** -exponent; ranks are scattered over the ids."""
    weights = np.arange(1, rows, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    ranks = np.searchsorted(cumulative, rng.random(shape) * cumulative[-1])
    ranks = np.minimum(ranks, rows - 2)
    return (rng.permutation(rows - 1)[ranks] + 1).astype(np.int64)


def make_dataset(folder: Path, config: DatasetConfig) -> Path:
    """Write the arrays of `config` under `folder`, or keep what is there when it was made by the same config.

    Files: user, item, length int64 [rows]; label float32 [rows]; history int64 [rows, history], full to the end (a
    case with skewed lengths looks at the first `length` of a row only); category int64 [items], 0 for item 0.
    """
    stamp = folder / "dataset.json"
    if stamp.exists() and json.loads(stamp.read_text()) == asdict(config):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(config.seed)
    category = _power_law(rng, config.categories, 0.8, (config.items,))
    category[0] = 0
    user = _power_law(rng, config.users, 0.6, (config.rows,))
    item = _power_law(rng, config.items, 0.9, (config.rows,))
    history = _power_law(rng, config.items, 0.9, (config.rows, config.history))
    length = np.floor(np.exp(rng.normal(2.3, 1.0, config.rows))).astype(np.int64)
    length = np.minimum(length, config.history)
    quality = rng.normal(0.0, 1.0, config.items)
    visible = np.arange(config.history)[None, :] < length[:, None]
    seen = ((category[history] == category[item][:, None]) & visible).sum(axis=1)
    logit = quality[item] + 1.5 * np.log1p(seen) - 1.5
    label = (rng.random(config.rows) < 1.0 / (1.0 + np.exp(-logit))).astype(np.float32)
    arrays = {"user": user, "item": item, "history": history, "length": length, "label": label, "category": category}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    stamp.write_text(json.dumps(asdict(config)))
    return folder
