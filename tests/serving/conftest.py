"""Exports that all tests of serving share."""

from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
from programs import traced_once  # noqa: F401
from served import two_exports


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``a`` and ``b``: exports of two rankers of one city."""
    return two_exports(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module", autouse=True)
def sources_are_of_no_commit() -> Iterator[None]:
    with mock.patch("placerank.data.manifest.source_commit", return_value=None):
        yield
