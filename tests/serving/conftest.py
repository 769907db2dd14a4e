"""Exports that all tests of serving share."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from served import two_exports

from placerank.data.manifest import sha256_file


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``a`` and ``b``: exports of two rankers of one city."""
    return two_exports(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module", autouse=True)
def programs_are_read_once() -> Iterator[None]:
    """Reading the dense part's program is most of a load's time, and there are two."""
    load, known = torch.export.load, dict[str, Any]()

    def once(file: Path) -> Any:
        content = sha256_file(file)
        if content not in known:
            known[content] = load(file)
        return known[content]

    with (
        mock.patch("torch.export.load", once),
        mock.patch("placerank.data.manifest.source_commit", return_value=None),
    ):
        yield
