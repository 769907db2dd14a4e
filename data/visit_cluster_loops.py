"""Compiled loops of ``visit_clusters``, apart: who makes no clusters imports neither numba nor torch."""

from typing import Any

import numpy as np

from ..kernels.threads import inlined, jit

_POWER = 0.3  # n visits are parted into n ** 0.3, the paper's
_ROUNDS = 10  # of k-means, at most


@inlined()
def _part(order: Any, a: int, b: int, item: Any, place: Any, k: int, label: Any, centre: Any, count: Any) -> int:
    """label[a:b] of visits order[a:b]: the nearest of up to k centres, of which two at least have some; returns k.

    k-means from centres evenly along the axis on which the visits reach farthest; visits of one place are halved by
    time.
    """
    axis, widest, start = 0, -1.0, 0.0
    for d in range(3):
        low = high = place[item[order[a]], d]
        total = 0.0
        for t in range(a, b):
            x = place[item[order[t]], d]
            low, high, total = min(low, x), max(high, x), total + x
        for j in range(k):
            centre[j, d] = total / (b - a)
        if high - low > widest:
            axis, widest, start = d, high - low, low
    if widest == 0:
        for t in range(a, b):
            label[t] = t >= (a + b) // 2
        return 2
    for j in range(k):
        centre[j, axis] = start + widest * (j + 0.5) / k
    label[a:b] = -1
    for _ in range(_ROUNDS):
        moved = 0
        for t in range(a, b):
            best, nearest = 0, np.inf
            for j in range(k):
                far = 0.0
                for d in range(3):
                    far += (place[item[order[t]], d] - centre[j, d]) ** 2
                if far < nearest:
                    best, nearest = j, far
            moved += label[t] != best
            label[t] = best
        if moved == 0:
            break
        count[:k] = 0
        for t in range(a, b):
            count[label[t]] += 1
        for j in range(k):
            if count[j] > 0:
                centre[j] = 0
        for t in range(a, b):
            for d in range(3):
                centre[label[t], d] += place[item[order[t]], d] / count[label[t]]
    return k


@jit()
def cluster(
    starts: Any, ends: Any, most: int, order: Any, item: Any, time: Any, place: Any, of: Any, out_item: Any,
    out_time: Any, out_size: Any,
) -> int:  # fmt: skip
    """Clusters of each group of visits order[starts[g]] to order[ends[g]], one after the other; how many there are.

    ``of`` says which group each is of.
    """
    label, fresh, done = np.empty(len(order), np.int64), np.empty(len(order), np.int64), 0
    centre, count = np.empty((len(order), 3)), np.empty(len(order), np.int64)
    stack = np.empty((len(order) + 1, 2), np.int64)
    for g in range(len(starts)):
        stack[0, 0], stack[0, 1], waiting = starts[g], ends[g], 1
        while waiting > 0:
            waiting -= 1
            a, b = stack[waiting, 0], stack[waiting, 1]
            if b - a > most:
                k = _part(order, a, b, item, place, max(2, int((b - a) ** _POWER)), label, centre, count)
                at = a
                for j in range(k):
                    began = at
                    for t in range(a, b):
                        if label[t] == j:
                            fresh[at] = order[t]
                            at += 1
                    if at > began:
                        stack[waiting, 0], stack[waiting, 1] = began, at
                        waiting += 1
                order[a:b] = fresh[a:b]
                continue
            seconds = 0
            centre[0] = 0
            for t in range(a, b):
                seconds += time[order[t]] - time[order[a]]
                for d in range(3):
                    centre[0, d] += place[item[order[t]], d] / (b - a)
            nearest = np.inf
            for t in range(a, b):
                far = 0.0
                for d in range(3):
                    far += (place[item[order[t]], d] - centre[0, d]) ** 2
                if far <= nearest:  # of equally near ones the latest
                    nearest, out_item[done] = far, item[order[t]]
            of[done], out_time[done], out_size[done] = g, time[order[a]] + seconds // (b - a), b - a
            done += 1
    return done


@jit()
def before(first: Any, end: Any, time: Any, moment: Any, out: Any) -> None:
    """out[r]: the first of visits first[r] to end[r] that is not before the moment, or end[r]."""
    for r in range(len(first)):
        a, b = first[r], end[r]
        while a < b:
            middle = (a + b) // 2
            if time[middle] < moment[r]:
                a = middle + 1
            else:
                b = middle
        out[r] = a
