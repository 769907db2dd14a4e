"""Every step ended at random moments: what it leaves, and what the next run makes of it.

    python -m placerank.benchmarks.kills --tries 10                      # all steps; SIGTERM, Ctrl-C and SIGKILL
    python -m placerank.benchmarks.kills --steps prepare --tries 2
    python -m placerank.benchmarks.kills --steps train --nproc 2    # the launcher is ended, with two ranks below it
    python -m placerank.benchmarks.kills --s3 --steps prepare --signals KILL --nproc 2   # from and to an S3 server

Each try starts the step in a new folder, sends the signal after a random part of the time that the step takes, and
runs it again (with --resume where a step has it). Checked is:

- a step that is ended leaves nothing but what it goes on from; a killed one nothing that has the output's name and is
  not whole;
- the next run ends well, leaves nothing beside the output, and the output is that of a run that nobody ended.

With ``--s3`` the outputs are URLs, every second signal comes in the second half of the time, when they are put there,
and what lies on this disk is what was being made for them. A folder that lies there without its manifest is not taken
for whole by anybody, so a killed step may leave one.

Prints a row a step and signal; the exit code is 1 if anything was not as it should be.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from placerank.benchmarks.s3_server import s3_server
from placerank.data.manifest import MANIFEST, read_manifest
from placerank.data.urls import Url, fetched, listed, place

SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
T = TypeVar("T")
Hashes = dict[str, str]
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

    def argv(self, name: str, before: str, out: Path) -> list[str]:
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
    unfinished: int = 0
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


def aside(call: Callable[..., T], *args: Any) -> T:
    """What a call returns, made in a process of its own: once this one has asked a server, it may not fork any more."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


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


def content(step: Step, out: Path) -> Hashes:
    """Hashes of the files that must be equal; of a log the validations, which hold no times."""
    found, out = {}, fetched(out)
    for file in sorted(p for glob in step.content for p in out.glob(glob)):
        data = file.read_bytes()
        if file.suffix == ".jsonl":
            data = b"\n".join(x for x in data.splitlines() if json.loads(x).get("split") == "valid")
        found[file.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def hidden(out: Path) -> list[str]:
    """Names in a finished folder that belong to unfinished work; a checkpoint has a .metadata of its own."""
    if isinstance(out, Url):
        return sorted(p.name for p in out.iterdir() if p.name.startswith("."))
    return sorted(p.name for p in out.rglob(".*") if p.name != ".metadata")


def look(step: Step, out: Path) -> tuple[bool, str]:
    """Whether there is an output that a reader would take, and what is wrong with it."""
    there = (out / MANIFEST).is_file() if isinstance(out, Url) else out.exists()
    if step.kind and there:
        try:
            read_manifest(fetched(out), step.kind, verify=True)
        except (ValueError, OSError) as error:
            return True, f"what has the name of the output is not whole: {error}"
    return there, ""


def strays(step: Step, out: Path) -> list[str]:
    """What lies at a URL beside what the manifest tells of."""
    if not step.kind or not isinstance(out, Url):
        return []
    return sorted({*listed(out)} - {MANIFEST, *read_manifest(out, step.kind)["files"]})


def left_in(folder: Path, out: Path) -> list[str]:
    """Names of what lies on this disk; for a URL of what was being made, not of what was fetched."""
    if not isinstance(out, Url):
        return sorted(p.name for p in folder.iterdir())
    return sorted(p.name for own in folder.glob("placerank-*") for p in (own / "work").glob("*"))


def attempt(
    name: str, number: int, before: str, folder: Path, at: str, seconds: float, want: Hashes, ranks: list[str], row: Row
) -> None:
    """One try: end it, look, run again, compare."""
    step, log = STEPS[name], folder.with_suffix(".log")
    folder.mkdir()
    out = place(f"{at}/{folder.name}/out") if at else folder / "out"
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # what is made for a URL lies there
    argv = [*step.argv(name, before, out), *ranks]
    pid = start(argv, log)
    late = at and folder.name[-1] in "13579"  # while it is put there
    time.sleep(random.uniform(seconds / 2 if late else 0, seconds))
    os.kill(pid, number)
    code = wait(pid)
    if ranks:
        wait_for_ranks(out)
    row.ended[code] += 1
    say = lambda text: row.wrong.append(f"{name}, {signal.Signals(number).name}: {text}; see {log}")  # noqa: E731
    allowed = {"out"} | ({".out.partial"} if step.resumes and step.kind else set())
    left = [name for name in left_in(folder, out) if not (name in allowed or (step.resumes and at))]
    row.left += bool(left)
    if left and number != signal.SIGKILL:
        say(f"ended with code {code} and left {', '.join(left)}")
    there, wrong = aside(look, step, out)
    row.unfinished += bool(at and not there)
    if wrong:
        say(wrong)
    if not (step.kind and there):
        code = wait(start([*argv, *(["--resume"] if step.resumes else [])], log))
        if code:
            say(f"the next run ended with code {code}")
            return
    else:  # it was whole already: the next run is one that is refused
        wait(start(argv, log))
    left = [name for name in left_in(folder, out) if name != "out"] + aside(hidden, out) + aside(strays, step, out)
    if left:
        say(f"after the next run there is still {', '.join(left)}")
    if aside(content, step, out) != want:
        say("the output differs from that of a run that nobody ended")


def run(names: list[str], signals: list[str], tries: int, nproc: int, work: Path, at: str) -> int:
    """All tries; prints the table and returns how many things were not as they should be.

    Args:
        work: for all that lies on this disk.
        at: the URL at which outputs are to be; "": on this disk.
    """
    rows, wrong = {}, []
    at = f"{at}/{work.name}" if at else ""
    before = f"{at}/before" if at else str(work / "before")
    if not at:
        (work / "before").mkdir()
    needed = set(names)
    for name in reversed(STEPS):
        if name in needed:
            needed |= {flag.removeprefix("{}/") for flag in STEPS[name].flags if flag.startswith("{}/")}
    for name, step in ((name, step) for name, step in STEPS.items() if name in needed):
        ranks = ["--nproc", str(nproc)] if step.ranks and nproc > 1 and name in names else []
        begin, log = time.monotonic(), work / f"{name}.log"
        out = place(f"{before}/{name}")
        if wait(start([*step.argv(name, before, out), *ranks], log)):
            raise SystemExit(f"{name} fails when nobody ends it:\n{log.read_text()}")
        seconds, want = time.monotonic() - begin, aside(content, step, out)
        if not want:
            raise SystemExit(f"{name} made nothing to compare: {step.content}")
        for which in signals if name in names else ():
            row = rows[name, which] = Row()
            for i in range(tries):
                attempt(name, SIGNALS[which], before, work / f"{name}-{which}-{i}", at, seconds, want, ranks, row)
            wrong += row.wrong
            ended = ", ".join(f"{code} ({count})" for code, count in sorted(row.ended.items()))
            print(
                f"{name:<9} {which:<5} {tries} tries within {seconds:5.1f} s   exit codes {ended:<24} "
                f"left something {row.left}   "
                + (f"nothing whole {row.unfinished}   " if at else "")
                + f"wrong {len(row.wrong)}",
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
    parser.add_argument("--s3", action="store_true", help="outputs by URL on an S3 server: AWS_ENDPOINT_URL or our own")
    args = parser.parse_args()
    random.seed(args.seed)
    for name in STEPS:  # so that forked processes need not
        importlib.import_module(f"placerank.cli.{name}")
    # Left where it is when something is wrong, for the logs.
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    with s3_server() if args.s3 else nullcontext("") as at:
        wrong = run(args.steps, args.signals, args.tries, args.nproc, work, at)
    if wrong:
        print(f"{wrong} wrong; everything is in {work}")
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
