"""A small city with hours, offsets from UTC and semantic IDs, and generative rankers of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from runs import small as small_run
from tokens import K, make_codes, write_tokens

from placerank.data.batches.features import FeatureConfig
from placerank.data.city.simulate import SimulateConfig, simulate
from placerank.data.preparation.prepare import PrepareConfig, prepare
from placerank.rankers.dense import RankerConfig
from placerank.rankers.generative.config import GeneratorConfig
from placerank.tokenization.codes.semantic_ids import SemanticIds
from placerank.training.train import TrainConfig, train

GENERATOR = GeneratorConfig(columns=16, heads=2, layers=2, hidden=32, window=3, memory=6, copied=8)
# across midnight and the week's end, always, closed days, a closed week, not known
HOURS = ["Mo-Fr 09:00-12:00,13:00-18:30", "Mo-Su 20:00-03:00", "24/7", "Mo 10:00-14:00; Tu off", "off", None,
         "Sa-Su 22:00-06:00", "Mo-Su 06:00-11:00", "We-Su 11:30-23:00"]  # fmt: skip
OFFSETS = [None, 330.0, -210.0]


def make_world(folder: Path) -> SimpleNamespace:
    """``data``; ``tokens`` of all items but the last 20, which ``extended`` has too; ``run``, trained on the first."""
    raw = simulate(SimulateConfig(out=folder / "raw", items=150, users=60, requests=500, candidates=8, cities=1))
    for name, column, values in (("items", "opening_hours", HOURS), ("interactions", "utc_offset", OFFSETS)):
        table = pq.read_table(raw / f"{name}.parquet")
        some = pa.array([values[i % len(values)] for i in range(len(table))])
        pq.write_table(table.append_column(column, some), raw / f"{name}.parquet")
    data = prepare(PrepareConfig(input=raw, out=folder / "data", history_length=12))
    items = pq.read_table(data / "catalog.parquet")["item_id"].combine_chunks()[1:]
    most = len(items) - 20
    first = SemanticIds.first(items[:most], make_codes(most, 0), K, "tokenizer")
    made = SimpleNamespace(
        data=data,
        tokens=write_tokens(folder / "codes", first),
        extended=write_tokens(folder / "extended", first.added(items[most:], make_codes(20, 1))),
        other=write_tokens(folder / "other", SemanticIds.first(items, make_codes(len(items), 0), K, "another")),
    )
    made.run = train(small(made, folder / "run", epochs=3))
    return made


def small(world: SimpleNamespace, run: Path, **changes: Any) -> TrainConfig:
    """A run of seconds of a generative ranker."""
    own: dict[str, Any] = {
        "features": FeatureConfig(embedding_dim=8, pooled_dim=4, semantic_ids=world.tokens),
        "ranker": RankerConfig(kind="generative", generative=GENERATOR),
        "batch_size": 32,
        "checkpoint_every": 5,
    }
    return small_run(world.data, run, **(own | changes))
