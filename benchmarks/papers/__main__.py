"""The papers' tables on real data.

    python -m placerank.benchmarks.papers lgsid --data DATASETS/foursquare_nyc --seeds 3
    python -m placerank.benchmarks.papers robust --data DATASETS/foursquare_nyc --seeds 6
    python -m placerank.benchmarks.papers rest akt --data DATASETS/foursquare_nyc --towers din --seeds 5 --save

Every cell (dataset, tower, variant, seed) is trained, evaluated and kept; one that is kept is not run again, so stop
and start at will. Several processes can work on the same folder: each takes the cells that no other has. All cells of a
dataset have the same samples and the same budget, printed with the table; a cell whose settings changed is run again.

Prints mean ± standard deviation over seeds, and the difference to the same tower's plain cell of the same seed with a
95 % confidence interval: Student's over seeds, and for each request's AUC a bootstrap over requests. ``--save`` writes
results/papers_<table>.csv, beside other datasets' lines that are there, and draws the .png beside it.
"""

import argparse
import csv
from functools import partial
from pathlib import Path

import torch

from placerank.benchmarks.papers.cells import Budget, Cell, Workplace
from placerank.benchmarks.papers.grids import TABLES, grid_of
from placerank.benchmarks.papers.robust import robust_lines, robust_markdown
from placerank.benchmarks.papers.rule import draw_rule, rule_lines, rule_markdown
from placerank.benchmarks.papers.tables import draw, lines_of, markdown
from placerank.benchmarks.results_file import RESULTS, keep
from placerank.reports.progress import Progress

OF_THEIR_OWN = {"robust": (robust_lines, robust_markdown, draw), "rule": (rule_lines, rule_markdown, draw_rule)}
_KEY = ("table", "dataset", "tower", "variant", "part", "metric")


def cells_of(table: str, args: argparse.Namespace) -> list[Cell]:
    """The wanted cells of a table; all variants and towers of one seed before the next, so tables fill evenly."""
    budget = budget_of(args)
    found = []
    for data in args.data:
        embeddings = args.embeddings / data.name if args.embeddings else None
        place = Workplace(data, args.out / data.name, budget, embeddings, args.token_seeds)
        grid = grid_of(table, args.embeddings is not None)
        found += [
            Cell(place, tower, variant, seed)
            for seed in range(args.seeds)
            for tower, variants in grid.items()
            if not args.towers or tower in args.towers
            for variant in variants
            if not args.variants or variant.name in args.variants
        ]
    return found


def budget_of(args: argparse.Namespace) -> Budget:
    return Budget(epochs=args.epochs, dense_lr=args.dense_lr, lr_gamma=args.lr_gamma)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="+", choices=sorted(TABLES), metavar="table", help=", ".join(sorted(TABLES)))
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders in the schema of docs/data.md")
    parser.add_argument("--out", type=Path, default=Path("runs/papers"), help="where cells are kept")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--token-seeds", type=int, help="seeds of semantic IDs (default: one for each seed of rankers)")
    parser.add_argument("--towers", nargs="+", help="these alone")
    parser.add_argument("--variants", nargs="+", help="these alone, by name: none, hgit, rest, akt-views, ...")
    parser.add_argument(
        "--embeddings", type=Path, help="folder of aligned embeddings, one in it a dataset, by its name"
    )
    parser.add_argument("--epochs", type=int, default=Budget.epochs, help="of every cell (default: %(default)s)")
    parser.add_argument("--dense-lr", type=float, default=Budget.dense_lr, help="at the start (default: %(default)s)")
    parser.add_argument(
        "--lr-gamma", type=float, default=Budget.lr_gamma, help="ten times in all; 1: constant (default: %(default)s)"
    )
    parser.add_argument("--no-run", action="store_true", help="only show the cells that are there")
    parser.add_argument("--save", action="store_true", help="write results/papers_<table>.csv and its picture")
    args = parser.parse_args()

    cells = {table: cells_of(table, args) for table in args.tables}
    wanted = {cell.path: cell for of_table in cells.values() for cell in of_table}  # tables share cells
    left_out: dict[tuple[str, str, str], str] = {}
    if not args.no_run:
        with Progress("papers", len(wanted), "cells") as progress:
            for cell in sorted(wanted.values(), key=lambda cell: cell.seed):
                progress.note(f"{cell.place.data.name} {cell.tower} {cell.variant.name} {cell.seed}")
                try:
                    cell.run()
                except ValueError as error:  # the data lack what the variant works on, brands say
                    left_out[cell.place.data.name, cell.tower, cell.variant.name] = str(error)
                progress.update()
    for about, reason in left_out.items():
        print("left out:", *about, f"({reason})")
    for table in args.tables:
        usual = partial(lines_of, table), partial(markdown, table), draw
        lines_for, told, drawn = OF_THEIR_OWN.get(table, usual)
        lines = lines_for(cells[table])
        print(f"\n{table}: {budget_of(args)}")
        print(told(lines))
        missing = sum(cell.done() is None for cell in cells[table])
        if missing:
            print(f"\n{missing} of {len(cells[table])} cells are missing")
        if args.save and lines:
            path = keep(f"papers_{table}.csv", lines, _KEY, torch.device("cpu"))
            with open(path, newline="") as f:
                drawn(RESULTS / f"papers_{table}.png", list(csv.DictReader(f)))
            print(f"written: {path}")


if __name__ == "__main__":
    main()
