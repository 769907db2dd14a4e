"""Lists of a generative ranker, as a table in the terminal and a part of the report."""

from typing import Any

from rich.table import Table

from ..reports import page
from .measure_lists import MODEL

SHOWN = {"hit@1": "Hit@1", "hit@10": "Hit@10", "hit@50": "Hit@50", "ndcg@10": "NDCG@10", "mrr": "MRR"}
PARTS = {"all": "all visits", "visit: first visit": "first visits", "visit: repeat": "repeats"}
WAYS = {
    "all": "Among all items",
    "reach": "Among those within reach",
    "sampled": "Among itself and 99 drawn from all",
    "codes": "Its semantic ID, among all",
}


def _rows(lists: dict[str, Any], way: str) -> list[tuple[str, list[str]]]:
    """Of each scorer: ``SHOWN`` over all visits, then Hit@10 with its standard error over each part."""
    found = []
    for name, parts in lists["ways"][way].items():
        whole = parts.get("all")
        if whole is None:
            continue
        cells = [_number(whole[metric]) for metric in SHOWN]
        for part in list(PARTS)[1:]:
            row = parts.get(part)
            cells.append("" if row is None else f"{_number(row['hit@10'])} ± {_number(row['hit@10_standard_error'])}")
        found.append((name, cells))
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


HEAD = [*SHOWN.values(), *(f"{PARTS[part]}, Hit@10" for part in list(PARTS)[1:])]


def list_table(lists: dict[str, Any]) -> Table:
    """For the terminal: lists of all items."""
    table = Table(
        title=f"\nlists of all items: {lists['visits']:,} visits, each of one item",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("")
    for title in HEAD:
        table.add_column(title, justify="right")
    for name, cells in _rows(lists, "all"):
        table.add_row(name, *cells, style="bold" if name == MODEL else None)
    return table


def list_section(lists: dict[str, Any]) -> str:
    """For the report: a table for each way, how sure the first item is, and the likelihood of visits."""
    lead = (
        f"{lists['visits']:,} visits, each of one item; Hit@K: it is among the first K. The model's lists are exact: "
        "every item has its probability. Reach is "
        f"{lists['reach_km']:g} km from the request's place. What needs no model is asked the same. ± is one standard "
        "error."
    )
    body = ""
    for way, title in WAYS.items():
        if way not in lists["ways"]:
            continue
        rows: list[list[str | page.Cell]] = [
            [page.Cell(text=name, kind="strong" if name == MODEL else ""), *cells] for name, cells in _rows(lists, way)
        ]
        body += page.lead("", title) + page.table(["", *HEAD], rows)
    sure, nll = lists["within_reach"], lists["nll"]
    if sure["ece"] is not None:
        table = [
            [f"{n:,}", f"{p:.1%}", f"{hit:.1%}"]
            for n, p, hit in zip(sure["lists"], sure["confidence"], sure["accuracy"], strict=True)
        ]
        told = (
            "Of lists within reach that hold the item: the first item's share of the probability there, and how often "
            f"it was the one. Expected calibration error: {sure['ece']:.3f}."
        )
        body += page.lead(told, "How sure it is") + page.table(["lists", "promised", "came true"], table)
    if nll:
        told = (
            f"{nll['model']:.3f} nats a visit; {nll['floor']:.3f} by 0.8 of the user's last 50 visits and 0.2 of "
            f"popularity ({nll['visits']:,} visits that both give a probability)."
        )
        body += page.lead(told, "Likelihood of visits")
    return page.section("Lists of places", lead, body)
