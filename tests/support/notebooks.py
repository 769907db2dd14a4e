"""Notebooks run without Jupyter, and what is kept of their outputs.

``python notebooks.py run FILE`` executes the code cells from top to bottom in this process, within a running event loop
as in a Jupyter kernel, and shows the last expression of each cell both ways; it stops at the first cell that fails.
``python notebooks.py clean FILE`` drops what differs from run to run, after Jupyter has executed it in place.
"""

import ast
import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

TIMES = re.compile(r"\b\d+(\.\d+)? ?(s|ms|min)\b|\d\d:\d\d:\d\d")
PLACES = re.compile(r"(?<![\w./])/(home|root|tmp|work|usr|Users|mnt)/")


def code_cells(file: Path) -> list[str]:
    """The sources of the code cells."""
    cells = json.loads(file.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(file: Path) -> None:
    """Execute the code cells; raises what a cell raises."""
    names: dict[str, Any] = {"__name__": "__main__"}

    async def kernel() -> None:
        for number, source in enumerate(code_cells(file)):
            print(f"--- cell {number}", flush=True)
            tree = ast.parse(source)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
                print(repr(shown), flush=True)
                if hasattr(shown, "_repr_html_"):
                    assert shown._repr_html_().startswith("<div")

    asyncio.run(kernel())


def cleaned(text: str) -> str:
    """A notebook without what differs from run to run: printed lines, and who executed it when and where."""
    notebook = json.loads(text)
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"], cell["id"] = {}, f"cell-{number:02d}"
        if cell["cell_type"] == "code":
            cell["outputs"] = [one for one in cell["outputs"] if one["output_type"] != "stream"]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main(action: str, file: Path) -> None:
    """``run`` or ``clean``, as the module says."""
    if action == "run":
        run(file)
    elif action == "clean":
        file.write_text(cleaned(file.read_text()))
    else:
        raise SystemExit(f"got {action!r}, expected run or clean")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
