"""A small made-up catalog and a small adapter for tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from placerank.data.raw.hours import HOURS
from placerank.rankers.adapter.config import AdapterConfig, LanguageConfig
from placerank.rankers.adapter.inputs import Places, Requests
from placerank.rankers.adapter.language import make_language, trained_tokenizer
from placerank.rankers.adapter.model import RecAdapter
from placerank.rankers.adapter.queries import every

NIGHT = [{"open": 20 * 60, "close": 2 * 60 + 24 * 60}]  # Monday 20:00 to Tuesday 02:00


def catalog() -> pa.Table:
    """Row 0 is no place; names with quotes and joints, places without category, brand, coordinates or name."""
    rows: list[tuple[Any, ...]] = [
        (None, None, None, None, None, None, 0, None),
        ("a", "Fat Cat", ["Arts and Entertainment", "Jazz and Blues Venue"], None, 40.73, -74.0, 8, NIGHT),
        ("b", 'Bar "X" and Grill', ["Food", 'The "Best" and Only'], "Joe's and Son", 40.74, -74.0, 5, None),
        ("c", None, None, None, 40.75, -74.01, 1, []),
        ("d", "Lost", ["Food", "Café"], "Joe's and Son", None, None, 0, None),
        ("e", "Fat Cat", ["Arts and Entertainment", "Jazz and Blues Venue"], None, 40.7305, -74.0, 2, None),
        ("f", "Far", ["Food", "Café"], "Other", 41.5, -74.0, 4, [{"open": 0, "close": 0}]),
    ]
    names = ("item_id", "name", "category", "brand", "lat", "lon", "positives", "opening_hours")
    kinds = (
        pa.string(),
        pa.string(),
        pa.list_(pa.string()),
        pa.string(),
        pa.float64(),
        pa.float64(),
        pa.int64(),
        HOURS,
    )
    columns = {n: pa.array([r[i] for r in rows], t) for i, (n, t) in enumerate(zip(names, kinds, strict=True))}
    table = pa.table(columns)
    nan = pa.array([float("nan") if x is None else x for x in table["lat"].to_pylist()])
    east = pa.array([float("nan") if x is None else x for x in table["lon"].to_pylist()])
    return table.set_column(4, "lat", nan).set_column(5, "lon", east)


def small_adapter(seed: int = 0, model: Path | None = None, **changes: Any) -> RecAdapter:
    """With random weights, all that starts at zero too, in eval mode."""
    torch.manual_seed(seed)
    language = LanguageConfig(columns=16, layers=2, heads=2, hidden=24, model=None if model is None else str(model))
    places = Places.of_catalog(catalog())
    config = AdapterConfig(**({"columns": 8, "heads": 2, "history": 6} | changes))
    found = RecAdapter(
        *make_language(language, lambda: trained_tokenizer([*places.texts, *every()] * 3)), config, places
    )
    for p in found.parameters():
        if p.requires_grad and p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return found.eval()


def requests(rows: list[list[int]], seed: int = 0) -> Requests:
    """Requests with these visits, at the left."""
    g = torch.Generator().manual_seed(seed)
    wide = max(map(len, rows), default=0)
    item = torch.tensor([[*r, *[0] * (wide - len(r))] for r in rows], dtype=torch.int64).reshape(len(rows), wide)
    seen = torch.tensor([[True] * len(r) + [False] * (wide - len(r)) for r in rows]).reshape(len(rows), wide)
    return Requests(
        item=item,
        gap=torch.randint(0, 20, item.shape, generator=g),
        hour=torch.randint(0, 24, item.shape, generator=g),
        seen=seen,
        point=torch.nn.functional.normalize(torch.randn(len(rows), 3, generator=g).double(), dim=1),
        local=torch.full((len(rows),), 1_700_000_000),
    )
