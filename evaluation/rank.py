"""The list of one user as a table in the terminal, and as a page with a map."""

import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from ..data.arrays import one_array
from ..data.manifest import read_manifest, whole_file
from ..data.raw.checks import BadRows
from ..data.raw.csv_text import csv_rows
from ..data.raw.parts import open_parquet
from ..data.raw.values import numbers, times
from ..data.urls import fetched
from ..rankers.rank import load
from ..rankers.rank_base import Ranker
from ..rankers.rank_requests import seconds, seconds_of
from ..reports import figures, page
from . import maps
from .breakdown import ItemFacts
from .settings import RankConfig


def rank(config: RankConfig) -> Path | None:
    """Print the list, and write the page if one is asked for; returns its file.

    Raises:
        FileExistsError: the page is there and ``overwrite`` is not set.
        FileNotFoundError, ValueError: no export, a damaged one, or what is asked is not as the settings say.
    """
    if config.out is not None and (config.out.is_dir() or not config.out.absolute().parent.is_dir()):
        what = "is a folder" if config.out.is_dir() else "lies in no folder that is there"
        raise FileNotFoundError(f"out: {config.out} {what}, expected a file to write; choose another path")
    if config.out is not None and config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} exists; choose another file, or pass --overwrite to replace it")
    folder = fetched(config.export)
    ranker = load(folder)
    user = as_ids([config.user], ranker.user_ids.type, "user")[0]
    moment = config.moment()
    history = None
    if config.visits is not None:
        history = visits_of(config.visits, user, seconds(moment))
    candidates = None
    if config.candidates is not None:
        candidates = as_ids(config.candidates, ranker.item_ids.type, "candidates")
    also: dict[str, Any] = {"by": config.by, "utc_offset": config.utc_offset, "own": own_of(config.own, ranker.own)}
    found = ranker.rank(user, config.place, moment, history, candidates, config.within_km, config.k, **also)
    items = ItemFacts.load(folder)
    found = with_places(found, ranker, items)
    known = pc.index(ranker.user_ids, pa.scalar(user, ranker.user_ids.type)).as_py() >= 0
    when = datetime.fromtimestamp(seconds(moment), UTC).strftime("%a %d %b %Y %H:%M UTC")
    reach = "of the candidates" if candidates else "of all places"
    if not candidates and not math.isinf(config.within_km):
        reach = f"within {config.within_km:g} km"
    told = [
        f"user {config.user}" + ("" if known else " (not known to the ranker)"),
        when,
        f"{len(history or ()):,} earlier visits",
        reach,
    ]
    _print(found, " · ".join(told))
    if config.out is None:
        return None
    model = read_manifest(folder, "export")
    with whole_file(config.out) as file:
        _page(file, found, told, config, items, str(model.get("step", "")))
    print(f"open {config.out.resolve().as_uri()} in a browser")
    return config.out


def as_ids(texts: list[str], kind: pa.DataType, name: str) -> list[Any]:
    """Raw ids as a vocabulary has them.

    Raises:
        ValueError: ids are whole numbers, and one is none.
    """
    if not pa.types.is_integer(kind):
        return list(texts)
    try:
        return [int(text) for text in texts]
    except ValueError:
        bad = next(text for text in texts if not text.strip().lstrip("+-").isdigit())
        raise ValueError(f"{name}: got {bad!r}, expected a whole number, as this ranker's ids are") from None


def own_of(texts: dict[str, str], columns: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Own columns of a request, given as text, as ``Ranker.rank`` takes them.

    Args:
        texts: as ``RankConfig.own`` has them; of names that the ranker doesn't know they stay text.
        columns: ``Ranker.own``.

    Raises:
        ValueError: a number or a date is none.
    """
    found: dict[str, Any] = {}
    for name, text in texts.items():
        about = columns.get(name, {"kind": "category", "joins": "request"})
        of_candidates = about["joins"] == "candidate"
        values = [
            part.strip() or None if about["kind"] == "category" else _number_or_date(part.strip(), name)
            for part in (text.split(",") if of_candidates else [text])
        ]
        found[name] = values if of_candidates else values[0]
    return found


def _number_or_date(text: str, name: str) -> float | datetime | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"own {name}: got {text!r}, expected a number, or a date as 2024-05-01T12:00") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)  # prepare too takes these as UTC


def visits_of(file: Path, user: Any, before: int) -> list[tuple[Any, int]]:
    """A user's visits before a moment, (item id, unix seconds) each, of a file as ``RankConfig.visits`` tells.

    Raises:
        FileNotFoundError, ValueError: no such file, a column is missing, or its times are none.
    """
    found: list[tuple[Any, int]] = []
    for table in _csv(file) if file.name.endswith((".csv", ".csv.gz")) else _parquet(file):
        for name in ("user_id", "item_id", "timestamp"):
            if name not in table.column_names:
                raise ValueError(f"{file}: no column {name}; expected user_id, item_id and timestamp")
        kind = table["user_id"].type
        who = pa.scalar(as_ids([str(user)], kind, f"{file}: user_id")[0], kind)
        mine = table.filter(pc.equal(table["user_id"], who))
        if "label" in table.column_names:
            mine = mine.filter(pc.equal(mine["label"], 1))
        time = mine["timestamp"]
        if pa.types.is_timestamp(time.type) and time.type.tz is None:  # prepare too takes these as UTC
            time = time.cast(pa.timestamp(time.type.unit, "UTC"))
        when = seconds_of(time, f"{file}: timestamp").to_pylist() if len(mine) else []
        found += [(i, t) for i, t in zip(mine["item_id"].to_pylist(), when, strict=True) if t < before]
    return found


_VISITS = ("user_id", "item_id", "timestamp", "label")


def _parquet(file: Path) -> Iterator[pa.Table]:
    with open_parquet(file) as parquet:
        columns = [n for n in _VISITS if n in parquet.schema_arrow.names]
        yield parquet.schema_arrow.empty_table().select(columns)  # of a file without rows too columns are looked at
        for batch in parquet.iter_batches(columns=columns):
            yield pa.Table.from_batches([batch])


def _csv(file: Path) -> Iterator[pa.Table]:
    """As ``prepare --format csv`` reads it; bad lines raise."""
    for _, table in csv_rows(fetched(file), BadRows(), Counter()):
        if "timestamp" in table.column_names:
            table = table.set_column(table.column_names.index("timestamp"), "timestamp", times(table["timestamp"]))
        if "label" in table.column_names:
            table = table.set_column(table.column_names.index("label"), "label", numbers(table["label"]))
        yield table


def with_places(found: pa.Table, ranker: Ranker, items: ItemFacts) -> pa.Table:
    """The list with ``place`` (from 1), ``name``, ``item_lat`` and ``item_lon``."""
    rows = pc.index_in(found["item_id"], value_set=one_array(ranker.item_ids)).to_numpy().astype(np.int64)
    new = {
        "place": np.arange(1, len(found) + 1),
        "name": pa.array(items.name[rows].tolist(), pa.string()),
        "item_lat": items.lat[rows],
        "item_lon": items.lon[rows],
    }
    for name, values in new.items():
        found = found.append_column(name, pa.array(values))
    return found


def _shown(found: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the list; names where there are some, and each objective's number."""
    numbers = [n for n in found.column_names if n.startswith(("probability", "expected"))]
    named = any(found["name"].to_pylist())
    head = ["", *(["name"] if named else []), "item", *(n.replace("_", " ") for n in numbers), "km"]
    rows = []
    for row in found.to_pylist():
        cells = [str(row["place"]), *([row["name"]] if named else []), str(row["item_id"])]
        cells += [f"{row[n]:.3g}" if n.startswith("expected") else f"{row[n]:.2%}" for n in numbers]
        rows.append([*cells, "–" if math.isnan(row["km"]) else f"{row['km']:.2f}"])
    return head, rows


def _print(found: pa.Table, told: str) -> None:
    console = Console()
    console.print(told, highlight=False, markup=False)
    if not len(found):
        console.print("nothing is there: try a larger --within-km")
        return
    head, rows = _shown(found)
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in head:
        shown.add_column(name, justify="left" if name in ("name", "item") else "right")
    for cells in rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.print(shown)


def _page(file: Path, found: pa.Table, told: list[str], config: RankConfig, items: ItemFacts, step: str) -> None:
    lat, lon = config.place or (math.nan, math.nan)
    here = {"lat": np.full(len(found), lat), "lon": np.full(len(found), lon)}
    body = ""
    if len(found) and maps.frames(items):
        drawn = found
        for name, values in here.items():
            drawn = drawn.append_column(name, pa.array(values))
        body += figures.png(lambda: maps.lists_map(items, [drawn]), "the list on a map; the cross is the request")
    head, rows = _shown(found)
    body += page.table(head, rows) if rows else page.warning("Nothing is there: try a larger --within-km.")
    score = next((n for n in found.column_names if n.startswith("probability")), "probability")
    best = f"{found[score][0].as_py():.1%}" if len(found) else "–"
    nearest = found["km"].to_numpy()
    cards = [(f"{len(found):,}", "places"), (best, "probability of the first")]
    if len(found) and not np.isnan(nearest).all():
        cards.append((f"{np.nanmax(nearest):.1f} km", "to the farthest of them"))
    lead = "; ".join(told[1:]) + f". Ranked by {config.export.name}" + (f", step {step}." if step else ".")
    page.write_page(file, f"placerank · places for {told[0]}", told[1], cards, [page.section("The list", lead, body)])
