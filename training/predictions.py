"""Scored samples as columns: what every metric, slice and picture is computed from.

``predict`` scores what this rank's loader yields; ``gather`` brings the rows of all ranks to rank 0 through
Parquet parts in a folder that all ranks see, in an order that does not depend on how many ranks there were.
Metrics are then computed once, on all rows, by the same code whatever the number of ranks: exact, also for
AUC, which does not add up over ranks. 100 million rows are about 6 GB on rank 0.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data import LABEL
from ..data.batches.batch import SampleBatch
from .metrics import ALL_METRICS, Summary, amount_auc, amount_ratio, summarize
from .runtime import on_first_rank

Score = Callable[[SampleBatch], Tensor]
"""SampleBatch -> logits [B], or [B, K] of several objectives; any float dtype, any device."""


@dataclass(frozen=True)
class Outcomes:
    """What samples know of candidates, and which of it a ranker predicts.

    Attributes:
        objectives: what the columns of the ranker's scores are, in their order.
        labels: of the samples, columns of 0 and 1.
        amount: of the samples, the column of an amount.
    """

    objectives: tuple[str, ...] = (LABEL,)
    labels: tuple[str, ...] = (LABEL,)
    amount: str | None = None

    @property
    def predicted(self) -> tuple[str, ...]:
        """The labels that the ranker predicts; the first is what predictions have as their label and logit."""
        return tuple(name for name in self.objectives if name != self.amount)

    def of(self, batch: SampleBatch) -> dict[str, Tensor]:
        """Columns of a batch by name, float32 [B]."""
        names = self.labels if self.amount is None else (*self.labels, self.amount)
        return {name: batch.label if name == LABEL else batch.own[name] for name in names}


CLICKS = Outcomes()
"""Samples of one label, and a ranker of it."""
_OTHER_LABEL, _OTHER_LOGIT = "label/", "logit/"

_DTYPES: dict[str, Any] = {
    "request": np.int64,
    "user_index": np.int64,
    "user_row": np.int32,
    "item_row": np.int32,
    "label": np.float32,
    "logit": np.float32,
    "time": np.int64,
    "visits": np.int32,
    "lat": np.float32,
    "lon": np.float32,
    "probability": np.float32,
    "amount": np.float32,
    "log_amount": np.float32,
}
"""Of columns; all others are float32."""
_SOME = ("probability", "amount", "log_amount")
"""Columns that not all predictions have."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Columns [N], one row per scored candidate.

    Attributes:
        request: candidates of one request share it.
        user_index: dense index over all users, also those out of vocabulary (row 0).
        user_row, item_row: rows of the vocabulary; 0 = out of vocabulary.
        label: 0 or 1.
        logit: the model's output before the sigmoid. Metrics that need order use it as it is: a float32
            sigmoid would tie everything above 17.
        time: unix seconds, UTC.
        visits: the user's earlier positives on this item.
        lat, lon: place of the request in degrees, NaN = unknown.
        probability: the true probability of a positive, where the source (a simulation) knows it.
        amount: of the candidate, where samples have one.
        log_amount: the logarithm of the expected amount, where the ranker predicts it.
        labels: the other labels that samples have, by name.
        logits: of those of them that the ranker predicts.
    """

    request: NDArray[np.int64]
    user_index: NDArray[np.int64]
    user_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    label: NDArray[np.float32]
    logit: NDArray[np.float32]
    time: NDArray[np.int64]
    visits: NDArray[np.int32]
    lat: NDArray[np.float32]
    lon: NDArray[np.float32]
    probability: NDArray[np.float32] | None = None
    amount: NDArray[np.float32] | None = None
    log_amount: NDArray[np.float32] | None = None
    labels: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.request)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}; expected one row per candidate in each")

    def columns(self) -> dict[str, NDArray[Any]]:
        """Name -> column, those that are there; those of other labels are called label/NAME and logit/NAME."""
        found = {name: getattr(self, name) for name in _DTYPES}
        found |= {_OTHER_LABEL + name: x for name, x in self.labels.items()}
        found |= {_OTHER_LOGIT + name: x for name, x in self.logits.items()}
        return {name: column for name, column in found.items() if column is not None}

    @classmethod
    def of_columns(cls, columns: dict[str, NDArray[Any]]) -> "Predictions":
        """From ``columns``."""
        own, others = {n: x for n, x in columns.items() if "/" not in n}, [n for n in columns if "/" in n]
        labels, logits = (
            {n.removeprefix(prefix): columns[n] for n in others if n.startswith(prefix)}
            for prefix in (_OTHER_LABEL, _OTHER_LOGIT)
        )
        return cls(**own, labels=labels, logits=logits)

    def of(self, label: str) -> "Predictions":
        """The same rows with one of the other predicted labels as their only one; nobody knows its true probability."""
        alone: dict[str, Any] = {"probability": None, "amount": None, "log_amount": None, "labels": {}, "logits": {}}
        return dataclasses.replace(self, label=self.labels[label], logit=self.logits[label], **alone)

    def predicted(self) -> NDArray[np.float64]:
        """[N] float64, sigmoid of the logit: the predicted probability of a positive."""
        p: NDArray[np.float64] = torch.from_numpy(self.logit.astype(np.float64)).sigmoid().numpy()
        return p

    def take(self, rows: NDArray[Any]) -> "Predictions":
        """The rows of an index or a mask."""
        return Predictions.of_columns({name: column[rows] for name, column in self.columns().items()})

    def sort(self) -> "Predictions":
        """Rows by request, then item, label and score: the same for every way of dealing rows to ranks."""
        return self.take(np.lexsort((self.logit, self.label, self.item_row, self.request)))

    def write(self, path: Path) -> None:
        """One zstd Parquet file, a column each."""
        pq.write_table(pa.table(self.columns()), path, compression="zstd")

    @classmethod
    def read(cls, *paths: Path) -> "Predictions":
        """The rows of one or more files that ``write`` made."""
        table = pa.concat_tables([pq.read_table(path) for path in paths])
        return cls.of_columns({name: table[name].to_numpy() for name in table.column_names})

    def summary(self, metrics: Sequence[str] = ALL_METRICS) -> Summary:
        """Metrics of the model on these rows."""
        return summarize(
            label=self.label,
            score=self.logit,
            user=self.user_index,
            request=self.request,
            probability=self.predicted(),
            metrics=metrics,
        )


def sampling_shift(manifest: dict[str, Any], split: str) -> float:
    """What drawing more negatives for a split than for training adds to every logit.

    Where the source has no impressions, ``prepare`` draws the negatives, by default 4 a positive for training and 49
    for evaluation. A model trained at the one rate is right at the other after a shift by the log of the ratio (He et
    al., Practical Lessons from Predicting Clicks on Ads at Facebook, 2014, section 6.3). Impressions need none.

    Args:
        manifest: of the prepared folder.
        split: what is scored.
    """
    if manifest["source"] != "check-ins":
        return 0.0
    trained, scored = (
        (s["rows"] - s["positives"]) / s["positives"] for s in (manifest["splits"]["train"], manifest["splits"][split])
    )
    return math.log(trained / scored)


def shifted(outputs: Tensor, outcomes: Outcomes, shift: float) -> Tensor:
    """Scores [B, K] for other negatives than those of training, see ``sampling_shift``.

    Where the click is an objective the others follow it: orders are among clicks, so that their probability, and what
    is expected of an amount, change as that of the click does. Else each is shifted as if it were the click, which is
    near where it is rare.
    """
    if len(outcomes.objectives) == 1 or LABEL not in outcomes.objectives:
        return outputs + shift
    click = outputs[:, outcomes.objectives.index(LABEL)].double()
    ratio = F.logsigmoid(click + shift) - F.logsigmoid(click)
    found = []
    for name, z in zip(outcomes.objectives, outputs.double().unbind(1), strict=True):
        if name == LABEL:
            z = z + shift
        elif name == outcomes.amount:
            z = z + ratio
        else:
            log_p = (F.logsigmoid(z) + ratio).clamp(max=-1e-9)
            z = log_p - torch.log(-torch.expm1(log_p))
        found.append(z)
    return torch.stack(found, dim=1).float()


def predict(
    score: Score, loader: Iterable[SampleBatch], shift: float = 0.0, outcomes: Outcomes = CLICKS
) -> Predictions:
    """Score every row that this rank's loader yields; rows at or after ``batch.valid`` are padding and dropped.

    Args:
        score: batch -> logits [B], or [B, K]. It is called on the whole batch, padding included, so that ranks with
            collectives inside stay in step.
        loader: this rank's batches.
        shift: of the negatives, see ``sampling_shift``.
        outcomes: what samples know and ``score`` predicts.

    Raises:
        ValueError: a logit is not finite, or ``score`` returned another shape.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    objectives, first = outcomes.objectives, outcomes.predicted[0]
    with torch.no_grad():
        for batch in loader:
            logits = score(batch).detach().float().cpu()
            expected = (len(batch), len(objectives)) if len(objectives) > 1 else (len(batch),)
            if logits.shape != expected:
                raise ValueError(
                    f"the scorer returned shape {tuple(logits.shape)} for {len(batch)} rows, expected one logit a row "
                    f"and objective: {expected}"
                )
            logits = shifted(logits.reshape(len(batch), -1), outcomes, shift)
            found, known = dict(zip(objectives, logits.unbind(1), strict=True)), outcomes.of(batch)
            of_request = batch.request
            columns = {
                "request": batch.request_id[of_request],
                "user_index": batch.user_index[of_request],
                "user_row": batch.user[of_request],
                "item_row": batch.item,
                "label": known.pop(first),
                "logit": found.pop(first),
                "time": batch.time[of_request],
                "visits": batch.visits,
                "lat": batch.lat[of_request],
                "lon": batch.lon[of_request],
                "probability": batch.probability if first == LABEL else None,
                "amount": known.pop(outcomes.amount or "", None),
                "log_amount": found.pop(outcomes.amount or "", None),
            }
            columns |= {_OTHER_LABEL + name: x for name, x in known.items()}
            columns |= {_OTHER_LOGIT + name: x for name, x in found.items()}
            if bad := int((~torch.isfinite(logits[: batch.valid])).any(dim=1).sum()):
                raise ValueError(
                    f"{bad} of {batch.valid} logits in a batch are NaN or infinite; the model diverged: "
                    "lower the learning rate, or evaluate an earlier checkpoint"
                )
            for name, column in columns.items():
                if column is not None:
                    # a copy: the loader may reuse its buffers, and a slice would keep the padding alive
                    dtype = _DTYPES.get(name, np.float32)
                    parts.setdefault(name, []).append(column[: batch.valid].cpu().numpy().astype(dtype))
    if not parts:
        return Predictions.of_columns({n: np.empty(0, dtype) for n, dtype in _DTYPES.items() if n not in _SOME})
    return Predictions.of_columns({name: np.concatenate(part) for name, part in parts.items()})


def gather(predictions: Predictions, scratch: Path) -> Predictions | None:
    """All ranks' rows on rank 0, sorted; None on the others. Call it on every rank.

    Args:
        predictions: this rank's rows.
        scratch: a folder that all ranks see (a shared file system on several machines). It is made, filled with
            one Parquet file a rank, read by rank 0 and removed. A single rank removes what a killed run left.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    if world == 1:
        return predictions.sort()
    try:
        dist.barrier()
        scratch.mkdir(parents=True, exist_ok=True)
        predictions.write(scratch / f"part-{rank:05d}.parquet")
        dist.barrier()
        whole = _read_parts(scratch, world).sort() if rank == 0 else None
    finally:
        if rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
    dist.barrier()  # nobody writes the next parts while rank 0 removes these
    return whole


def _read_parts(scratch: Path, world: int) -> Predictions:
    """Parts of all ranks; a rank that got no rows does not know whether the source has a probability."""
    paths = [scratch / f"part-{r:05d}.parquet" for r in range(world)]
    if missing := [p.name for p in paths if not p.is_file()]:
        raise FileNotFoundError(
            f"rank 0 does not see {missing[0]} in {scratch} ({len(missing)} of {world} parts missing); "
            "all machines must share that folder: put the run on a shared file system"
        )
    filled = [path for path in paths if pq.read_metadata(path).num_rows]
    return Predictions.read(*(filled or paths[:1]))


def validate(
    score: Score,
    loader: Iterable[SampleBatch],
    scratch: Path,
    shift: float = 0.0,
    metrics: Sequence[str] = ("auc", "gauc", "log_loss"),
    outcomes: Outcomes = CLICKS,
) -> dict[str, float]:
    """A few metrics over all ranks' rows, the same dict on every rank; NaN where undefined. For use in training.

    Of several labels each metric is the mean over them, and is there for each as ``METRIC/NAME``; the AUC weighted by
    an amount and the expected part of it are ``auc/NAME`` and ``calibration/NAME`` of the amount.
    """
    whole = gather(predict(score, loader, shift, outcomes), scratch)

    def measure() -> dict[str, float]:
        assert whole is not None
        if len(outcomes.objectives) == 1:
            return whole.summary(metrics).values
        first, *others = outcomes.predicted
        each = {first: whole.summary(metrics).values} | {n: whole.of(n).summary(metrics).values for n in others}
        found = {metric: float(np.mean([values[metric] for values in each.values()])) for metric in metrics}
        found |= {f"{metric}/{name}": value for name, values in each.items() for metric, value in values.items()}
        if whole.log_amount is not None and whole.amount is not None:
            found[f"auc/{outcomes.amount}"] = amount_auc(whole.amount, whole.log_amount)
            found[f"calibration/{outcomes.amount}"] = amount_ratio(whole.amount, np.exp(whole.log_amount))
        return found

    return on_first_rank(measure)
