"""Requests that wait while the ranker is busy: who is ranked with whom, and who is sent away."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from placerank.serving.batches import CANDIDATES, Batches, Full
from placerank.serving.wire import Asked


def request(user: int, candidates: int | None = 1) -> Asked:
    return Asked(user=user, time=0, candidates=None if candidates is None else [0] * candidates)


class Ranker:
    """Answers with users' numbers, when it is let go on; ``batches`` are those that it was asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)
        self.threads: set[int] = set()

    def __call__(self, requests: Sequence[Asked]) -> list[int]:
        users = [int(r.user or 0) for r in requests]
        self.batches.append(users)
        self.threads.add(threading.get_ident())
        assert self.go.acquire(timeout=10)
        if 13 in users:
            raise RuntimeError("a bug")
        return users


async def started(batches: Batches[int], ranker: Ranker, count: int) -> None:
    """Wait until the ranker has been asked for so many batches."""
    while len(ranker.batches) < count:
        await asyncio.sleep(0.001)


def test_all_that_came_while_it_was_busy_go_together() -> None:
    async def run() -> None:
        ranker = Ranker()
        batches = Batches(ranker, 100)
        work = asyncio.create_task(batches.work())
        asks = [asyncio.create_task(batches.answers([request(0)]))]
        await started(batches, ranker, 1)  # nobody waits for company
        asks += [asyncio.create_task(batches.answers([request(i), request(10 * i)])) for i in (1, 2, 3)]
        await asyncio.sleep(0.01)
        assert len(batches) == 6 and ranker.batches == [[0]]
        ranker.go.release(2)
        assert await asyncio.gather(*asks) == [[0], [1, 10], [2, 20], [3, 30]]
        assert ranker.batches == [[0], [1, 10, 2, 20, 3, 30]] and len(batches) == 0
        assert ranker.threads and threading.get_ident() not in ranker.threads and len(ranker.threads) == 1
        assert await batches.answers([]) == []
        await asyncio.sleep(0.01)
        assert not work.done(), "an empty list ended it"
        work.cancel()

    asyncio.run(run())


def test_a_batch_has_an_end() -> None:
    async def run() -> None:
        ranker = Ranker()
        ranker.go.release(100)
        batches = Batches(ranker, 100)
        half, more = CANDIDATES // 2, CANDIDATES + 1
        every = [
            *(request(i, half) for i in (1, 2, 3)),
            request(4, more),
            *(request(i, None) for i in range(20, 30)),
            *(request(i, 0) for i in range(30, 40)),
        ]
        asks = [asyncio.create_task(batches.answers([one])) for one in every]
        await asyncio.sleep(0)
        work = asyncio.create_task(batches.work())
        assert await asyncio.gather(*asks) == [[r.user] for r in every]
        assert ranker.batches[:3] == [[1, 2], [3], [4]], "one that is too large alone is ranked all the same"
        assert max(map(len, ranker.batches[3:-1])) <= 4
        assert [user for batch in ranker.batches for user in batch] == [r.user for r in every]
        work.cancel()

    asyncio.run(run())


def test_too_many_are_sent_away() -> None:
    async def run() -> None:
        ranker = Ranker()
        batches = Batches(ranker, 3)
        work = asyncio.create_task(batches.work())
        asks = [asyncio.create_task(batches.answers([request(1)]))]
        await started(batches, ranker, 1)
        asks.append(asyncio.create_task(batches.answers([request(2), request(3)])))
        await asyncio.sleep(0.01)
        with pytest.raises(Full, match="too many requests wait; try again in 1 s") as full:
            await batches.answers([request(4), request(5)])
        assert full.value.retry_after == 1 and len(batches) == 2, "no part of it was taken"
        asks.append(asyncio.create_task(batches.answers([request(6)])))  # there is room for one
        ranker.go.release(2)
        assert await asyncio.gather(*asks) == [[1], [2, 3], [6]]
        work.cancel()

    asyncio.run(run())


def test_who_has_gone_and_who_fails_do_not_stop_the_others() -> None:
    async def run() -> None:
        ranker = Ranker()
        batches = Batches(ranker, 10)
        work = asyncio.create_task(batches.work())
        first, gone = (asyncio.create_task(batches.answers([request(i)])) for i in (1, 2))
        await started(batches, ranker, 1)
        gone.cancel()
        third = asyncio.create_task(batches.answers([request(3)]))
        await asyncio.sleep(0.01)
        ranker.go.release(2)
        assert await first == [1] and await third == [3]
        ranker.go.release(2)
        with pytest.raises(RuntimeError, match="a bug"):
            await batches.answers([request(13), request(13)])
        assert await batches.answers([request(4)]) == [4]
        work.cancel()

    asyncio.run(run())
