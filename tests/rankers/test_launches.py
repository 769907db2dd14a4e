"""What rankers start on a GPU compiles for every target, as they start it, and spills no register."""

import pytest
from compiled import SECONDS, check_compiled


@pytest.mark.timeout(SECONDS)
def test_launches_of_rankers_compile_without_spills() -> None:
    check_compiled("ranker_launches")
