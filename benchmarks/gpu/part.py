"""One part of the check, in this process: ``python -m placerank.benchmarks.gpu.part NAME OUT SECONDS [--dry-run]``."""

import argparse
import importlib
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from .report import Report, Skip


def run(report: Report) -> bool:
    """Run a part's cases while there is time; whether none failed. A dry run first names those of a real one."""
    fine, part = True, importlib.import_module(f".{report.part}", __package__)
    try:
        if report.dry:
            report.record(would_run=[name for name, _ in part.cases(replace(report, dry=False))])
        for name, case in part.cases(report):
            if report.left() < 0:
                report.record(case=name, not_reached=True)
                continue
            try:
                case()
            except Skip as why:
                report.record(case=name, skipped=str(why))
            except Exception as error:
                fine = False
                traceback.print_exc()
                report.record(case=name, error=f"{type(error).__name__}: {error}".partition("\n")[0])
            report.keep_figures()
    except Skip as why:
        report.record(skipped=str(why))
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    return 0 if run(Report(args.name, args.out, args.dry_run, args.seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
