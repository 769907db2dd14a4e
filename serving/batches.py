"""Requests that wait, and the one thread that ranks them: all that came while it was busy go together, up to a limit.

Nobody waits for company: a request that finds the thread idle is ranked at once, alone.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from .wire import Asked

T = TypeVar("T")
CANDIDATES = 4_096  # that are ranked together: more is no faster a candidate, and all wait for the last
_IN_REACH = 1_000  # what a request without candidates counts for: how many are in reach is not known before


class Full(Exception):
    """Too many wait.

    Attributes:
        retry_after: seconds after which there should be room again, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests wait; try again in {retry_after} s")
        self.retry_after = retry_after


class Batches(Generic[T]):
    """Ranks what is asked for, many together.

    Args:
        rank: gives an answer to each of some requests, in their order; called in a thread of its own.
        limit: requests that may wait; one that is being ranked does not.
    """

    def __init__(self, rank: Callable[[Sequence[Asked]], list[T]], limit: int) -> None:
        self.rank, self.limit = rank, limit
        self._waiting: deque[tuple[Asked, asyncio.Future[T]]] = deque()
        self._came = asyncio.Event()
        self._seconds = 0.0  # that a request took of the thread, lately

    def __len__(self) -> int:
        return len(self._waiting)

    async def answers(self, requests: Sequence[Asked]) -> list[T]:
        """Answers to requests, in their order.

        Raises:
            Full: there is no room for all of them; none is ranked then.
        """
        if not requests:
            return []
        if len(self._waiting) + len(requests) > self.limit:
            raise Full(max(1, math.ceil(len(self._waiting) * self._seconds)))
        loop = asyncio.get_running_loop()
        mine: list[tuple[Asked, asyncio.Future[T]]] = [(request, loop.create_future()) for request in requests]
        self._waiting.extend(mine)
        self._came.set()
        return list(await asyncio.gather(*(future for _, future in mine)))

    async def work(self) -> None:
        """Rank what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "ranker") as thread:
            while True:
                await self._came.wait()
                batch = self._next()
                start = time.perf_counter()
                try:
                    answers = await loop.run_in_executor(thread, self.rank, [request for request, _ in batch])
                except Exception as error:  # rank has an answer to everything: this is a bug, and theirs to be told
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # who asked is gone
                        future.set_result(answer)
                took = (time.perf_counter() - start) / len(batch)
                self._seconds += 0.1 * (took - self._seconds)

    def _next(self) -> list[tuple[Asked, "asyncio.Future[T]"]]:
        """What is ranked next: the first, and who follows as long as that is not too much."""
        batch: list[tuple[Asked, asyncio.Future[T]]] = []
        count = 0
        while self._waiting:
            candidates = self._waiting[0][0].candidates
            count += _IN_REACH if candidates is None else len(candidates)
            if batch and count > CANDIDATES:
                break
            batch.append(self._waiting.popleft())
        if not self._waiting:
            self._came.clear()
        return batch
