"""Another version of a raw dataset: without some of its items' columns, or its visits alone.

    python -m placerank.benchmarks.papers.worlds runs/raw/city runs/raw/city-clicks --clicks
    python -m placerank.benchmarks.papers.worlds runs/raw/city runs/raw/city-bare --without brand district

With ``--clicks`` rows of label 0 go, as in a log of check-ins, so that ``prepare`` draws negatives.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...data.manifest import whole_folder


def version(source: Path, out: Path, without: Sequence[str], clicks: bool) -> None:
    """Write it: items.parquet, interactions.parquet, and users.parquet where there is one."""
    with whole_folder(out) as folder:
        items = pq.read_table(source / "items.parquet")
        pq.write_table(items.drop_columns(list(without)), folder / "items.parquet")
        rows = pq.read_table(source / "interactions.parquet")
        if clicks:
            rows = rows.filter(pc.equal(rows["label"], 1)).drop_columns(["request_id"])
        pq.write_table(rows, folder / "interactions.parquet")
        if (source / "users.parquet").exists():
            shutil.copy(source / "users.parquet", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder in the schema of docs/data.md")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--without", nargs="+", default=[], metavar="COLUMN", help="columns of items to leave out")
    parser.add_argument("--clicks", action="store_true", help="rows of label 1 alone")
    args = parser.parse_args()
    version(args.source, args.out, args.without, args.clicks)


if __name__ == "__main__":
    main()
