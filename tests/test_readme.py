"""The code in README.md runs.

Blocks fenced as ```bash and ```python run from top to bottom in one empty folder, each in a process of its own, so a
later block finds the files of an earlier one. The console scripts of this environment are on the PATH.

What is Python or nothing but ``placerank`` commands runs in processes that are forked from one that has imported torch:
a third of the time. The first block alone starts the console script as a shell does.

* ``<!-- not run: reason -->`` on the line above a block leaves it out (several machines, a GPU, minutes of work).
* A block inside an HTML comment is not shown to the reader but runs: it can make the small input that the next needs.
* A block in any other language, or in none, is text.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import forked
import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\S.*?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SECONDS = 240


@dataclass(frozen=True)
class Block:
    """A code block, where it starts, and why it is not run (or None)."""

    line: int
    language: str
    code: str
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The bash and python blocks of a Markdown text, in order."""
    return [
        Block(text.count("\n", 0, m.start("code")), m["language"], m["code"], m["reason"]) for m in BLOCK.finditer(text)
    ]


def environment() -> dict[str, str]:
    bins = Path(sys.executable).parent
    return os.environ | {"PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1"}


def run_block(block: Block, folder: Path) -> None:
    """Run a block in ``folder``; a failure shows the block's line, its code and what it printed."""
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    run = subprocess.run(
        [*command, block.code],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    if run.returncode:
        fail(block, run.returncode, run.stdout)


def fail(block: Block, code: int | None, printed: str) -> None:
    pytest.fail(f"README.md:{block.line}: exit code {code}\n{block.code}\n--- printed\n{printed}")


def commands(block: Block) -> list[tuple[dict[str, str], list[str]]] | None:
    """Variables and arguments of each ``placerank`` of a block of nothing else; None if there is more in it."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        given = dict(word.split("=", 1) for word in takewhile(lambda word: re.match(r"[A-Z]+=", word), words))
        if words and words[len(given) :][:1] != ["placerank"]:
            return None
        if words:
            found.append((given, words[len(given) + 1 :]))
    return found


def run_forked(block: Block, folder: Path, forks: ForkServerContext, printed: Path) -> None:
    """As ``run_block``, without the start of Python and torch."""
    calls: list[tuple[Any, tuple[Any, ...]]]
    if block.language == "python":
        calls = [(forked.python, (block.code, folder, environment(), printed))]
    else:
        calls = [
            (forked.placerank, (arguments, folder, environment() | given, printed))
            for given, arguments in commands(block) or []
        ]
        assert calls
    printed.write_text("")
    for function, args in calls:
        process = forks.Process(target=function, args=args)
        process.start()
        process.join(SECONDS)
        if process.exitcode != 0:
            process.kill()
            fail(block, process.exitcode, printed.read_text())


@pytest.mark.timeout(4 * SECONDS)
def test_the_blocks_of_the_readme_run(tmp_path: Path, forks: ForkServerContext) -> None:
    run = [block for block in blocks(README.read_text()) if block.reason is None]
    assert run, "README.md: no block of bash or python that runs"
    for i, block in enumerate(run):
        if i == 0 or (block.language == "bash" and commands(block) is None):
            run_block(block, tmp_path)
        else:
            run_forked(block, tmp_path, forks, tmp_path / "printed")


EXAMPLE = """
```bash
echo 3 > n
```
<!-- not run: takes a day -->
```bash
exit 1
```
<!--
```python
print("hidden", open("n").read())
```
-->
```text
not code
```
"""


def test_blocks_are_found() -> None:
    found = blocks(EXAMPLE)
    assert [(b.line, b.language, b.reason) for b in found] == [
        (2, "bash", None),
        (6, "bash", "takes a day"),
        (10, "python", None),
    ]
    assert found[0].code == "echo 3 > n\n"


def test_a_block_that_fails_is_shown(tmp_path: Path) -> None:
    run_block(Block(1, "bash", "echo 3 > n\n", None), tmp_path)
    run_block(Block(1, "python", "assert open('n').read() == '3\\n'", None), tmp_path)
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:7: exit code 1[\s\S]*so it was"):
        run_block(Block(7, "bash", "echo so it was | cat; false; echo never", None), tmp_path)


def test_commands_are_read_as_a_shell_reads_them() -> None:
    code = "A=1 placerank train --x 2 \\\n  --y 'a b'   # why\n\nplacerank evaluate\n"
    assert commands(Block(1, "bash", code, None)) == [
        ({"A": "1"}, ["train", "--x", "2", "--y", "a b"]),
        ({}, ["evaluate"]),
    ]
    assert commands(Block(1, "bash", code + "ls\n", None)) is None


def test_a_command_that_fails_is_shown(tmp_path: Path, forks: ForkServerContext) -> None:
    block = Block(7, "bash", "placerank --version\nplacerank nothing\n", None)
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:7: exit code 2[\s\S]*placerank \d[\s\S]*no command"):
        run_forked(block, tmp_path, forks, tmp_path / "printed")
