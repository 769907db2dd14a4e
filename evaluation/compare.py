"""The ``compare`` step: evaluated runs side by side, seed by seed and request by request.

Two things may make a difference anew: other seeds and other requests. Of each there is an interval: Student's over the
differences of seeds that both groups have, and the percentiles of the mean difference where requests are drawn anew,
the same for all runs. A difference is one where every interval that there is lies on one side of 0.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.manifest import whole_folder, write_json, write_manifest
from ..reports.progress import tracked
from ..training.metrics import nan_to_none
from ..training.predictions import Predictions
from .breakdown import Slicing
from .compare_measures import METRICS, Measured, measure_draws
from .compare_page import print_comparison, write_comparison
from .compare_runs import Evaluated, Group, check_same_rows, group, read_evaluated
from .paired import mean_and_spread, paired_t
from .settings import CompareConfig

_LISTS = {"hit@10": "Hit@10 of lists", "ndcg@10": "NDCG@10 of lists"}
_SMALLER_IS_BETTER = ("log_loss", "nll")


def compare(config: CompareConfig) -> Path | None:
    """Compare runs and print a table, or JSON; returns the folder that was written, if one was asked for.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is False.
        FileNotFoundError: a run that was not evaluated.
        ValueError: evaluations of different test data, that are damaged, or runs that can't be grouped.
    """
    groups = group([read_evaluated(path) for path in config.runs], config.ignore)
    found = measure_groups(groups, config.resamples)
    if config.json:
        print(json.dumps(found, indent=2))
        return None
    print_comparison(found)
    if config.out is None:
        return None
    with whole_folder(config.out, config.overwrite) as folder:
        write_json(folder / "comparison.json", found)
        write_comparison(folder, found)
        made_from = {str(run.path): run.manifest["content_hash"] for g in groups for run in g.runs}
        write_manifest(folder, "comparison", config, made_from)
    return config.out


def measure_groups(groups: Sequence[Group], resamples: int) -> dict[str, Any]:
    """All that comparison.json says, JSON-ready: null where undefined.

    Returns:
        ``split``, ``rows``, ``positives``, ``requests``, ``resamples``; ``groups``: each with ``name``, ``title``,
        ``settings``, ``runs`` (path, seed, step) and ``metrics`` (mean and spread over its runs); ``differences`` of
        each group but the first to the first: ``group``, ``against``, ``seeds`` that both have, ``metrics`` and
        ``slices``, each with ``mean``, ``requests`` and ``seeds`` (low and high, or null), ``by_seed`` and ``sign``
        (1: larger, -1: smaller, 0: not known).
    """
    first = groups[0].runs[0]
    rows, slicings = first.predictions(), first.slicings()
    runs = [run for g in groups for run in g.runs]
    generates = any("lists" in run.metrics for run in runs)
    labels = _shared_labels(runs)
    measured: dict[Path, dict[str, Measured]] = {}
    for run in tracked(runs, "compare", unit="runs"):
        p = run.predictions()
        check_same_rows(first, run, rows, p)
        measured[run.path] = {"": measure_draws(p, slicings, resamples, odds=not generates)}
        for label in labels:
            measured[run.path][label] = measure_draws(p.of(label), [], resamples, odds=not generates)
    base = groups[0]
    return {
        "split": first.metrics["split"],
        "rows": len(rows),
        "positives": int(rows.label.sum()),
        "requests": len(np.unique(rows.request)),
        "resamples": resamples,
        "groups": [_described(g, measured) for g in groups],
        "differences": [_difference(base, g, measured, slicings, rows) for g in groups[1:]],
    }


def _shared_labels(runs: Sequence[Evaluated]) -> list[str]:
    """Further labels that all runs predict."""
    each = [list(run.metrics.get("objectives", {})) for run in runs]
    return [label for label in each[0] if all(label in other for other in each)]


def _values(run: Evaluated, measured: dict[Path, dict[str, Measured]]) -> dict[str, NDArray[np.float64]]:
    """Name of a metric -> [1 + draws], [1] where requests can't be drawn anew."""
    found: dict[str, NDArray[np.float64]] = {}
    for label, of_label in measured[run.path].items():
        found |= {f"{name}/{label}" if label else name: x for name, x in of_label.overall.items()}
    lists = run.metrics.get("lists")
    if lists is not None:
        whole = lists["ways"].get("all", {}).get("model", {}).get("all") or {}
        found |= {f"lists/{name}": np.array([whole[name]]) for name in _LISTS if whole.get(name) is not None}
        if lists.get("nll"):
            found["nll"] = np.array([lists["nll"]["model"]])
    return found


def title_of(name: str) -> str:
    """A metric's heading."""
    if name.startswith("lists/"):
        return _LISTS[name.removeprefix("lists/")]
    metric, _, label = name.partition("/")
    return METRICS.get(metric, {"nll": "nats a visit"}.get(metric, metric)) + (f" of {label}" if label else "")


def _described(g: Group, measured: dict[Path, dict[str, Measured]]) -> dict[str, Any]:
    values = [_values(run, measured) for run in g.runs]
    metrics = {}
    for name in values[0]:
        mean, spread = mean_and_spread([float(v[name][0]) for v in values if name in v])
        metrics[name] = {"title": title_of(name), "mean": nan_to_none(mean), "spread": nan_to_none(spread)}
    return {
        "name": g.name,
        "title": g.title,
        "settings": g.settings,
        "runs": [{"path": str(run.path), "seed": run.seed, "step": run.metrics.get("step")} for run in g.runs],
        "metrics": metrics,
    }


def _difference(
    base: Group, other: Group, measured: dict[Path, dict[str, Measured]], slicings: list[Slicing], rows: Predictions
) -> dict[str, Any]:
    """Of the seeds that both have; where they share none, of the means of all, which have no interval over seeds."""
    seeds = sorted({run.seed for run in base.runs} & {run.seed for run in other.runs})
    pairs = [([base.of_seed(s)], [other.of_seed(s)]) for s in seeds] or [(base.runs, other.runs)]

    runs = [*base.runs, *other.runs]
    values = {run.path: _values(run, measured) for run in runs}
    metrics = {}
    for name in values[base.runs[0].path]:
        if all(name in of_run for of_run in values.values()):
            each = _each(pairs, {path: of_run[name] for path, of_run in values.items()})
            better = -1 if name.partition("/")[0] in _SMALLER_IS_BETTER else 1
            metrics[name] = {"title": title_of(name), "better": better, **_interval(each, bool(seeds))}
    slices = {}
    for part in slicings:
        stacked = _each(pairs, {run.path: measured[run.path][""].slices[part.name] for run in runs})
        size = np.bincount(part.code[part.code >= 0], minlength=len(part.labels))
        shown = [
            {"label": label, "rows": int(size[i]), **_interval(stacked[:, :, i], bool(seeds))}
            for i, label in enumerate(part.labels)
            if not np.isnan(stacked[:, 0, i]).any()
        ]
        if len(shown) > 1:
            slices[part.name] = {"title": part.title, "slices": shown}
    return {"group": other.name, "against": base.name, "seeds": seeds, "metrics": metrics, "slices": slices}


def _each(pairs: list[tuple[list[Evaluated], list[Evaluated]]], of: dict[Path, NDArray[np.float64]]) -> Any:
    """[pairs, ...] the mean of each pair's second runs minus that of its first."""
    means = [[np.mean([of[run.path] for run in runs], axis=0) for runs in pair] for pair in pairs]
    return np.stack([b - a for a, b in means])


def _interval(each: NDArray[np.float64], paired: bool) -> dict[str, Any]:
    """A difference [pairs, 1 + draws] as JSON: over draws of requests and over seeds."""
    by_seed, draws = each[:, 0], each.mean(axis=0)[1:]
    draws = draws[~np.isnan(draws)]
    over_requests = [float(x) for x in np.quantile(draws, [0.025, 0.975])] if len(draws) else None
    t = paired_t(by_seed.tolist())
    over_seeds = None if not paired or math.isnan(t.low) else [t.low, t.high]
    known = [x for x in (over_requests, over_seeds) if x is not None]
    sign = 1 if known and min(low for low, _ in known) > 0 else -1 if known and max(h for _, h in known) < 0 else 0
    return {
        "mean": nan_to_none(t.mean),
        "requests": over_requests,
        "seeds": over_seeds,
        "by_seed": [nan_to_none(float(x)) for x in by_seed] if paired else [],
        "sign": sign,
    }
