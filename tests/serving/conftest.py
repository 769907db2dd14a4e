"""Exports that all tests of serving share."""

from types import SimpleNamespace

import pytest
from served import two_exports


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``a`` and ``b``: exports of two rankers of one city."""
    return two_exports(tmp_path_factory.mktemp("served"))
