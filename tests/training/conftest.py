"""What tests of training share."""

from types import SimpleNamespace

import pytest
from generators import make_world
from programs import traced_once  # noqa: F401


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """See ``make_world``; nobody writes into it."""
    return make_world(tmp_path_factory.mktemp("world"))
