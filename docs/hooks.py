"""What the docs' site shows beside docs/*.md: README and figures, a page a command, and formulas as MathML.

Files of the repository keep their links, which lead from file to file; here they are turned to the site's pages, and
those to files that it doesn't show (code, results) to the repository, where that has a public address. Commands' pages
come from the parsers of the commands themselves, so they can't go stale. Formulas are written as GitHub has them,
```math and $`...`$, and become MathML, which browsers draw by themselves: no script, nothing to fetch.
"""

import contextlib
import html
import importlib
import io
import posixpath
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOME = re.search(r'^HOME = "(.+)"', (ROOT / "setup.py").read_text(), re.M)[1]  # type: ignore[index]
# File of the repository -> page, where that isn't docs/NAME -> NAME or the same name.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
SHOWN = (*PAGES, "benchmarks/README.md", "benchmarks/throughput/README.md")
# Files that are needed beside docs/.
BESIDE = [*SHOWN, *(p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "benchmarks/results").glob("*.png")))]


class _Asked(BaseException):
    """Raised in the place of parsing, with the parser."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: convert(source, display="block")}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    for entry in config.nav or []:
        if "Commands" in entry:
            entry["Commands"] = [{name: f"commands/{name}.md"} for name in _commands()]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name in BESIDE:
        files.append(File.generated(config, _page_of(name), abs_src_path=str(ROOT / name)))
    for name, about in _commands().items():
        text = "\n".join(_command_page(name, about))
        files.append(File.generated(config, f"commands/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links and inline formulas; comments go, as code in them would be shown."""
    source = {site: name for name in SHOWN if (site := _page_of(name))}.get(page.file.src_uri)
    markdown = re.sub(r"^<!--.*?-->\n", "", markdown, flags=re.M | re.S)
    if source is None and page.file.generated_by is None:
        source = f"docs/{page.file.src_uri}"
    if source is not None:
        markdown = _outside_code(markdown, lambda text: _with_links(text, source, page.file.src_uri))
    # in a span, or Markdown takes a line that begins with a formula for a block
    inline = lambda match: f"<span>{convert(match[1])}</span>"  # noqa: E731
    return _outside_code(markdown, lambda text: re.sub(r"\$`(.+?)`\$", inline, text))


def _page_of(name: str) -> str:
    return PAGES.get(name, name.removeprefix("docs/"))


def _with_links(text: str, source: str, page: str) -> str:
    """Links of a file of the repository as a page of the site has them."""

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / target).exists():
            return match[0]  # strict building tells of it
        if target in BESIDE or target.startswith("docs/"):
            link = posixpath.relpath(_page_of(target), posixpath.dirname(page) or ".")
        elif HOME.endswith(".example"):
            return f"`{match[1]}`"  # nowhere to lead to
        else:
            link = f"{HOME}/blob/main/{target}"
        return f"[{match[1]}]({link}{match[3] or ''})"

    return re.sub(r"\[([^][]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", turned, text)


def _outside_code(markdown: str, change: Any) -> str:
    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _commands() -> dict[str, str]:
    from placerank.cli.main import COMMANDS

    return COMMANDS


def _command_page(name: str, about: str) -> Iterator[str]:
    """``placerank NAME``: what it does, and its options by group."""
    yield from (f"# placerank {name}", "", f"{about[0].upper()}{about[1:]}.", "")
    parser = _parser(["kernels"] if name == "bench" else [], name)
    if isinstance(parser, str):  # no settings
        yield from ("```text", parser.rstrip(), "```")
        return
    yield from ((parser.description or "").strip(), "")
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.option_strings and a.option_strings != ["-h", "--help"]]
        if not actions:
            continue
        yield from (f"## {(group.title or 'options').capitalize()}", "", _text(group.description or ""), "")
        for action in actions:
            takes = f" {action.metavar}" if action.metavar and action.nargs != 0 else ""
            yield from (f"`{', '.join(action.option_strings)}{takes}`", f":   {_text(action.help or '')}", "")


def _parser(words: list[str], name: str) -> Any:
    """The parser of a command's settings; the text of its help where it has none."""
    from tyro.extras import get_parser

    def caught(config: Any, *, prog: str, description: str, **_: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # nothing has taken its place
            raise _Asked(get_parser(config, prog=prog, description=description))

    printed = io.StringIO()
    command = importlib.import_module(f"placerank.cli.{name}")
    try:
        with mock.patch("tyro.cli", caught), contextlib.redirect_stdout(printed):
            command.main([*words, "--help"])
    except _Asked as asked:
        return asked.args[0]
    except SystemExit:
        pass
    return printed.getvalue()


def _text(text: str) -> str:
    """Plain text of a help as Markdown, on one line."""
    text = html.escape(re.sub(r"\s+", " ", text).strip(), quote=False).replace("``", "`")
    return re.sub(r"(?<!`)([*_])", r"\\\1", text)
