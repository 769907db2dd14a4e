"""The answer to one question, in the terminal."""

import math
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from ..rankers.adapter.advisor import Advisor, Answer
from ..rankers.rank_requests import seconds
from .rank import as_ids, visits_of
from .settings import AdviseConfig, moment_of


def advise(config: AdviseConfig) -> Answer:
    """Print the answer, and return it.

    Raises:
        FileNotFoundError, ValueError: no advisor, a damaged one, no such place, or what is asked is not as the settings
            say.
    """
    advisor = Advisor.load(config.advisor)
    moment = moment_of(config.time)
    history: list[tuple[Any, int]] = []
    if config.visits is not None:
        history = visits_of(config.visits, config.user, seconds(moment))
    about = history, config.place, moment
    if config.item is not None:
        item = as_ids([config.item], advisor.item_ids.type, "item")[0]
        found = Answer("explain", advisor.explain(item, *about, config.ask, config.utc_offset))
    else:
        found = advisor.answer(config.ask, *about, within_km=config.within_km, k=config.k, utc_offset=config.utc_offset)
    _print(found, len(history))
    return found


def _print(answer: Answer, visits: int) -> None:
    console, places = Console(), answer.places
    console.print(f"{answer.intent} · {visits:,} earlier visits", highlight=False)
    if not len(places):
        console.print("nothing is there: try a larger --within-km")
        return
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", "place", "km", "why"):
        shown.add_column(name, justify="right" if name in ("", "km") else "left")
    for number, row in enumerate(_rows(places), start=1):
        km = "–" if math.isnan(row["km"]) else f"{row['km']:.2f}"
        cells = (str(number), str(row["name"] or row["item_id"]), km, row["reason"])
        shown.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.print(shown)


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.to_pylist()
    return found
