"""Lists of places for requests, from a generative ranker: exact probabilities of what is within reach."""

import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from ..data.batches.sequences import SequenceBatch, ask, read_users
from ..data.manifest import check_replaceable, whole_folder, write_manifest
from ..data.raw.hours import HOURS, OPENING_HOURS
from ..kernels.haversine import haversine_km
from ..rankers.generative.reach import Allowed, Around, OpeningHours, local_seconds, open_now
from ..rankers.generative_ranker import expand, gather
from ..reports import figures, page
from ..reports.progress import tracked
from ..training.inference import Loaded, load_ranker
from ..training.runtime import Runtime, runtime
from ..training.tasks import history, scored_together, visit_loader
from . import maps
from .breakdown import ItemFacts
from .lists import chosen
from .requests_file import Asked, read_places, read_requests
from .settings import GenerateConfig

log = logging.getLogger(__name__)

LISTS = "lists.parquet"
_SHOWN = 6  # lists that the report draws


def generate(config: GenerateConfig) -> Path:
    """Write lists.parquet and report.html; returns their folder. One process.

    ``lists.parquet`` has a row a place of a list: ``request`` (a number from 0, in the order of the requests),
    ``user_id``, ``time``, ``lat``, ``lon``, ``place`` (from 1), ``item_id``, ``item_lat``, ``item_lon``,
    ``probability`` (of this item as the next visit, among all), ``km`` from the request's place; for visits of a split,
    ``visited``: whether it was this one.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        FileNotFoundError: no such run, checkpoint, data or requests.
        ValueError: the run is of another kind of ranker; requests or places are not as expected.
    """
    check_replaceable(config.out, config.overwrite)
    with runtime(seed=0) as rt:
        ranker = load_ranker(config.run, rt, config.data, config.checkpoint, None, config.semantic_ids)
        if not ranker.inputs.ranker.generates:
            raise ValueError(
                f"{config.run} has a ranker of kind {ranker.inputs.ranker.kind}, which scores candidates; generate "
                "needs one that `placerank train --ranker.kind generative` made"
            )
        places = _Places(ranker, config.places, config.within_km, config.open_now)
        user, size = ranker.inputs.read_users()["user_id"], scored_together(len(places.ids))
        if config.requests is None:
            batches = _visits(ranker, config, rt, size)
        else:
            asked = read_requests(config.requests, user)
            user = asked.user_id
            batches = _asked(ranker, asked, size)
        counts, parts = [], []
        for batch, wanted in batches:
            counts.append(int(wanted.sum()))
            parts.append(_lists(ranker, places, batch, wanted, config))
        if not parts:
            raise ValueError("there are no requests; name a file that has some with requests, or another split")
        table = _table(parts, counts, user, config.requests is not None, places)
        with whole_folder(config.out, config.overwrite) as folder:
            pq.write_table(table, folder / LISTS, compression="zstd")
            _report(folder, table, sum(counts), config, ItemFacts.load(ranker.inputs.folder))
            made_from = {"prepared": ranker.inputs.manifest["content_hash"]}
            write_manifest(folder, "lists", config, made_from, step=ranker.saved["step"])
    _print(table, sum(counts))
    if places.solar:
        log.warning(
            "warning: %s of %s requests have no utc_offset, so what was open for them is by solar time, an hour or two "
            "off the clock in many countries",
            f"{places.solar:,}",
            f"{sum(counts):,}",
        )
    return config.out


class _Places:
    """Items by catalog row: raw ids, degrees, and the reach; those that opened since come last.

    Args:
        ranker: told of places that opened, which no table has a row of.
        opened: a file of such; None: there are none.
        within_km: the reach.
        open_now: whether they have to be open.

    Attributes:
        solar: requests that were asked in solar time, if places have to be open.
    """

    def __init__(self, ranker: Loaded, opened: Path | None, within_km: float, open_now: bool) -> None:
        items = ranker.inputs.read_places()
        hours = ranker.inputs.read_hours() if open_now else None
        model = ranker.model.module.dense
        if opened is not None:
            known, new = len(items), read_places(opened, items.drop_columns("positives"))
            if hours is not None:
                hours = pa.chunked_array([*hours.chunks, *new[OPENING_HOURS].chunks], HOURS)
            new = new.drop_columns(OPENING_HOURS)
            nobody = pa.array(np.zeros(len(new)), items["positives"].type)
            items = pa.concat_tables([items, new.append_column("positives", nobody)])
            facts, index = ranker.inputs.places(items)
            lacking = (facts.codes[known:] < 0).any(1).nonzero()
            if len(lacking):
                raise ValueError(
                    f"{len(lacking):,} of {len(new):,} places that opened have no semantic ID in "
                    f"{ranker.inputs.tokens}, {new['item_id'][int(lacking[0])]} for one; add them with placerank "
                    "tokenize --add, and name its folder with semantic_ids"
                )
            model.set_items(facts, index)
        self.ids = items["item_id"]
        self.lat, self.lon = (items[c].to_numpy().astype(np.float64) for c in ("lat", "lon"))
        self.hours, self.solar = None if hours is None else OpeningHours.of_column(hours), 0
        self.around = Around(model.index.items, self.lat, self.lon, within_km)

    def allowed(self, batch: SequenceBatch, wanted: Tensor) -> Allowed:
        """What the targets of a batch may be shown; nothing to those that are no requests, bool [B]."""
        near = self.around.within(batch)
        near = near.keep(wanted[near.requests])
        if self.hours is None:
            return near
        self.solar += int(batch.target_offset[wanted].isnan().sum())
        local = local_seconds(near, batch.target_time, batch.target_offset, torch.from_numpy(self.lon))
        return open_now(near, self.hours, local)


def _seen(batch: SequenceBatch, allowed: Allowed, items: int) -> Tensor:
    """Which of the allowed items the user of the request has visited before it, bool [T]."""
    offsets, at = batch.last(int(batch.seen.max()))
    been = torch.repeat_interleave(offsets.diff()) * items + batch.item[at]
    return torch.isin(allowed.requests * items + allowed.items, been)


Batches = Iterator[tuple[SequenceBatch, Tensor]]
"""Batches, and which of their targets are requests, bool [B]."""


def _visits(ranker: Loaded, config: GenerateConfig, rt: Runtime, size: int) -> Batches:
    loader = visit_loader(ranker.inputs, config.split, size, rt, together=1)
    wanted = torch.from_numpy(chosen(loader.rows, config.visits))
    for batch, here in zip(tracked(loader, "generate", unit="batches"), wanted.split(loader.batch_size), strict=True):
        if here.any():
            yield batch, here


def _asked(ranker: Loaded, asked: Asked, size: int) -> Batches:
    known = read_users(ranker.inputs.folder, asked.user_row)
    longest = history(ranker.inputs.ranker)
    for start in tracked(range(0, len(asked.user_row), size), "generate", unit="batches"):
        some = slice(start, start + size)
        place = asked.lat[some], asked.lon[some]
        batch = ask(known, asked.user_row[some], asked.time[some], *place, longest, asked.utc_offset[some])
        yield batch, torch.ones(len(batch), dtype=torch.bool)


def _lists(
    ranker: Loaded, places: _Places, batch: SequenceBatch, wanted: Tensor, config: GenerateConfig
) -> dict[str, Any]:
    """Columns with a row a place of a list; ``request`` counts from 0 in the batch."""
    kept = places.allowed(batch, wanted)
    seen = _seen(batch, kept, len(places.lat)) if config.new else None
    allowed = Allowed(F.pad(kept.offsets.diff()[wanted].cumsum(0), (1, 0)), kept.items)
    asked = expand(ranker.catalog, gather(ranker.catalog, batch))
    lists = ranker.model.module.lists(asked, wanted, allowed, config.k, seen, config.new, config.beams)
    request = torch.repeat_interleave(lists.offsets.diff())
    at = wanted.nonzero().squeeze(1)[request]
    lat, lon = (x[at].double() for x in (batch.lat, batch.lon))
    item = lists.items.numpy()
    to = (torch.from_numpy(x[item]) for x in (places.lat, places.lon))
    found = {
        "request": request.numpy(),
        "user_row": batch.user[batch.stretch[at]].numpy(),
        "time": batch.target_time[at].numpy(),
        "lat": lat.float().numpy(),
        "lon": lon.float().numpy(),
        "place": (torch.arange(len(request)) - lists.offsets[request] + 1).int().numpy(),
        "item_row": item,
        "item_lat": places.lat[item],
        "item_lon": places.lon[item],
        "probability": lists.log_p.exp().float().numpy(),
        "km": haversine_km(lat, lon, *to).float().numpy(),
    }
    if config.requests is None:
        found["visited"] = (lists.items == batch.target[at]).numpy()
    return found


def _table(
    parts: list[dict[str, Any]], counts: list[int], user: pa.ChunkedArray, by_request: bool, places: _Places
) -> pa.Table:
    """The parts as one, with raw ids.

    Args:
        parts, counts: of ``_lists``, and how many requests each is of.
        user: raw ids, by user row or by request.
        by_request: which of both.
        places: of the items.
    """
    before = np.cumsum([0, *counts])
    for part, start in zip(parts, before, strict=False):
        part["request"] = part["request"] + start
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    of_user = columns.pop("user_row")
    who = user.take(pa.array(columns["request"] if by_request else of_user))
    item = places.ids.take(pa.array(columns.pop("item_row")))
    head = {"request": columns.pop("request"), "user_id": who}
    tail = {name: columns.pop(name) for name in ("time", "lat", "lon", "place")}
    return pa.table({**head, **tail, "item_id": item, **columns})


def _report(folder: Path, table: pa.Table, requests: int, config: GenerateConfig, items: ItemFacts) -> None:
    there = np.unique(table["request"].to_numpy())  # some of all over them: neighbours are of one user
    first = there[np.unique(np.linspace(0, len(there) - 1, _SHOWN).round().astype(int))].tolist() if len(there) else []
    shown = {r: table.filter(pc.equal(table["request"], r)) for r in first}
    body = ""
    if first and maps.frames(items):
        body += figures.png(
            lambda: maps.lists_map(items, list(shown.values())), "maps of some lists", folder / "map.png"
        )
    for r, rows in shown.items():
        about = rows.slice(0, 1).to_pylist()[0]
        when = datetime.fromtimestamp(about["time"], UTC).strftime("%a %d %b %Y %H:%M UTC")
        cells: list[list[str | page.Cell]] = [
            [
                page.Cell(text=str(row["place"]), kind="best" if row.get("visited") else ""),
                str(row["item_id"]),
                f"{row['probability']:.3%}",
                "–" if math.isnan(row["km"]) else f"{row['km']:.2f}",
            ]
            for row in rows.to_pylist()
        ]
        who = "a new user" if about["user_id"] is None else f"user {about['user_id']}"
        body += page.lead(f"{who}, {when}", f"Request {r}")
        body += page.table(["", "item", "probability", "km"], cells)
    lead = (
        f"{requests:,} requests, {len(table):,} places in their lists. A probability is that of the item as the user's "
        "next visit, among all places; within reach they add up to less than 1. All lists are in lists.parquet."
    )
    reach = "all places" if math.isinf(config.within_km) else f"within {config.within_km:g} km"
    reach += " · open now" if config.open_now else ""
    page.write_page(
        folder / "report.html",
        f"placerank · lists of {config.run.name}",
        f"{reach} · up to {config.k} places",
        _cards(table, requests, config),
        [page.section("Some of the lists", lead, body)],
    )


def _cards(table: pa.Table, requests: int, config: GenerateConfig) -> list[tuple[str, str]]:
    lengths = np.bincount(table["request"].to_numpy(), minlength=requests)
    full = float((lengths >= config.k).mean())
    cards = [(f"{requests:,}", "requests"), (f"{full:.0%}", f"of them have {config.k} places")]
    if "visited" in table.column_names:
        hits = np.unique(table.filter(table["visited"])["request"].to_numpy())
        cards.append((f"{len(hits) / requests:.1%}", "of the lists hold the place that was visited"))
    return cards


def _print(table: pa.Table, requests: int) -> None:
    """The first list, and how many there are."""
    shown = Table(title="the first list", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("place", "item", "probability", "km"):
        shown.add_column(name, justify="left" if name == "item" else "right")
    first = table["request"][0].as_py() if len(table) else -1
    for row in table.filter(pc.equal(table["request"], first)).to_pylist():
        km = "–" if math.isnan(row["km"]) else f"{row['km']:.2f}"
        shown.add_row(str(row["place"]), str(row["item_id"]), f"{row['probability']:.3%}", km)
    console = Console()
    if len(table):
        console.print(shown)
    empty = requests - len(np.unique(table["request"].to_numpy()))
    console.print(f"{requests:,} requests" + (f", {empty:,} of them with nothing within reach" if empty else ""))
