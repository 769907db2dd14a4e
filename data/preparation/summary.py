"""What ``prepare`` tells at its end: what it read, kept and left out, what it took the data for, and what looks wrong.

All of it is counted in passes that ``prepare`` makes anyway, so it costs next to nothing and no memory by rows.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..raw.columns import DataError
from ..raw.times import YEAR_1990, iso, looks_like
from ..requests import OWN
from .item_variance import PAYS, ItemVariance
from .own import Distinct

_NEVER = np.iinfo(np.int64).max
_DAY = 86_400
_WORDS = ("null", "none", "nil", "nan", "nat", "na", "n/a", "undefined", "unknown")
MARKERS = (*_WORDS, "<null>", "<na>", "#n/a", "\\n", "-", "?")
"""What programs write for a missing value, in lower case."""
_FEW, _MANY, _MOST = 0.01, 0.05, 0.5  # shares from which something is told as a warning
_SHOWN = 4  # reasons of a kind on screen; the manifest has them all


@dataclass
class Seen:
    """What the passes over the interactions saw.

    Attributes:
        rows, negatives: all that passed the checks, and those with label 0.
        first, last: unix seconds.
        early, future: rows before 1990, and after now.
        placed, nowhere: rows with a place of the user, and those of them at (0, 0) or (-1, -1).
        place: sums of the users' latitudes and longitudes, [2].
        repeated, both_labels: see ``buckets.Sorted``.
        top_user: the id with most rows, and how many.
        marker_users: ids that read as a missing value, with their rows.
        values: different texts of own columns.
    """

    rows: int = 0
    negatives: int = 0
    first: int = _NEVER
    last: int = 0
    early: int = 0
    future: int = 0
    placed: int = 0
    nowhere: int = 0
    place: np.ndarray = field(default_factory=lambda: np.zeros(2))
    repeated: int = 0
    both_labels: int = 0
    top_user: tuple[Any, int] = (None, 0)
    marker_users: Counter[str] = field(default_factory=Counter)
    values: dict[str, Distinct] = field(default_factory=dict)
    _now: float = field(default_factory=time.time)

    def add_block(self, block: pa.Table) -> None:
        """First pass: a block as ``iter_interactions`` yields it."""
        moments = block["timestamp"].to_numpy()
        first, last = int(moments.min()), int(moments.max())
        self.rows += len(block)
        for name in block.column_names:
            if name.startswith(OWN) and pa.types.is_string(block.schema.field(name).type):
                self.values.setdefault(name, Distinct()).add(block[name])
        self.negatives += int((block["label"].to_numpy() == 0).sum())
        self.first, self.last = min(self.first, first), max(self.last, last)
        if first < YEAR_1990:
            self.early += int((moments < YEAR_1990).sum())
        if last > self._now + _DAY:
            self.future += int((moments > self._now + _DAY).sum())
        if block["user_lat"].null_count < len(block):
            lat, lon = (block[c].drop_null().to_numpy() for c in ("user_lat", "user_lon"))
            self.placed += len(lat)
            self.place += (lat.sum(), lon.sum())
            self.nowhere += int(((lat == lon) & ((lat == 0) | (lat == -1))).sum())

    @classmethod
    def joined(cls, seen: Sequence["Seen"]) -> "Seen":
        """What several saw of different blocks."""
        found = cls(first=min(s.first for s in seen), last=max(s.last for s in seen))
        for one in seen:
            for name in ("rows", "negatives", "early", "future", "placed", "nowhere", "place"):
                setattr(found, name, getattr(found, name) + getattr(one, name))
        for name in {name: None for one in seen for name in one.values}:
            found.values[name] = Distinct.joined(one.values[name] for one in seen if name in one.values)
        return found

    def check_times(self, source: Path) -> None:
        """Raises DataError where no time is later than 1989: such times are no seconds since 1970."""
        if self.last < YEAR_1990:
            unit = looks_like(self.first, self.last)
            raise DataError(
                f"{source}: all {self.rows:,} times lie between {iso(self.first)} and {iso(self.last)} UTC "
                f"({self.first} to {self.last} seconds since 1970), expected some after 1990; "
                + (
                    f"they look like {unit}"
                    if unit
                    else "if they count from another moment, add it: 1,600,000,000, say"
                )
            )


def busiest(user: NDArray[np.int32], ids: pa.Array) -> tuple[tuple[Any, int], dict[str, int]]:
    """Of a bucket: the id with most rows, and how many; and the rows of each id that reads as a missing value."""
    rows = np.bincount(user, minlength=len(ids))
    top = int(rows.argmax())
    markers = {ids[int(at)].as_py(): int(rows[at]) for at in np.flatnonzero(_markers(ids))}
    return (ids[top].as_py(), int(rows[top])), markers


def _markers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Which texts read as a missing value, bool [n]."""
    if not pa.types.is_string(values.type):
        return np.zeros(len(values), bool)
    found: np.ndarray = pc.is_in(pc.utf8_lower(values), value_set=pa.array(MARKERS)).to_numpy(zero_copy_only=False)
    return found


@dataclass(kw_only=True)
class Told:
    """What the summary is made of, beside ``Seen``.

    Attributes:
        rows_in: rows by table or file of the input.
        unused: columns that were not used, by table or file.
        own: what own columns were taken for.
        notes: warnings from elsewhere.
        rejected: ``BadRows.summary``.
        left_out: rows by the reason for which they were left out.
        items: the items table; positives: of each item in the training split.
        users: the users table, if there is one.
        users_known: how many users of the vocabulary it has, of how many; and an id of each table.
        user_tables: user column -> name of its table.
        check_ins: whether the interactions are visits alone.
        lost: visits left out because nothing else is within ``reach_km``.
        splits: by name, as in the manifest.
        user_count: different users.
        item_variance: see ``item_variance``; None where that is undefined.
    """

    rows_in: dict[str, int]
    unused: dict[str, list[str]]
    own: list[str]
    notes: list[str]
    rejected: list[dict[str, str | int]]
    left_out: dict[str, int]
    items: pa.Table
    positives: np.ndarray
    users: pa.Table | None
    users_known: int
    vocabulary_ids: pa.ChunkedArray
    user_tables: dict[str, str]
    check_ins: bool
    lost: int
    reach_km: float
    splits: dict[str, dict[str, Any]]
    user_count: int
    item_variance: ItemVariance | None


def summarize(seen: Seen, told: Told) -> dict[str, Any]:
    """The summary as it is kept in the manifest; ``lines`` prints it."""
    items = told.items
    left_out = dict(told.left_out)
    repeated = seen.repeated if told.check_ins else 0
    left_out["visits repeated in the same second (each counts once)"] = repeated
    if told.lost:
        left_out[f"visits with no other item within {told.reach_km:g} km"] = told.lost
    source = "check-ins" if told.check_ins else "impressions"
    because = "no row has label 0" if told.check_ins else f"{seen.negatives:,} of {seen.rows:,} rows have label 0"
    missing = {c: items[c].null_count / len(items) for c in ("name", "category", "brand", "price", "city")}
    return {
        "rows_in": told.rows_in,
        "set_aside": told.rejected,
        "left_out": left_out,
        "kept": {
            "interactions": seen.rows - repeated - told.lost,
            "items": len(items),
            "users": told.user_count,
        },
        "source": source,
        "because": because,
        "times": [iso(seen.first), iso(seen.last)],
        "splits_start": {name: iso(split["time"][0]) for name, split in told.splits.items()},
        "box": {c: [pc.min(items[c]).as_py(), pc.max(items[c]).as_py()] for c in ("lat", "lon")},
        "items_missing": missing,
        "items_never_chosen": float((told.positives == 0).mean()),
        "item_variance": None if told.item_variance is None else told.item_variance._asdict(),
        "users_known": None if told.users is None else [told.users_known, len(told.vocabulary_ids)],
        "user_tables": told.user_tables,
        "own_columns": told.own,
        "unused_columns": told.unused,
        "warnings": [*told.notes, *_warnings(seen, told)],
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a person, without its warnings."""
    kept, box = summary["kept"], summary["box"]
    aside: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in summary["set_aside"]:
        aside.setdefault((row["column"], row["reason"]), []).append(row)
    unused = [f"{file}: {', '.join(columns)}" for file, columns in summary["unused_columns"].items()]
    renamed = [f"{column} as {table}" for column, table in summary["user_tables"].items() if column != table]
    known, differ = summary["users_known"], summary["item_variance"]
    starts = [f"{name} from {at}" for name, at in summary["splits_start"].items() if name != "train"]
    told = {
        "rows in": ", ".join(f"{name} {n:,}" for name, n in summary["rows_in"].items()),
        "set aside": _first([_reason(*key, rows) for key, rows in aside.items()]),
        "left out": _first([f"{n:,} {why}" for why, n in summary["left_out"].items() if n]),
        "kept": f"{kept['interactions']:,} interactions of {kept['users']:,} users and {kept['items']:,} items",
        "taken for": f"{summary['source']}, because {summary['because']}",
        "times": ", ".join([" to ".join(summary["times"]) + " UTC", *starts]),
        "places": ", ".join(f"{c} {low:.4g} to {high:.4g}" for c, (low, high) in box.items()),
        "items": "; ".join(
            ["without " + ", ".join(f"{c} {_percent(x)}" for c, x in summary["items_missing"].items() if x)]
            * any(summary["items_missing"].values())
            + [f"never chosen in training {_percent(summary['items_never_chosen'])}"]
        ),
        "differ": "" if differ is None else _differ(**differ),
        "users": ", ".join([] if known is None else [f"{known[0]:,} of {known[1]:,} are in the users table", *renamed]),
        "not used": "; ".join(unused),
    }
    found = [f"  {name:<10}{text}" for name, text in told.items() if text]
    own = [f"  feature   {text}" for text in summary["own_columns"]]
    return found[:-1] + own + found[-1:] if told["not used"] else found + own


def _differ(variance: float, error: float, samples: int) -> str:
    told = f"items, beyond what their features say, by a variance of {variance:.2f} ± {error:.2f} (log-odds): "
    if abs(variance - PAYS) < 2 * error:
        return told + f"too near to {PAYS} to say whether AKT-Rec pays"
    if variance > PAYS:
        return told + f"more than {PAYS}, where AKT-Rec gained, and ReST's contrast a little"
    return told + f"less than {PAYS}, where neither AKT-Rec nor ReST's contrast gained"


def _reason(column: str, reason: str, rows: list[dict[str, Any]]) -> str:
    files = rows[0]["file"] if len(rows) == 1 else f"{len(rows):,} files"
    return f"{sum(r['rows'] for r in rows):,} of {files}, '{column}': {reason}"


def _first(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - _SHOWN} more reasons" if len(reasons) > _SHOWN else ""
    return "; ".join(reasons[:_SHOWN]) + more


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({_percent(part / max(whole, 1))})"


# --- what looks wrong, and what to do ---------------------------------------------------------------------------


def _warnings(seen: Seen, told: Told) -> Iterator[str]:
    yield from _of_rows(seen, told)
    yield from _of_users(seen, told)
    yield from _of_places(seen, told)
    yield from _of_items(told)
    for name in ("valid", "test"):
        split = told.splits.get(name)
        if split is not None and split["positives"] in (0, split["rows"]):
            kind = "positives" if split["positives"] else "negatives"
            yield f"the {name} split holds only {kind}: its AUC is undefined; check the labels by time"


def _of_rows(seen: Seen, told: Told) -> Iterator[str]:
    aside = sum(int(r["rows"]) for r in told.rejected)
    if aside >= _MANY * sum(told.rows_in.values()):
        yield f"{_of(aside, sum(told.rows_in.values()), 'rows')} are set aside as bad: look into rejected/"
    if seen.repeated >= _FEW * seen.rows:
        counted = "and count once" if told.check_ins else "and are all kept"
        yield (
            f"{_of(seen.repeated, seen.rows, 'interactions')} are duplicates of another (same user, item, time and "
            f"label) {counted}: see whether a job writes them twice, or whether times are cut to days"
        )
    if seen.both_labels >= _FEW * seen.rows:
        yield (
            f"{_of(seen.both_labels, seen.rows, 'interactions')} say 0 where another row of the same request and item "
            "says 1: write one row a candidate, with label 1 if it was chosen"
        )
    if seen.early:
        yield (
            f"{_of(seen.early, seen.rows, 'times')} lie before 1990, the first at {iso(seen.first)}: if 0 stands for "
            "a missing time there, drop those rows"
        )
    if seen.future:
        yield (
            f"{_of(seen.future, seen.rows, 'times')} lie in the future, the last at {iso(seen.last)}, and fill the "
            "test split: check their unit and time zone, or drop those rows"
        )
    visits = seen.rows - seen.repeated
    if told.lost and told.lost >= _MANY * visits:
        yield (
            f"{_of(told.lost, visits, 'visits')} are left out because no other item is within {told.reach_km:g} km: "
            "raise --reach-km, or check lat and lon"
        )


def _of_users(seen: Seen, told: Told) -> Iterator[str]:
    if told.user_count == 1:
        yield "the interactions are of one user only: user embeddings learn nothing"
    name, rows = seen.top_user
    kept = seen.rows - (seen.repeated if told.check_ins else 0)
    if name not in seen.marker_users and rows >= 0.1 * kept and rows * told.user_count >= 10 * kept:
        yield (
            f"user {name!r} has {_of(rows, kept, 'interactions')}: if that is a test account, or everybody who is not "
            "signed in, drop those rows"
        )
    for name, rows in seen.marker_users.items():
        if rows >= _FEW * kept:
            yield (
                f"user {name!r} has {_of(rows, kept, 'interactions')}, and counts as one person: if it stands for a "
                "missing id, drop those rows"
            )
    if told.users is None:
        return
    known, ids = told.users_known, told.vocabulary_ids
    if known < _MOST * len(ids):
        example = f"; ids there look like {told.users['user_id'][0].as_py()!r}, here like {ids[0].as_py()!r}"
        yield (
            f"the users table knows {_of(known, len(ids), 'users')} of the vocabulary{'' if known else example}: the "
            "others' columns are missing; check that both tables use the same ids"
        )
    for column in told.user_tables:
        yield from _of_markers(f"users' {column}", told.users[OWN + column], "users")


def _of_places(seen: Seen, told: Told) -> Iterator[str]:
    items = told.items
    n = len(items)
    places = pa.table({c: pc.add(items[c], 0.0) for c in ("lat", "lon")})  # -0.0 is 0.0
    counts = places.group_by(["lat", "lon"]).aggregate([([], "count_all")])
    count = counts["count_all"].to_numpy()
    lat, lon = (counts[c].to_numpy() for c in ("lat", "lon"))
    unknown = (lat == lon) & ((lat == 0) | (lat == -1))
    common = (count >= 10) & (count >= _MANY * n)
    for at in sorted(np.flatnonzero(unknown | common), key=lambda i: -count[i])[:_SHOWN]:
        yield (
            f"{_of(int(count[at]), n, 'items')} lie at exactly the same place, ({lat[at]:g}, {lon[at]:g}): if it "
            "stands for an unknown place, find theirs or drop them, since distances to it mean nothing"
        )
    if seen.nowhere:
        yield (
            f"{_of(seen.nowhere, seen.placed, 'places of users')} are (0, 0) or (-1, -1): write null for an unknown "
            "user_lat, user_lon"
        )
    lat, lon = (items[c].to_numpy() for c in ("lat", "lon"))
    empty = int(((lat < -60) | (lat > 72)).sum())  # nearly nobody lives there
    if empty >= _MANY * n:
        yield f"{_of(empty, n, 'items')} lie in Antarctica or the Arctic: lat and lon look swapped"
    elif seen.placed:
        here = seen.place / seen.placed
        there = np.array([np.median(lat), np.median(lon)])
        apart, swapped = np.abs(here - there).sum(), np.abs(here - there[::-1]).sum()
        if apart > 10 and swapped < apart / 4:
            yield (
                f"users are around ({here[0]:.3g}, {here[1]:.3g}), items around ({there[0]:.3g}, {there[1]:.3g}): lat "
                "and lon look swapped in one of the two tables"
            )


def _of_items(told: Told) -> Iterator[str]:
    items = told.items
    for column in ("name", "brand", "province", "city", "district"):
        yield from _of_markers(column, items[column], "items")
    categories = items["category"].combine_chunks()
    lists = categories.chunks if isinstance(categories, pa.ChunkedArray) else [categories]
    first = pa.chunked_array([pc.list_element(c.filter(c.is_valid()), 0) for c in lists], pa.string())
    yield from _of_markers("category", first, "items")
    missing = items["category"].null_count
    if missing >= _MOST * len(items):
        yield f"{_of(missing, len(items), 'items')} have no category: check that column"
    never = int((told.positives == 0).sum())
    if never >= 0.9 * len(items):
        yield (
            f"{_of(never, len(items), 'items')} have no positive in the training split: their embeddings learn little; "
            "leave out items that cannot be chosen, or take a longer time"
        )


def _of_markers(name: str, values: pa.ChunkedArray, what: str) -> Iterable[str]:
    found = values.filter(pa.array(_markers(values) & values.is_valid().to_numpy()))
    for value, count in ((v["values"], v["counts"]) for v in pc.value_counts(found).to_pylist()):
        if count >= _FEW * len(values):
            yield (
                f"{name} is {value!r} in {_of(count, len(values), what)}, which is a value like any other: write null "
                "if it stands for a missing one"
            )
