"""What steps wrote, as objects: text in a terminal, tables and pictures in a notebook.

Each holds its folder alone and reads what it shows from there, so it can be made of a folder of an earlier day:
``placerank.Evaluated(Path("runs/mine/evaluation"))``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pyarrow as pa

    from ..rankers.adapter.advisor import Advisor
    from ..rankers.rank import Ranker


def _text(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _days(time: Sequence[int]) -> str:
    first, last = (datetime.fromtimestamp(t, UTC).date() for t in time)
    return f"{first} to {last}"


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in text; the first column is at the left, all others at the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda cells: "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])  # noqa: E731
    return "\n".join(line(cells).rstrip() for cells in (head, *rows))


@dataclass(frozen=True, repr=False)
class Result:
    """A folder that a step wrote.

    Attributes:
        folder: where it is.
    """

    folder: Path
    _kind: ClassVar[str]

    def __post_init__(self) -> None:
        from ..data.urls import place

        object.__setattr__(self, "folder", place(Path(self.folder)))  # text will do

    @property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` says: settings, versions, what it was made from, hashes of the files.

        Raises:
            FileNotFoundError, ValueError: not such a folder, not a whole one, or a damaged one.
        """
        from ..data.manifest import read_manifest

        return read_manifest(self.folder, self._kind)

    @property
    def summary(self) -> dict[str, Any]:
        """Names and values, the most telling first."""
        raise NotImplementedError

    def _facts(self) -> dict[str, str]:
        return {name: _text(value) for name, value in self.summary.items() if value not in (None, "")}

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Tables to show: title, head, rows."""
        return []

    def _pictures(self) -> list[str]:
        """HTML of pictures."""
        return []

    def __repr__(self) -> str:
        facts = self._facts()
        width = max(map(len, facts), default=0)
        lines = [f"{type(self).__name__} {self.folder}", *(f"  {n:<{width}}  {value}" for n, value in facts.items())]
        for title, head, rows in self._tables():
            lines += ["", *([title] if title else []), _plain_table(head, rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from ..reports import notebook, page

        tables = [
            (f"<h4>{page.escape(title)}</h4>" if title else "") + page.table(head, rows)
            for title, head, rows in self._tables()
        ]
        return notebook.box(type(self).__name__, str(self.folder), self._facts(), [*tables, *self._pictures()])

    def _json(self, name: str) -> dict[str, Any]:
        if not (self.folder / name).is_file():
            _ = self.manifest  # which says what is wrong with the folder
        found: dict[str, Any] = json.loads((self.folder / name).read_text())
        return found


class Reported(Result):
    """A folder that has a page."""

    @property
    def report(self) -> Path:
        """The page with pictures; it opens without a network."""
        return self.folder / "report.html"


class Simulated(Result):
    """Raw tables of a simulated city."""

    _kind = "raw"

    @property
    def summary(self) -> dict[str, Any]:
        found = self.manifest
        return {**found["rows"], "share clicked": found["click_rate"], "days": _days(found["time"])}


class Prepared(Result):
    """Training samples."""

    _kind = "prepared"

    @property
    def summary(self) -> dict[str, Any]:
        """Of what was kept, and what looks wrong."""
        found = self.manifest
        told = found.get("summary", {})
        return {**told.get("kept", {}), "source": found["source"], "warnings": "; ".join(told.get("warnings", ()))}

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        head = ["split", "requests", "samples", "positives", "days"]
        return [("", head, [self._split(n, s) for n, s in self.manifest["splits"].items()])]

    def _split(self, name: str, split: dict[str, Any]) -> list[str]:
        days = _days(split["time"]) if split.get("time") else "–"
        return [name, *(_text(split.get(key)) for key in ("requests", "rows", "positives")), days]


class Aligned(Reported):
    """Embeddings of items' texts."""

    _kind = "align"

    @property
    def summary(self) -> dict[str, Any]:
        found = self.manifest
        encoder = found["encoder"]
        return {"items": found["items"], "encoder": encoder.get("model"), "rung": found["config"]["rung"]}


class Tokenized(Reported):
    """Semantic IDs of items, or of users."""

    @property
    def _kind(self) -> str:  # type: ignore[override]
        return "user_tokens" if self._of == "users" else "tokens"

    @property
    def _of(self) -> str:
        return str(self.measures.get("of", "items"))

    @property
    def measures(self) -> dict[str, Any]:
        """Reconstruction, usage, collisions and the rest of ``measures.json``."""
        return self._json("measures.json")

    @property
    def summary(self) -> dict[str, Any]:
        found, measures = self.manifest, self.measures
        return {
            self._of: found[self._of],
            "levels": found["levels"],
            "codes a level": found["codes"],
            "variance explained": measures["reconstruction"]["explained"][-1],
            f"{self._of} that share all codes": measures["collisions"]["before"]["collision_rate"],
        }


class Trained(Result):
    """A run: settings, checkpoints, and what training logged."""

    @property
    def manifest(self) -> dict[str, Any]:
        """The settings, config.json; a run has no manifest, its checkpoints have."""
        return self._json("config.json")

    @property
    def log(self) -> list[dict[str, Any]]:
        """All lines that training logged, oldest first: ``step``, ``epoch``, ``split`` and numbers, None if undefined.

        Raises:
            ValueError: a line is damaged.
        """
        from ..training.run_files import read_metrics

        return read_metrics(self.folder)

    @property
    def validation(self) -> list[dict[str, Any]]:
        """The curve: those lines of ``log`` that are of validations."""
        return [line for line in self.log if line["split"] == "valid"]

    @property
    def best(self) -> dict[str, Any]:
        """The validation whose checkpoint is called best; empty before the first one."""
        from ..training.run_files import read_best

        step = read_best(self.folder)
        return next((line for line in self.validation if line["step"] == step), {})

    @property
    def summary(self) -> dict[str, Any]:
        log = self.log
        best = {f"best {n}": v for n, v in self.best.items() if n not in ("split", "epoch")}
        return {"steps": log[-1]["step"] if log else 0, "validations": len(self.validation), **best}

    def _pictures(self) -> list[str]:
        from ..evaluation.pictures import learning_curve
        from ..reports import notebook

        best = self.best.get("step")
        return [notebook.svg(lambda: learning_curve(self.log, best))] if self.log else []


class Adapted(Result):
    """An advisor: a small language model that lists places and says why."""

    _kind = "advisor"

    def load(self) -> "Advisor":
        """The advisor, to be asked: ``recommend``, ``explain``, ``answer``."""
        from ..rankers.adapter.advisor import Advisor

        return Advisor.load(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """Of the last validation of teacher and student."""
        found: dict[str, Any] = {"steps": self.manifest["step"]}
        for name in ("teacher", "student"):
            file = self.folder.parent / f"{name}.jsonl"
            if file.is_file():
                last = json.loads(file.read_text().splitlines()[-1])
                found |= {f"{name}'s {n}": last[n] for n in ("recall@10", "ndcg@10") if n in last}
        return found


class Evaluated(Reported):
    """Metrics beside baselines, slice by slice, and a report."""

    _kind = "evaluation"

    @property
    def metrics(self) -> dict[str, Any]:
        """All of ``metrics.json``; ``evaluation/evaluate.py`` says what that is, in ``measure``."""
        return self._json("metrics.json")

    @property
    def summary(self) -> dict[str, Any]:
        found = self.metrics
        share = found["share_of_oracle"]
        return {
            "split": found["split"],
            "checkpoint of step": found["step"],
            "rows": found["rows"],
            "positives": found["positives"],
            **({"from chance to the best possible AUC": f"{share['auc']:.1%}"} if share and share["auc"] else {}),
            "notes": " ".join(found["notes"]),
        }

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        from ..evaluation.report import COLUMNS

        found = self.metrics
        of = {found.get("objective", ""): found["scorers"]}
        of |= {name: one["scorers"] for name, one in found.get("objectives", {}).items()}
        head = ["", *COLUMNS.values()]
        return [
            (
                label,
                head,
                [[s["title"], *("" if s.get(c) is None else _text(s[c]) for c in COLUMNS)] for s in rows.values()],
            )
            for label, rows in of.items()
        ]

    def _pictures(self) -> list[str]:
        from ..evaluation import pictures
        from ..reports import notebook

        found = self.metrics
        parts = [part for part in found["slices"].values() if len(part["scorers"]["model"]) > 1]
        known = found["scorers"]["model"]["auc"] is not None
        shown = [notebook.svg(lambda: pictures.ladder(found["scorers"]))] if known else []
        return shown + ([notebook.svg(lambda: pictures.slices(parts, ["model"]))] if parts else [])


class Generated(Reported):
    """Lists of places for requests, from a generative ranker."""

    _kind = "lists"

    @property
    def table(self) -> "pa.Table":
        """A row a place of a list; columns as ``evaluation/generate.py`` says."""
        import pyarrow.parquet as pq

        from ..data.urls import fetched

        return pq.read_table(fetched(self.folder / "lists.parquet"))

    @property
    def summary(self) -> dict[str, Any]:
        table = self.table
        return {"lists": len(table["request"].unique()), "places": len(table)}

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        rows = self.table.slice(0, 1_000).to_pylist()
        first = [row for row in rows if row["request"] == rows[0]["request"]]
        names = ["place", "item_id", "probability", "km"]
        return [("the first list", names, [[_text(row[name]) for name in names] for row in first])]


class Exported(Result):
    """Tables and the dense part of a ranker, for serving; or what changed in them since an earlier export."""

    @property
    def manifest(self) -> dict[str, Any]:
        from ..data.manifest import MANIFEST, read_manifest

        delta = (self.folder / MANIFEST).is_file() and self._json(MANIFEST).get("kind") == "delta"
        return read_manifest(self.folder, "delta" if delta else "export")

    def load(self) -> "Ranker":
        """The ranker, to ask for lists of places; see ``placerank.load``."""
        from ..rankers.rank import load

        return load(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        found = self.manifest
        size = f"{sum(file['bytes'] for file in found['files'].values()) / 1e6:.1f} MB"
        if found["kind"] == "delta":
            return {"what changed since": found["base"][:12], "size": size}
        return {"checkpoint of step": found.get("step"), "tables": len(found["tables"]), "size": size}

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        found = self.manifest
        if found["kind"] == "delta":
            changed = [
                [name, _text(r["rows"]), _text(r["changed"]), _text(r["gone"])] for name, r in found["rows"].items()
            ]
            return [("", ["table", "rows", "changed", "gone"], changed)]
        tables = [[n, _text(t["rows"]), _text(t["dim"]), t["format"], t["dtype"]] for n, t in found["tables"].items()]
        return [("", ["table", "rows", "columns", "format", "numbers"], tables)]
