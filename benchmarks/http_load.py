"""Requests over HTTP from a process of its own, in an open or a closed loop. It imports nothing but Python and NumPy.

    python -m placerank.benchmarks.http_load --port 8000 --bodies b.jsonl --seconds 20 --rate 40 --out a.jsonl

With a rate, requests arrive as a Poisson process does, whether or not earlier ones are answered, and an answer's time
is counted from when its request was due: one that waits for a connection, or that is sent late, took long. With
``--users`` instead each of so many sends its next request when it has the answer to the last.

``--out`` gets a line an answer: when it was due (seconds from the start), seconds it took, status, which body, and what
came back. Lines of ``--bodies`` are asked in turn.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

_GIVE_UP_S = 60.0


class Asker:
    """Sends bodies to POST /rank over as many connections as are needed, and keeps them."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        self.port = port
        self.bodies: Iterator[tuple[int, bytes]] = cycle(enumerate(bodies))
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.lines: list[dict[str, Any]] = []

    async def ask(self, start: float, due: float) -> None:
        at, body = next(self.bodies)
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                status, answer = await self._sent(body)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            status, answer = 0, f"{type(error).__name__}: {error}"
        took = time.perf_counter() - start - due
        self.lines.append({"due": due, "seconds": took, "status": status, "body": at, "answer": answer})

    async def _sent(self, body: bytes) -> tuple[int, Any]:
        if not self.free:
            self.free.append(await asyncio.open_connection("127.0.0.1", self.port))
        reader, writer = self.free.pop()
        writer.write(b"POST /rank HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in head if line.startswith("content-length:"))
        text = await reader.readexactly(length)
        if "connection: close" in head:
            writer.close()
        else:
            self.free.append((reader, writer))
        return int(head[0].split()[1]), json.loads(text)


async def load(asker: Asker, seconds: float, rate: float, users: int, seed: int) -> None:
    start = time.perf_counter()
    if users:

        async def one() -> None:
            while (now := time.perf_counter() - start) < seconds:
                await asker.ask(start, now)

        await asyncio.gather(*(one() for _ in range(users)))
        return
    rng = np.random.default_rng(seed)
    arrivals = rng.exponential(1 / rate, size=int(2 * rate * seconds) + 100).cumsum()
    tasks = []
    for due in arrivals[arrivals < seconds].tolist():
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - start)))
        tasks.append(asyncio.create_task(asker.ask(start, due)))
    await asyncio.gather(*tasks)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m placerank.benchmarks.http_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a request a line")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, in an open loop")
    parser.add_argument("--users", type=int, default=0, help="in a closed loop")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if (args.rate > 0) == (args.users > 0):
        parser.error("got both or none of --rate and --users, expected one")
    asker = Asker(args.port, args.bodies.read_bytes().splitlines())
    asyncio.run(load(asker, args.seconds, args.rate, args.users, args.seed))
    args.out.write_text("".join(f"{json.dumps(line)}\n" for line in asker.lines))


if __name__ == "__main__":
    main()
