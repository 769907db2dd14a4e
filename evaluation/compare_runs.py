"""Evaluated runs: read, seen to be of the same test data, and grouped by the settings that differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..data import LABEL
from ..data.manifest import MANIFEST, read_manifest, verify_files
from ..data.plain import flat
from ..data.urls import fetched
from ..training.predictions import Predictions
from .breakdown import Slicing, read_slicings

# Of a run, not of what it is a run of.
_OF_NO_MATTER = (
    "run",
    "resume",
    "overwrite",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "pipelined",
    "track",
)
_SEED = "seed"
_SAME = ("request", "user_index", "item_row", "label", "time")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What ``placerank evaluate`` wrote of a run.

    Attributes:
        path: as it was named.
        seed: of the run.
        settings: by dotted names, without the seed and those that are of no matter.
        folder: of the evaluation.
        metrics: its metrics.json.
        manifest: its manifest.
    """

    path: Path
    seed: int
    settings: dict[str, Any]
    folder: Path
    metrics: dict[str, Any]
    manifest: dict[str, Any]

    def predictions(self) -> Predictions:
        """Its scored rows."""
        return Predictions.read(self.folder / "predictions.parquet")

    def slicings(self) -> list[Slicing]:
        """The slices of its rows."""
        return read_slicings(self.folder / "slices.parquet")


def read_evaluated(path: Path) -> Evaluated:
    """Read a run's evaluation.

    Args:
        path: the run folder, with the evaluation in it, or the evaluation folder.

    Raises:
        FileNotFoundError: neither.
        ValueError: it is damaged, or of an older placerank.
    """
    folder = path if (path / MANIFEST).is_file() else path / "evaluation"
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{path} has no evaluation: expected a run with {folder}, or an evaluation folder; "
            f"run placerank evaluate --run {path}"
        )
    manifest, folder = read_manifest(folder, "evaluation"), fetched(folder)
    needed = ("predictions.parquet", "slices.parquet", "metrics.json")
    verify_files(folder, {name: manifest["files"][name] for name in needed}, "evaluate again with --overwrite")
    trained = manifest["trained"]
    settings = dict(flat(trained["settings"]))
    tokens = (f"{of}semantic_ids" for of in ("", "user_"))
    for name, known in (("data", "data"), *((f"features.{of}", of) for of in tokens)):
        if trained.get(known):  # what was read, wherever it lay
            settings[name] = str(trained[known])[:12]
    settings["evaluate.checkpoint"] = manifest["config"].get("checkpoint")
    return Evaluated(
        path=path,
        seed=int(settings.pop(_SEED, 0)),
        settings={name: value for name, value in settings.items() if name not in _OF_NO_MATTER},
        folder=folder,
        metrics=json.loads((folder / "metrics.json").read_bytes()),
        manifest=manifest,
    )


def check_same_rows(first: Evaluated, other: Evaluated, a: Predictions, b: Predictions) -> None:
    """Raises ValueError, in one line, where two evaluations are not of one objective, and of the same candidates of the
    same requests."""
    about = [run.metrics.get("objective", LABEL) for run in (first, other)]
    if about[0] != about[1]:
        raise ValueError(
            f"{first.folder} is about {about[0]} and {other.folder} about {about[1]}, the first of their "
            "ranker.objectives.labels, by which runs are compared; name runs with the same first one"
        )
    told = [
        f"{run.folder} ({run.metrics['split']} split, {len(p):,} rows, data "
        f"{run.manifest['made_from'].get('prepared', 'unknown')[:12]})"
        for run, p in ((first, a), (other, b))
    ]
    same = len(a) == len(b) and all(np.array_equal(a.columns()[name], b.columns()[name]) for name in _SAME)
    if not same or first.metrics["split"] != other.metrics["split"]:
        raise ValueError(
            f"{told[0]} and {told[1]} are of different test data, so no request can be paired; evaluate both on the "
            "same --data and --split"
        )


@dataclass(frozen=True)
class Group:
    """Runs of the same settings, but for the seed.

    Attributes:
        name: a letter.
        settings: those in which groups differ.
        runs: in the order of their seeds.
    """

    name: str
    settings: dict[str, Any]
    runs: list[Evaluated]

    @property
    def title(self) -> str:
        """For people: "ranker.tower=din, epochs=2"; without differing settings the run's folder."""
        listed = ", ".join(f"{name}={'–' if value is None else value}" for name, value in self.settings.items())
        return listed or str(self.runs[0].path)

    def of_seed(self, seed: int) -> Evaluated:
        return next(run for run in self.runs if run.seed == seed)


def group(runs: Sequence[Evaluated], ignore: Sequence[str] = ()) -> list[Group]:
    """Runs by the settings that differ among them, in the order of their first runs.

    Where all have the same settings each run is a group of its own.

    Args:
        ignore: settings to pass over.

    Raises:
        ValueError: two runs of a group have the same seed; or an ignored setting is none.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    if unknown := [name for name in ignore if not any(n == name or n.startswith(f"{name}.") for n in names)]:
        raise ValueError(f"ignore={unknown[0]!r} is no setting of these runs; they are named as in config.json, dotted")
    ignored = [n for n in names if any(n == name or n.startswith(f"{name}.") for name in ignore)]
    differ = [
        name for name in names if name not in ignored and len({json.dumps(run.settings.get(name)) for run in runs}) > 1
    ]
    if not differ:
        return [Group(_letter(i), {}, [run]) for i, run in enumerate(runs)]
    found: dict[str, list[Evaluated]] = {}
    for run in runs:
        found.setdefault(json.dumps([run.settings.get(name) for name in differ]), []).append(run)
    groups = []
    for i, members in enumerate(found.values()):
        members = sorted(members, key=lambda run: run.seed)
        for a, b in pairwise(members):
            if a.seed == b.seed:
                raise ValueError(
                    f"{a.path} and {b.path} have the same settings and the same seed {a.seed}; name one of them, or "
                    "these two alone"
                )
        groups.append(Group(_letter(i), {name: members[0].settings.get(name) for name in differ}, members))
    return groups


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else f"G{i + 1}"
