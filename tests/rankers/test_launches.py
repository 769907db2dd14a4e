"""What rankers start on a GPU compiles as they start it, and spills no register."""

import pytest
from compiled import OF_RANKERS, SECONDS, check_compiled, run_aot


@pytest.mark.timeout(SECONDS)
def test_launches_of_rankers_compile_without_spills() -> None:
    """Each for one of the four targets; the kernels' own lists, in ``test_compile.py``, are for all of them."""
    check_compiled(run_aot(*OF_RANKERS), "ranker_launches")
