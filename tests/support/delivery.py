"""A delivery-like raw folder with columns of its own, as Parquet or as CSV."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ITEMS, USERS, REQUESTS, SHOWN = 150, 60, 600, 5
CUISINES = ["thai", "pizza", "vegan", "ramen", "burger"]
START = 1_700_000_000


def delivery() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Items, users and interactions; orders go where the rating is high and the fee low."""
    r = np.random.default_rng(0)
    rating = np.round(1 + 4 * r.random(ITEMS), 1)
    day = dt.date(2020, 1, 1)
    items = {
        "item_id": [f"p{i}" for i in range(ITEMS)],
        "name": [f"Place {i}" for i in range(ITEMS)],
        "category": [["Food", ("Bar", "Cafe")[i % 2]] for i in range(ITEMS)],
        "brand": [f"Chain {i % 6}" if i % 4 else None for i in range(ITEMS)],
        "lat": 51.9 + 0.02 * r.standard_normal(ITEMS),
        "lon": 4.5 + 0.02 * r.standard_normal(ITEMS),
        "rating": pa.array(rating, mask=np.arange(ITEMS) % 10 == 3),
        "cuisines": [[str(c) for c in r.choice(CUISINES, i % 3, replace=False)] for i in range(ITEMS)],
        "vip": [i % 7 == 0 for i in range(ITEMS)],
        "opened": [day + dt.timedelta(days=int(d)) for d in r.integers(0, 900, ITEMS)],
        "kitchen": [("gas", "wood", None)[i % 3] for i in range(ITEMS)],
        "address": [f"Street {i}" for i in range(ITEMS)],
    }
    users = {
        "user_id": [f"u{i}" for i in range(USERS)],
        "plan": [("free", "plus")[i % 2] for i in range(USERS)],
        "age": 18.5 + r.integers(0, 50, USERS),
        "likes": [[CUISINES[i % 5]] for i in range(USERS)],
    }
    of, n = np.repeat(np.arange(REQUESTS), SHOWN), REQUESTS * SHOWN
    item = r.integers(0, ITEMS, n)
    fee = np.round(6 * r.random(n), 2)
    device = np.array(["ios", "android", "web"])[r.integers(0, 3, REQUESTS)]
    logit = 2 * (rating[item] - 3) - (fee - 3) + np.where(device[of] == "ios", 1.0, 0.0)
    rows = {
        "user_id": [f"u{i}" for i in r.integers(0, USERS, REQUESTS)[of]],
        "item_id": [f"p{i}" for i in item],
        "timestamp": START + 600 * of,
        "label": (r.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64),
        "request_id": [f"r{i}" for i in of],
        "fee": fee,
        "device": device[of],
    }
    return pa.table(items), pa.table(users), pa.table(rows)


def write_delivery(folder: Path, csv: bool = False, **changed: Any) -> Path:
    """Write the tables; ``changed``: tables instead of them, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("items", "users", "interactions"), delivery(), strict=True):
        table = changed.get(name, table)
        if not csv:
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=500)
            continue
        for i, field in enumerate(table.schema):
            if pa.types.is_list(field.type):
                mark = " > " if field.name == "category" else "|"
                words = [mark.join(x) for x in table[field.name].to_pylist()]
                table = table.set_column(i, field.name, pa.array(words))
        pa.csv.write_csv(table, folder / f"{name}.csv")
    return folder
