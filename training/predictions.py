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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ..data.batches.batch import SampleBatch
from .metrics import ALL_METRICS, Summary, summarize
from .runtime import on_first_rank

Score = Callable[[SampleBatch], Tensor]
"""SampleBatch -> logits [B], any float dtype, any device."""

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
}


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

    def __len__(self) -> int:
        return len(self.request)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}; expected one row per candidate in each")

    def columns(self) -> dict[str, NDArray[Any]]:
        """Name -> column, those that are there."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    def predicted(self) -> NDArray[np.float64]:
        """[N] float64, sigmoid of the logit: the predicted probability of a positive."""
        p: NDArray[np.float64] = torch.from_numpy(self.logit.astype(np.float64)).sigmoid().numpy()
        return p

    def take(self, rows: NDArray[Any]) -> "Predictions":
        """The rows of an index or a mask."""
        return Predictions(**{name: column[rows] for name, column in self.columns().items()})

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
        return cls(**{name: table[name].to_numpy() for name in table.column_names})

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


def predict(score: Score, loader: Iterable[SampleBatch], shift: float = 0.0) -> Predictions:
    """Score every row that this rank's loader yields; rows at or after ``batch.valid`` are padding and dropped.

    Args:
        score: batch -> logits [B]. It is called on the whole batch, padding included, so that ranks with
            collectives inside stay in step.
        loader: this rank's batches.
        shift: added to every logit, see ``sampling_shift``.

    Raises:
        ValueError: a logit is not finite, or ``score`` returned another shape than [B].
    """
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _DTYPES}
    with torch.no_grad():
        for batch in loader:
            logit = score(batch).detach().float().cpu() + shift
            if logit.shape != batch.label.shape:
                raise ValueError(
                    f"the scorer returned shape {tuple(logit.shape)} for {len(batch.label)} rows, expected one logit "
                    "a row: [B]"
                )
            of_request = batch.request
            columns = {
                "request": batch.request_id[of_request],
                "user_index": batch.user_index[of_request],
                "user_row": batch.user[of_request],
                "item_row": batch.item,
                "label": batch.label,
                "logit": logit,
                "time": batch.time[of_request],
                "visits": batch.visits,
                "lat": batch.lat[of_request],
                "lon": batch.lon[of_request],
                "probability": batch.probability,
            }
            if bad := int((~torch.isfinite(logit[: batch.valid])).sum()):
                raise ValueError(
                    f"{bad} of {batch.valid} logits in a batch are NaN or infinite; the model diverged: "
                    "lower the learning rate, or evaluate an earlier checkpoint"
                )
            for name, column in columns.items():
                if column is not None:
                    # a copy: the loader may reuse its buffers, and a slice would keep the padding alive
                    parts[name].append(column[: batch.valid].cpu().numpy().astype(_DTYPES[name]))
    if not parts["probability"]:
        del parts["probability"]
    return Predictions(
        **{name: np.concatenate(part) if part else np.empty(0, _DTYPES[name]) for name, part in parts.items()}
    )


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
) -> dict[str, float]:
    """A few metrics over all ranks' rows, the same dict on every rank; NaN where undefined. For use in training."""
    whole = gather(predict(score, loader, shift), scratch)

    def measure() -> dict[str, float]:
        assert whole is not None
        return whole.summary(metrics).values

    return on_first_rank(measure)
