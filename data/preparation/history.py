"""What a user did before a moment: jagged histories and visit counts, without a Python loop over rows.

Everything here works on rows sorted by (user, time), where "before" always means strictly before: rows of the
same user at the same moment do not see each other.
"""

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, first_of_run, sort_order, starts_run


def history_ranges(
    user: Ints, time: Ints, positive: NDArray[np.bool_], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The last ``longest`` positives of the user strictly before each row.

    Args:
        user, time: sorted by (user, time), [R].
        positive: which rows are positives, bool [R].
        longest: at most so many.

    Returns:
        start, end: int64 [R]. Counting the positive rows alone from 0 in their order (oldest first), the
        history of row i is positives [start_i, end_i).
    """
    before: NDArray[np.int64] = np.cumsum(positive) - positive
    end: NDArray[np.int64] = before[first_of_run(starts_run(user, time))]
    start = np.maximum(before[first_of_run(starts_run(user))], end - longest)
    return start, end


def earlier_visits(
    user: Ints, item: Ints, time: Ints, positive: NDArray[np.bool_], folded: Ints | None = None
) -> NDArray[np.int32]:
    """Positives of the row's user on the row's item strictly before the row's time, int32 [R]; rows in any order.

    Args:
        folded: positives of the row's user and item that came before all rows and are in none; all those of a user and
            an item are added up.
    """
    order = sort_order(user, item, time)
    user, item, time, positive = user[order], item[order], time[order], positive[order]
    before: NDArray[np.int64] = np.cumsum(positive) - positive
    moment, pair = first_of_run(starts_run(user, item, time)), first_of_run(starts_run(user, item))
    visits = np.empty(len(order), np.int32)
    visits[order] = before[moment] - before[pair]
    if folded is not None and folded.any():
        visits[order] += np.bincount(pair, folded[order], minlength=len(order)).astype(np.int32)[pair]
    return visits
