"""Evaluation: score a split, measure the model, the baselines and the oracle, slice by slice, and write a report."""

import math
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from ..data.batches.loader import SampleLoader
from ..data.manifest import MANIFEST, read_manifest, whole_folder, write_json, write_manifest
from ..data.urls import at_work, was_begun
from ..training.inference import load_ranker, read_config
from ..training.metrics import nan_to_none, reliability, summarize
from ..training.predictions import CLICKS, Outcomes, Predictions, gather, predict, sampling_shift
from ..training.run_files import CONFIG, ENVIRONMENT, read_best, read_metrics, read_object
from ..training.runtime import on_first_rank, runtime
from .baselines import Scorer, baselines, model, oracle
from .breakdown import ItemFacts, Slicing, slice_metrics, slicings, weighted_auc, write_slicings
from .examples import worst_items
from .list_report import list_table
from .measure_lists import measure_lists
from .objectives import measure_amount, measure_first
from .report import COLUMNS, write_report
from .settings import EvaluateConfig

NO_ODDS = (
    "A generative ranker's probability is of one place among all, not of a click on a candidate: log-loss and "
    "calibration of candidates say nothing of it. Its own are under lists."
)


def evaluate(config: EvaluateConfig) -> Path:
    """Score a split and write predictions.parquet, metrics.json, report.html and pictures; returns their folder.

    Under torchrun all ranks call it: each scores its share of the samples, rank 0 measures and writes. Every row
    counts once, whatever the number of ranks; logits of other batches may differ in their last bits, as
    matrix products do.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is False.
        ValueError: the split is empty, or the model's scores are not finite.
    """
    out = config.out or config.run / "evaluation"
    if out.exists() and not config.overwrite and not was_begun(out, MANIFEST):
        raise FileExistsError(f"{out} exists; choose another folder with --out, or pass --overwrite to replace it")
    scratch = at_work(out).with_name(f".{at_work(out).name}.parts")
    with runtime(seed=0) as rt:
        on_first_rank(lambda: _check_run(config.run))
        data = config.data or on_first_rank(lambda: read_config(config.run)).data
        tokens = config.semantic_ids, config.user_semantic_ids
        ranker = load_ranker(config.run, rt, data, config.checkpoint, config.batch_size, *tokens)
        loader = SampleLoader(
            data, config.split, config.batch_size, rank=rt.rank, world_size=rt.world_size, shuffle=False
        )
        generates = ranker.inputs.ranker.generates
        # log-odds among all places are no odds among those of a sample, however these were drawn
        shift = 0.0 if generates else sampling_shift(read_manifest(data, "prepared"), config.split)
        outcomes = ranker.inputs.outcomes
        predictions = gather(predict(ranker.score(), loader, shift, outcomes), scratch)
        lists = measure_lists(ranker, config.split, config.lists, rt) if generates else None
        if predictions is not None:
            write_evaluation(out, predictions, data, ranker.saved, config, lists, outcomes)
        dist.barrier()
    return out


def _check_run(run: Path) -> None:
    """Look at what the report will show before scoring takes its time."""
    read_metrics(run)
    read_best(run)
    read_object(run / ENVIRONMENT)


def write_evaluation(
    out: Path,
    predictions: Predictions,
    data: Path,
    info: dict[str, Any],
    config: EvaluateConfig,
    lists: dict[str, Any] | None = None,
    outcomes: Outcomes = CLICKS,
) -> None:
    """Measure the rows of all ranks and write the evaluation folder; on rank 0.

    Args:
        out: the folder to make.
        predictions: all scored rows.
        data: the prepared folder, for what belongs to items.
        info: manifest of the checkpoint, of which ``step`` is reported.
        config: for the report and the manifest.
        lists: of ``measure_lists``, for a generative ranker.
        outcomes: what the rows know and the ranker predicts.
    """
    if not len(predictions):
        raise ValueError(f"the {config.split} split of {data} has no samples; choose another --split or prepare more")
    items = ItemFacts.load(data)
    metrics: dict[str, Any] = {"split": config.split, "step": info.get("step")} | measure(predictions, items, outcomes)
    if lists is not None:
        metrics["lists"] = lists
        metrics["notes"].append(NO_ODDS)
    with whole_folder(out, config.overwrite) as folder:
        predictions.write(folder / "predictions.parquet")
        write_slicings(slicings(predictions, items), folder / "slices.parquet")
        write_json(folder / "metrics.json", metrics)
        write_report(folder, metrics=metrics, predictions=predictions, items=items, run=config.run)
        made_from = {"prepared": read_manifest(data, "prepared")["content_hash"]}
        settings = read_object(config.run / CONFIG) or {}
        trained = {"settings": settings} | {n: info.get(n) for n in ("data", "semantic_ids", "user_semantic_ids")}
        write_manifest(folder, "evaluation", config, made_from, step=info.get("step"), trained=trained)
    print_summary(metrics)
    if lists is not None:
        Console().print(list_table(lists))
    Console().print(f"report: {out / 'report.html'}")


def measure(predictions: Predictions, items: ItemFacts, outcomes: Outcomes = CLICKS) -> dict[str, Any]:
    """All that ``metrics.json`` says about the rows: JSON-ready, null where undefined, with the reason beside it.

    Returns:
        ``scorers``: name -> metrics (with ``tauc`` and ``cauc``) of the model, the baselines and the oracle;
        ``share_of_oracle``: metric -> (model - chance) / (oracle - chance), chance being 0.5;
        ``slices``: slicing -> ``title`` and, by scorer, a list of slices with their metrics;
        ``reliability``: the model's curve; ``worst_items``, see ``examples.py``; ``notes``: what is missing and why.
        Where there is more than one label, or an amount: ``objective``, the label that all of this is about;
        ``objectives``, the same of the other labels that the ranker predicts, by name; ``first``, and ``amount``, see
        ``objectives.py``.
    """
    scorers = [model(predictions), *baselines(predictions, items)]
    best = oracle(predictions)
    if best is not None:
        scorers.append(best)
    parts = slicings(predictions, items)
    overall = {scorer.name: _overall(scorer, predictions, parts) for scorer in scorers}
    curve = reliability(predictions.label, predictions.predicted())
    several: dict[str, Any] = {}
    if predictions.labels or predictions.amount is not None:
        several["objective"] = outcomes.predicted[0]
        several["objectives"] = {name: measure(predictions.of(name), items) for name in predictions.logits}
        several["first"] = measure_first(predictions, scorers, outcomes)
        if predictions.amount is not None:
            several["amount"] = measure_amount(predictions, scorers, outcomes)
    return {
        "rows": len(predictions),
        "positives": int(predictions.label.sum()),
        "scorers": overall,
        "share_of_oracle": {
            name: _share(overall["model"][name], overall["oracle"][name]) for name in ("auc", "gauc", "tauc", "cauc")
        }
        if best
        else None,
        "slices": {
            part.name: {
                "title": part.title,
                "scorers": {s.name: slice_metrics(part, predictions, s.score, s.probability) for s in scorers},
            }
            for part in parts
        },
        "reliability": {name: column.tolist() for name, column in curve._asdict().items()},
        "worst_items": worst_items(predictions, items),
        "notes": _notes([s.name for s in scorers]),
        **several,
    }


def _overall(scorer: Scorer, p: Predictions, parts: list[Slicing]) -> dict[str, Any]:
    found = summarize(
        label=p.label, score=scorer.score, user=p.user_index, request=p.request, probability=scorer.probability
    ).to_json()
    weighted = {
        name: nan_to_none(weighted_auc(part, p.label, scorer.score))
        for name, of in (("tauc", "period"), ("cauc", "city"))
        for part in parts
        if part.name == of
    }
    return {"title": scorer.title} | found | weighted


def _share(value: float | None, best: float | None) -> float | None:
    """How far from chance to the oracle; None where that way is nothing."""
    if value is None or best is None or math.isclose(best, 0.5):
        return None
    return (value - 0.5) / (best - 0.5)


def _notes(names: list[str]) -> list[str]:
    notes = []
    if "nearest" not in names:
        notes.append("No request has a place: the nearest-first baseline and the distance slices say nothing.")
    if "oracle" not in names:
        notes.append("The source does not know the true probabilities: there is no oracle.")
    return notes


def _table(title: str, scorers: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, scorer in scorers.items():
        cells = ["" if scorer.get(c) is None else f"{scorer[c]:.4f}" for c in COLUMNS]
        table.add_row(name, *cells, style="bold" if name == "model" else None)
    return table


def print_summary(metrics: dict[str, Any]) -> None:
    """A table on the terminal: the model beside the baselines and the oracle."""
    scorers, console = metrics["scorers"], Console()
    of = f" of {metrics['objective']}" if "objective" in metrics else ""
    title = f"{metrics['split']}: {metrics['rows']:,} rows, {metrics['positives']:,} positives{of}"
    console.print(_table(title, scorers))
    for label, found in metrics.get("objectives", {}).items():
        console.print(_table(f"{found['positives']:,} positives of {label}", found["scorers"]))
    for name, reason in scorers["model"]["undefined"].items():
        console.print(f"{name} is undefined: {reason}")
    share = metrics["share_of_oracle"]
    if share and share["auc"] is not None:
        console.print(f"The model's AUC is {share['auc']:.1%} of the way from 0.5 to the oracle's.")
    for note in metrics["notes"]:
        console.print(note)
