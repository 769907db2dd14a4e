"""Pictures of a simulated city's places: a storefront of 32 x 32 pixels, from what a place is.

The coarse category is the colour of the wall, the fine one the shape of the sign; a chain has an awning in stripes of
its own two colours, an independent place a plain one of any colour; what is dear has a dark wall and wide windows. The
light, where things stand to a pixel, and every pixel vary. Nothing else of a place is to be seen, and what people click
at does not depend on pictures. Drawn from a seed of their own, so the rest of the city is the same without them.
"""

import colorsys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...reports.progress import tracked
from .words import COARSE, FINE_PER_COARSE
from .world import Places

SIZE = 32  # pixels, both ways
FOLDER = "pictures"
_NOISE = 14.0  # deviation of a pixel, of 255


def file_name(item_id: int) -> str:
    """Path of an item's picture beside the items table."""
    return f"{FOLDER}/{item_id}.png"


def write_pictures(folder: Path, places: Places, seed: int) -> list[str]:
    """Draw all places' pictures into a folder; returns their paths in it, in the order of ``item_id``."""
    from PIL import Image

    (folder / FOLDER).mkdir()
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    hues = rng.random((len(places.brand_leaf), 2))
    names = []
    for row in tracked(np.argsort(places.item_id), "pictures", unit="places"):
        name = file_name(int(places.item_id[row]))
        brand = int(places.brand[row])
        awning = rng.random(2) if brand < 0 else hues[brand]  # drawn for all: no picture depends on another's chain
        pixels = draw(int(places.leaf[row]), awning, brand >= 0, float(places.dearness[row]), rng)
        Image.fromarray(pixels).save(folder / name)
        names.append(name)
    return names


def draw(
    leaf: int, awning: NDArray[np.float64], stripes: bool, dearness: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A storefront, uint8 [SIZE, SIZE, 3].

    Args:
        leaf: row of ``words.LEAVES``.
        awning: its two hues, [0, 1); a plain one has the first.
        stripes: whether it has both.
        dearness: of the place in its category, in deviations.
    """
    coarse, fine = divmod(leaf, FINE_PER_COARSE)
    dear = 1 / (1 + np.exp(-1.5 * dearness))  # 0 cheap to 1 dear
    y, x = np.mgrid[:SIZE, :SIZE] - rng.integers(-1, 2, (2, 1, 1))
    picture = np.empty((SIZE, SIZE, 3))
    picture[:] = _colour(coarse / len(COARSE), 0.5, 0.95 - 0.5 * dear)
    picture[_sign(fine, x - 16, y - 6)] = 250
    stripe = (x // 4 % 2 == 1) & stripes
    under = (y >= 13) & (y < 18)
    picture[under] = np.where(stripe[under][:, None], _colour(awning[1], 0.9, 0.9), _colour(awning[0], 0.9, 0.9))
    width = 2 + round(5 * dear)
    picture[(np.abs(np.abs(x - 16) - 9) < width) & (y >= 20) & (y < 29)] = (190, 220, 240)
    picture[(np.abs(x - 16) < 2) & (y >= 20)] = (60, 40, 30)
    light = rng.uniform(0.75, 1.1)
    return (picture * light + rng.normal(0, _NOISE, picture.shape)).clip(0, 255).astype(np.uint8)


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _sign(fine: int, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels of the sign around its middle: disc, square, triangle, cross, ring, bars."""
    far = np.hypot(x, y)
    inside = (np.abs(x) <= 5) & (np.abs(y) <= 5)
    shapes = (
        far < 5.5,
        (np.abs(x) <= 4) & (np.abs(y) <= 4),
        inside & (np.abs(x) * 2 <= y + 5),
        inside & ((np.abs(x) <= 1) | (np.abs(y) <= 1)),
        (far < 5.5) & (far > 3),
        inside & (x % 4 < 2),
    )
    return shapes[fine]
