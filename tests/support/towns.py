"""A small world for tests of the alignment: three towns of two districts each; an item's name says its town."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from tiny_models import tiny_model

from placerank.tokenization.alignment.locations import Locations
from placerank.tokenization.text.encoders import Encoder, EncoderConfig, load_encoder
from placerank.tokenization.text.prompts import PromptConfig, Prompts, build_prompts

TOWNS = ("ulm", "york", "oslo")


def towns(n: int = 240) -> tuple[Prompts, Locations]:
    """Items in towns a thousand km apart, with districts 11 km apart."""
    rng = np.random.default_rng(0)
    town, side = rng.integers(0, 3, n), rng.integers(0, 2, n)
    lat = 10.0 * town + 0.1 * side + rng.normal(0, 0.001, n)
    kinds = np.array(["bar", "gym", "shop", "museum", "ramen"])[rng.integers(0, 5, n)]
    table = pa.table(
        {
            "name": [f"{kind} {TOWNS[t]}" for kind, t in zip(kinds, town, strict=True)],
            "city": [TOWNS[t] for t in town],
            "district": [("north", "south")[s] for s in side],
        }
    )
    prompts = build_prompts(table, PromptConfig())
    return prompts, Locations(prompts, lat, np.zeros(n))


def town_encoder(folder: Path) -> Encoder:
    """A tiny encoder whose random weights are large enough to tell words apart."""
    if not (folder / "config.json").exists():
        tiny_model(folder, "bert", initializer_range=0.3)
    return load_encoder(EncoderConfig(model=str(folder)))
