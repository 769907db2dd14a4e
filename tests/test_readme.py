"""The code in README.md runs.

Blocks fenced as ```bash and ```python run from top to bottom in one empty folder, each in a process of its own, so a
later block finds the files of an earlier one. The console scripts of this environment are on the PATH.

* ``<!-- not run: reason -->`` on the line above a block leaves it out (several machines, a GPU, minutes of work).
* A block inside an HTML comment is not shown to the reader but runs: it can make the small input that the next needs.
* A block in any other language, or in none, is text.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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


def run_block(block: Block, folder: Path) -> None:
    """Run a block in ``folder``; a failure shows the block's line, its code and what it printed."""
    bins = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{bins}{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1"}
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    run = subprocess.run(
        [*command, block.code],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    if run.returncode:
        pytest.fail(f"README.md:{block.line}: exit code {run.returncode}\n{block.code}\n--- printed\n{run.stdout}")


@pytest.mark.timeout(4 * SECONDS)
def test_the_blocks_of_the_readme_run(tmp_path: Path) -> None:
    run = [block for block in blocks(README.read_text()) if block.reason is None]
    assert run, "README.md: no block of bash or python that runs"
    for block in run:
        run_block(block, tmp_path)


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
