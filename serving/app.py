"""The HTTP side: what is asked at which path, and what is counted."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as in_text
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .batches import Batches, Full
from .versions import Version, Versions
from .wire import Answer, Asked, Refused, asked, read

log = logging.getLogger(__name__)
_MOST_BYTES = 8 * 2**20  # of a body
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry()
        ProcessCollector(registry=here)
        self.requests = Counter("placerank_http_requests", "Requests over HTTP", ["path", "status"], registry=here)
        self.seconds = Histogram(
            "placerank_rank_seconds", "Seconds to an answer of /rank", buckets=_SECONDS, registry=here
        )
        self.batch = Histogram("placerank_batch_requests", "Requests ranked together", buckets=_SIZES, registry=here)
        self.batch_seconds = Histogram(
            "placerank_batch_seconds", "Seconds to rank those", buckets=_SECONDS, registry=here
        )
        self.waiting = Gauge("placerank_waiting_requests", "Requests that wait for the ranker", registry=here)
        self.reloads = Counter("placerank_reloads", "New versions, by what became of them", ["outcome"], registry=here)
        self.version = Gauge("placerank_export", "1 for the version that serves", ["version"], registry=here)


class Service:
    """Answers requests from the current version, and lets the next one take its place."""

    def __init__(self, versions: Versions, waiting: int, watch_s: float) -> None:
        self.versions, self.watch_s = versions, watch_s
        self.measures = Measures()
        self.batches = Batches(self._rank, waiting)
        self.measures.waiting.set_function(lambda: len(self.batches))
        self.measures.version.labels(versions.current.name).set(1)
        for outcome in ("serves", "refused"):
            self.measures.reloads.labels(outcome)
        self._one_reload = asyncio.Lock()

    def app(self) -> Starlette:
        """The ASGI application."""
        ends: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/rank", self.rank),
            ("POST", "/reload", self.reload),
            ("GET", "/health", self.health),
            ("GET", "/metrics", self.metrics),
        ]
        routes = [Route(path, self._counted(path, end), methods=[method]) for method, path, end in ends]
        return Starlette(routes=routes, lifespan=self._lifespan)

    async def rank(self, request: Request) -> Response:
        """Lists of places for one request or several; see ``wire``."""
        start = time.perf_counter()
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _error(413, f"body: got more than {_MOST_BYTES >> 20} MiB; ask for less at a time")
        try:
            value = read(bytes(body))
            one = not isinstance(value, list)
            values = [value] if one else value
            answers: list[Any] = [_asked(x) for x in values]
        except ValueError as error:
            return _error(400, str(error))
        well = [i for i, x in enumerate(answers) if isinstance(x, Asked)]
        if len(well) > self.batches.limit:
            return _error(
                413, f"got {len(well):,} requests, at most {self.batches.limit:,} may wait; send fewer at a time"
            )
        try:
            for i, ranked in zip(well, await self.batches.answers([answers[i] for i in well]), strict=True):
                answers[i] = ranked
        except Full as error:
            return _error(503, str(error), {"Retry-After": str(error.retry_after)})
        self.measures.seconds.observe(time.perf_counter() - start)
        found = [_told(answer) for answer in answers]
        if not one:
            return _json([told for _, told in found])
        ((status, told),) = found
        return _json(told, status)

    async def reload(self, request: Request) -> Response:
        """Look for a new export or delta now, and serve it."""
        try:
            new = await self._renew(again=True)
        except (OSError, ValueError) as error:
            return _error(409, str(error))
        return _json({"reloaded": new, "version": self.versions.current.name, "error": self.versions.error})

    async def health(self, request: Request) -> Response:
        """What is served since when, and why not all that lies there, if so."""
        current = self.versions.current
        return _json(
            {
                "ready": True,
                "version": current.name,
                "content_hash": current.content,
                "since": current.since.isoformat(timespec="seconds"),
                "export": str(self.versions.export),
                "error": self.versions.error,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """As Prometheus reads it."""
        return Response(in_text(self.measures.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    def _rank(self, requests: Any) -> list[tuple[Version, Answer]]:
        start = time.perf_counter()
        answers = self.versions.rank(requests)
        self.measures.batch.observe(len(requests))
        self.measures.batch_seconds.observe(time.perf_counter() - start)
        return answers

    async def _renew(self, again: bool) -> bool:
        async with self._one_reload:
            before = self.versions.error
            try:
                new = await asyncio.to_thread(self.versions.renew, again)
            except Exception:
                if again or self.versions.error != before:
                    self.measures.reloads.labels("refused").inc()
                raise
            if new:
                self.measures.reloads.labels("serves").inc()
                self.measures.version.clear()
                self.measures.version.labels(self.versions.current.name).set(1)
            return new

    async def _watch(self) -> None:
        while self.watch_s:
            await asyncio.sleep(self.watch_s)
            with contextlib.suppress(Exception):  # told by then, in the log and in /health
                await self._renew(again=False)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.batches.work()), asyncio.create_task(self._watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counted(self, path: str, end: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Any]:
        async def counted(request: Request) -> Response:
            status = 500
            try:
                response = await end(request)
                status = response.status_code
            except ClientDisconnect:  # who asked is gone
                status, response = 499, Response(status_code=400)
            finally:
                self.measures.requests.labels(path, status).inc()
            return response

        return counted


def _asked(value: Any) -> Asked | Refused:
    try:
        return asked(value)
    except ValueError as error:
        return Refused(str(error))


def _told(answer: Refused | tuple[Version, Answer]) -> tuple[int, dict[str, Any]]:
    """What is said of one request, and the status of an answer that is to that one alone."""
    version, columns = (None, answer) if isinstance(answer, Refused) else answer
    if isinstance(columns, Refused):
        return 500 if columns.ours else 400, {"error": columns.error}
    assert version is not None
    return 200, {"version": version.name, **columns}


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": text}, status, headers)
