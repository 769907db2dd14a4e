"""Small tables of items and interactions, and ``prepare`` on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from placerank.data.manifest import read_manifest
from placerank.data.preparation.prepare import PrepareConfig, prepare

START = 1_600_000_000
ITEMS = pa.table(
    {
        "item_id": [f"i{i}" for i in range(12)],
        "name": [f"place {i}" if i % 3 else None for i in range(12)],
        "category": pa.array(
            [None, ["food"], ["food", "noodles"], ["shop", "noodles"], [], *[["food", "noodles", "ramen"]] * 7],
            pa.list_(pa.string()),
        ),
        "brand": [None, "b", "a", "b", *[None] * 8],
        "price": pa.array([None, 1, 2, 2, 3, *[4] * 7], pa.float32()),
        "lat": [50.0 + 0.01 * i for i in range(11)] + [60.0],
        "lon": [4.0] * 12,
        "city": ["x", "y", *["x"] * 10],
    }
)


def write(folder: Path, interactions: dict[str, Any], items: pa.Table = ITEMS, users: pa.Table | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    if users is not None:
        pq.write_table(users, folder / "users.parquet")
    return folder


def impressions(rows: int = 400, users: int = 6, seed: int = 0, moments: int = 60) -> dict[str, Any]:
    """Random impressions; several rows, and several requests, of a user share a moment."""
    rng = np.random.default_rng(seed)
    time = START + 1000 * rng.integers(0, moments, rows)
    lat = np.where(rng.random(rows) < 0.5, np.nan, rng.uniform(50, 51, rows))
    user = rng.integers(0, users, rows)
    return {
        "user_id": [f"u{u}" for u in user],
        "item_id": [f"i{i}" for i in rng.integers(0, 12, rows)],
        "timestamp": pa.array(time, pa.timestamp("s", "UTC")),
        "label": rng.integers(0, 2, rows).astype(np.int8),
        "user_lat": pa.array(lat, mask=np.isnan(lat)),
        "user_lon": pa.array(lat - 46, mask=np.isnan(lat)),
        "request_id": [f"{t}-{u}-{k}" for t, u, k in zip(time, user, rng.integers(0, 2, rows), strict=True)],
    }


def visits(rows: int = 300, users: int = 5, seed: int = 0, moments: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, users, rows),
        "item_id": [f"i{i}" for i in rng.integers(0, 12, rows)],
        "timestamp": pa.array(START + 7200 * rng.integers(0, moments, rows), pa.timestamp("s", "UTC")),
        "label": np.ones(rows, np.int8),
    }


def with_late_users(source: dict[str, Any], late: int, *more: tuple[str, str, int]) -> dict[str, Any]:
    """``visits``, none of i7, and from ``late`` on a user of nine, one of one, and one of a single moment; and more
    rows: user, item, time."""
    rows = [("late", f"i{i % 4}", late + 60 * i) for i in range(9)] + [("once", "i3", late), *more]
    rows += [("moment", f"i{i}", late + 5) for i in range(4)]
    ids = [str(u) for u in source["user_id"]] + [u for u, *_ in rows]
    time = source["timestamp"].cast(pa.int64()).to_pylist() + [t for *_, t in rows]
    items = [i if i != "i7" else "i6" for i in source["item_id"]] + [i for _, i, _ in rows]
    moments = pa.array(time, pa.timestamp("s", "UTC"))
    return {"user_id": ids, "item_id": items, "timestamp": moments, "label": np.ones(len(ids), np.int8)}


def run(raw: Path, **options: Any) -> Path:
    return prepare(PrepareConfig(**{"input": raw, "out": raw.parent / "out", "overwrite": True, **options}))


def requests(folder: Path, split: str) -> list[dict[str, Any]]:
    """Rows as they are written, a request each."""
    return [r for p in sorted((folder / split).glob("*.parquet")) for r in pq.read_table(p).to_pylist()]


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """A row a candidate: what is of the request is repeated in each."""
    lists = ("item_row", "label", "visits", "probability")
    out = []
    for row in requests(folder, split):
        of_request = {n: x for n, x in row.items() if n not in lists}
        names = [n for n in lists if n in row]
        out += [of_request | dict(zip(names, x, strict=True)) for x in zip(*(row[n] for n in names), strict=True)]
    return out


def everything(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read(folder, split) for split in ("train", "valid", "test")}


def same(a: Path, b: Path) -> bool:
    files = [{n: f["sha256"] for n, f in read_manifest(x, "prepared", verify=True)["files"].items()} for x in (a, b)]
    return files[0] == files[1]


def column(folder: Path, file: str, name: str) -> list[Any]:
    return pq.read_table(folder / file)[name].to_pylist()


def warnings_of(folder: Path) -> str:
    return "\n".join(read_manifest(folder, "prepared")["summary"]["warnings"])


def ways() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Interactions, and settings of ``prepare``, that go different ways through it."""
    bad = impressions(users=30) | {"label": np.where(np.arange(400) % 9 == 0, 7, np.arange(400) % 2)}
    bad["user_id"][1] = None
    rng = np.random.default_rng(0)
    own = {"fee": rng.random(400), "device": [("ios", "web", None)[i] for i in rng.integers(0, 3, 400)]}
    return {
        "own columns": (impressions(users=30) | own, {}),
        "impressions": (impressions(users=30), {}),
        "visits": (visits(users=30), {"train_negatives": 2}),
        "bad rows": (bad, {"on_bad_rows": "skip"}),
    }


def parts(folder: Path, source: dict[str, Any], one_file: bool) -> Path:
    """A raw folder whose interactions have many row groups, in one file or three, one of them empty."""
    write(folder, source)
    table = pa.table(source)
    (folder / "interactions.parquet").unlink()
    if one_file:
        pq.write_table(table, folder / "interactions.parquet", row_group_size=37)
        return folder
    (folder / "interactions").mkdir()
    for i, rows in enumerate((table.slice(0, 90), table.slice(0, 0), table.slice(90))):
        pq.write_table(rows, folder / "interactions" / f"{i}.parquet", row_group_size=37)
    return folder
