"""Lists for a file of requests, streamed from Parquet to Parquet."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.manifest import check_replaceable, read_manifest, whole_folder, write_manifest
from ..data.raw.parts import open_parquet
from ..data.urls import fetched
from ..rankers.rank import load
from ..reports.progress import Progress
from .settings import PredictConfig

LISTS = "lists.parquet"
_ROWS = 1 << 17  # of a row group


def predict(config: PredictConfig) -> Path:
    """Write ``lists.parquet``: what ``Ranker.predict`` gives, a row a place of a list; returns its folder.

    Requests are read and lists written a piece at a time, so neither need fit in memory. The folder appears when it is
    whole; on any error what was there before stays.

    Raises:
        FileExistsError: the folder exists and ``overwrite`` is not set.
        FileNotFoundError, ValueError: no export or requests, damaged ones, or requests that are not as expected.
    """
    check_replaceable(config.out, config.overwrite)
    export = fetched(config.export)
    ranker = load(export)
    told = read_manifest(export, "export")
    requests = fetched(config.requests)
    with open_parquet(requests) as file:
        total = file.metadata.num_rows
    with whole_folder(config.out, config.overwrite) as folder:
        writer, waiting, lists = None, [], 0
        with Progress("predict", total, "requests") as progress:
            done = ranker.predict(requests, config.within_km, config.k, by=config.by, asked=progress.update)
            for found in done:
                lists += len(found)
                waiting.append(found)
                if sum(map(len, waiting)) >= _ROWS:
                    writer = _write(writer, folder / LISTS, waiting)
                    waiting = []
        writer = _write(writer, folder / LISTS, waiting or [ranker.rank([], [], [])])
        writer.close()
        made_from = {"export": told["content_hash"]}
        write_manifest(folder, "lists", config, made_from, requests=total, places=lists)
    return config.out


def _write(writer: pq.ParquetWriter | None, file: Path, tables: list[pa.Table]) -> pq.ParquetWriter:
    table = pa.concat_tables(tables).combine_chunks()
    writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
    writer.write_table(table, row_group_size=_ROWS)
    return writer
