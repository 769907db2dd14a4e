"""``prepare --engine ray``: Ray Data shares the work, on the cluster that it finds or on this machine's cores.

Ray's workers read and check shares of the interactions, Ray brings the rows of each bucket together, and from then on
each bucket is a task that does what a rank of the built-in way does with it; so every byte of the folder is the same.
Rows travel through Ray's object store. Buckets and samples are files in the unfinished folder beside the output, which,
as the input, all machines have to see at the same path.

A task that Ray tries again writes its files anew, so a worker that dies costs what it was at alone.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..ranks import Ranks
from ..raw.outcomes import columns_of
from ..raw.own import normal_type
from ..raw.parts import parts
from ..requests import OWN
from .buckets import rows_schema
from .inputs import Raw
from .prepare import Job, PrepareConfig
from .summary import Seen
from .tasks import (
    bucket_file,
    count_bucket,
    histogram,
    keep_bucket,
    pickled,
    read_share,
    told_file,
    value_of,
    write_samples,
)

try:
    import ray
    import ray.data
except ImportError as missing:
    raise ValueError(
        f"prepare.engine: got 'ray', which can't be imported here ({missing}); pip install 'placerank[ray]', or leave "
        "out --engine"
    ) from missing

_SHARES = 4  # for each core: cores that are done early take more


class RayJob(Job):
    """The passes of ``prepare``, with their work done by Ray."""

    def __init__(self, config: PrepareConfig, folder: Path, raw: Raw, ranks: Ranks, threads: int = 1) -> None:
        if (several := ranks.world * threads) > 1:
            raise ValueError(
                f"prepare.engine: got 'ray' and --nproc {several}, expected one process, since Ray shares the work; "
                "leave out --nproc, or --engine"
            )
        super().__init__(config, folder.resolve(), raw, ranks)
        self.shares = 1

    def run(self) -> None:
        """All passes, in the Ray session that there is, or one for as long as this takes."""
        begun = not ray.is_initialized()
        if begun:
            ray.init()
        try:
            self.shares = _SHARES * max(int(ray.cluster_resources().get("CPU", 1)), 1)
            super().run()
        finally:
            if begun:
                ray.shutdown()

    def spread(self) -> None:
        """First pass: check every interaction and bring the rows of each bucket together."""
        (self.work / "spread").mkdir()
        raw, buckets = self.raw.path.resolve(), self.bucket_count()
        own = [c for c in self.raw.own if c.of == "interactions"]
        types = [(OWN + c.name, c.type) for c in columns_of(self.config.outcomes)]
        types += [(c.key, normal_type(c)) for c in own]
        schema = rows_schema(_user_type(raw), types)
        read = partial(
            read_share,
            raw=raw,
            work=self.work,
            buckets=buckets,
            schema=schema,
            skip=self.config.on_bad_rows == "skip",
            shares=self.shares,
            own=own,
            outcomes=self.config.outcomes,
        )
        rows = _items(range(self.shares)).map_batches(read, batch_size=None, batch_format="pyarrow")
        keep = partial(keep_bucket, folder=self.work / "spread", schema=schema)
        kept = rows.groupby("bucket", num_partitions=buckets).map_groups(keep, batch_format="pyarrow")
        numbers = sorted(int(row["bucket"]) for row in kept.iter_rows())
        told = [value_of((self.work / told_file(share)).read_bytes()) for share in range(self.shares)]
        self.seen = Seen.joined([seen for seen, _ in told])
        self.check_seen([bad_rows for _, bad_rows in told])
        self.files = {number: [bucket_file(self.work / "spread", number)] for number in numbers}

    def cut(self) -> None:
        """Choose where validation and test start."""
        files = [self.files[number][0] for number in self.files]
        some = [files[i :: self.shares] for i in range(min(self.shares, len(files)))]
        first, last = self.seen.first, self.seen.last
        self.choose(sum(bins for _, bins in _each(some, partial(histogram, first=first, last=last))))

    def sort(self) -> None:
        """Second pass: sort and count each bucket."""
        context, counted = ray.put(self.context), {}

        def counts(number: int, work: Path, files: dict[int, list[Path]]) -> Any:
            return count_bucket(work, number, files[number], ray.get(context))

        for number, found in _each(list(self.files), partial(counts, work=self.work, files=self.files)):
            self.add_items(found)
            counted[number] = found.size
            self.files[number][0].unlink()
        self.number(counted)

    def make_samples(self) -> None:
        """Third pass: samples of each bucket."""
        context, written = ray.put(self.context), {}

        def samples(number: int, work: Path, row_group_rows: int) -> Any:
            return write_samples(work, number, ray.get(context), row_group_rows)

        task = partial(samples, work=self.work, row_group_rows=self.config.row_group_rows)
        for number, writers in _each(list(self.counted), task):
            written[number] = writers
            (self.work / f"sorted-{number:05d}").unlink()
        self.take_over(written)


def _items(things: Sequence[Any]) -> "ray.data.Dataset":
    """Numbers of things, each a task."""
    return ray.data.from_items([{"at": i} for i in range(len(things))], override_num_blocks=len(things))


def _each(things: Sequence[Any], call: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Each thing with what ``call`` returns for it, in the order in which they are done."""

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return {"at": row["at"], "told": pickled(lambda: call(things[row["at"]]))}

    for row in _items(things).map(task).iter_rows():
        yield things[row["at"]], value_of(row["told"])


def _user_type(raw: Path) -> pa.DataType:
    """Of the users' ids; of a column that is wrong something, since the checks say so."""
    every = [p.schema.field("user_id").type for p in parts(raw, "interactions") if "user_id" in p.schema.names]
    known = [of for of in every if not pa.types.is_null(of)]
    return pa.int64() if known and pa.types.is_integer(known[0]) else pa.string()
