"""Every step ended at random moments: what it leaves, and what the next run makes of it.

    python -m placerank.benchmarks.kills --tries 10                      # all steps; SIGTERM, Ctrl-C and SIGKILL
    python -m placerank.benchmarks.kills --steps prepare --tries 2
    python -m placerank.benchmarks.kills --steps train --nproc 2    # the launcher is ended, with two ranks below it

Each try starts the step in a new folder, sends the signal after a random part of the time that the step takes, and
runs it again (with --resume where a step has it). Checked is:

- a step that is ended leaves nothing but what it goes on from; a killed one nothing that has the output's name and is
  not whole;
- the next run ends well, leaves nothing beside the output, and the output is that of a run that nobody ended.

Prints a row a step and signal; the exit code is 1 if anything was not as it should be.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from placerank.data.manifest import read_manifest

SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
SETTLED = 60.0  # seconds, after which ranks whose launcher was killed must have ended


@dataclass(frozen=True)
class Step:
    """A subcommand to be ended.

    Attributes:
        flags: besides those for its output; {} stands for the folder with the outputs of the steps before.
        kind: of the folder that it makes; "" for a run folder.
        content: globs of the files that must be equal, whoever made them.
        resumes: whether it goes on from what was begun.
        ranks: whether it can have several.
    """

    flags: tuple[str, ...]
    kind: str
    content: tuple[str, ...] = ("**/*.parquet",)
    resumes: bool = False
    ranks: bool = False

    def argv(self, name: str, before: Path, out: Path) -> list[str]:
        return [name, "--run" if self.kind == "" else "--out", str(out), *(f.format(before) for f in self.flags)]


STEPS = {
    "simulate": Step(("--items", "1000", "--users", "2000", "--requests", "20000", "--cities", "3"), "raw"),
    "prepare": Step(("--input", "{}/simulate"), "prepared", ranks=True),
    "align": Step(("--data", "{}/prepare", "--rung", "none"), "align", resumes=True, ranks=True),
    "tokenize": Step(
        ("--data", "{}/prepare", "--embeddings", "{}/align", "--codebook.codes", "32"),
        "tokens",
        resumes=True,
        ranks=True,
    ),
    "train": Step(
        ("--data", "{}/prepare", "--epochs", "1", "--checkpoint-every", "20", "--validate-every", "50"),
        "",
        ("metrics.jsonl",),
        resumes=True,
        ranks=True,
    ),
    "evaluate": Step(("--run", "{}/train"), "evaluation", ("predictions.parquet", "metrics.json"), ranks=True),
    "export": Step(("--run", "{}/train"), "export"),
}


@dataclass
class Row:
    """What happened to a step under one signal."""

    ended: Counter[int] = field(default_factory=Counter)
    left: int = 0
    wrong: list[str] = field(default_factory=list)


def start(argv: list[str], log: Path) -> int:
    """The command in a process of its own, forked so that it needs no time to import; its id."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        # By name: the command's module imports benchmarks, and imports between folders run one way.
        code = importlib.import_module("placerank.cli.main").main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid: int) -> int:
    """The exit code; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_ranks(out: Path) -> None:
    """Until no process has ``out`` in its command line."""
    end, mine = time.monotonic() + SETTLED, str(out).encode()
    while time.monotonic() < end:
        found = [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.parent.name != str(os.getpid())]
        if not any(mine in _read(p) for p in found):
            return
        time.sleep(0.1)
    raise TimeoutError(f"ranks that work on {out} have not ended {SETTLED:.0f} s after their launcher")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def content(step: Step, out: Path) -> dict[str, str]:
    """Hashes of the files that must be equal; of a log the validations, which hold no times."""
    found = {}
    for file in sorted(p for glob in step.content for p in out.glob(glob)):
        data = file.read_bytes()
        if file.suffix == ".jsonl":
            data = b"\n".join(x for x in data.splitlines() if json.loads(x).get("split") == "valid")
        found[file.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def hidden(out: Path) -> list[str]:
    """Names in a finished folder that belong to unfinished work; a checkpoint has a .metadata of its own."""
    return sorted(p.name for p in out.rglob(".*") if p.name != ".metadata")


def attempt(
    name: str, number: int, before: Path, folder: Path, seconds: float, want: dict[str, str], ranks: list[str], row: Row
) -> None:
    """One try: end it, look, run again, compare."""
    step, out, log = STEPS[name], folder / "out", folder.with_suffix(".log")
    folder.mkdir()
    argv = [*step.argv(name, before, out), *ranks]
    pid = start(argv, log)
    time.sleep(random.uniform(0, seconds))
    os.kill(pid, number)
    code = wait(pid)
    if ranks:
        wait_for_ranks(out)
    row.ended[code] += 1
    say = lambda text: row.wrong.append(f"{name}, {signal.Signals(number).name}: {text}; see {log}")  # noqa: E731
    allowed = {"out"} | ({".out.partial"} if step.resumes and step.kind else set())
    left = sorted(p.name for p in folder.iterdir() if p.name not in allowed)
    row.left += bool(left)
    if left and number != signal.SIGKILL:
        say(f"ended with code {code} and left {', '.join(left)}")
    if step.kind and out.exists():
        try:
            read_manifest(out, step.kind, verify=True)
        except (ValueError, OSError) as error:
            say(f"what has the name of the output is not whole: {error}")
    if not (step.kind and out.exists()):
        code = wait(start([*argv, *(["--resume"] if step.resumes else [])], log))
        if code:
            say(f"the next run ended with code {code}")
            return
    else:  # it was whole already: the next run is one that is refused
        wait(start(argv, log))
    left = sorted(p.name for p in folder.iterdir() if p.name != "out") + hidden(out)
    if left:
        say(f"after the next run there is still {', '.join(left)}")
    if content(step, out) != want:
        say("the output differs from that of a run that nobody ended")


def run(names: list[str], signals: list[str], tries: int, nproc: int, work: Path) -> int:
    """All tries; prints the table and returns how many things were not as they should be."""
    before, rows, wrong = work / "before", {}, []
    before.mkdir()
    needed = set(names)
    for name in reversed(STEPS):
        if name in needed:
            needed |= {flag.removeprefix("{}/") for flag in STEPS[name].flags if flag.startswith("{}/")}
    for name, step in ((name, step) for name, step in STEPS.items() if name in needed):
        ranks = ["--nproc", str(nproc)] if step.ranks and nproc > 1 and name in names else []
        begin, log = time.monotonic(), work / f"{name}.log"
        if wait(start([*step.argv(name, before, before / name), *ranks], log)):
            raise SystemExit(f"{name} fails when nobody ends it:\n{log.read_text()}")
        seconds, want = time.monotonic() - begin, content(step, before / name)
        if not want:
            raise SystemExit(f"{name} made nothing to compare: {step.content}")
        for which in signals if name in names else ():
            row = rows[name, which] = Row()
            for i in range(tries):
                attempt(name, SIGNALS[which], before, work / f"{name}-{which}-{i}", seconds, want, ranks, row)
            wrong += row.wrong
            ended = ", ".join(f"{code} ({count})" for code, count in sorted(row.ended.items()))
            print(
                f"{name:<9} {which:<5} {tries} tries within {seconds:5.1f} s   exit codes {ended:<24} "
                f"left something {row.left}   wrong {len(row.wrong)}",
                flush=True,
            )
    for text in wrong:
        print(text)
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--nproc", type=int, default=1, help="ranks of the steps that can have several")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    random.seed(args.seed)
    for name in STEPS:  # so that forked processes need not
        importlib.import_module(f"placerank.cli.{name}")
    # Left where it is when something is wrong, for the logs.
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    wrong = run(args.steps, args.signals, args.tries, args.nproc, work)
    if wrong:
        print(f"{wrong} wrong; everything is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
