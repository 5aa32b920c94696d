"""Clients behind a load balancer, in a process of their own: `python -m tests.support.balanced`, a Plan on stdin.

Each client is a thread with a socket that GETs one path. Where a node refuses its connection, or hangs up before it
answers, it goes to the next, as a balancer would send it; once a body has begun it is bound to its node. A body that
ends early is a cut: the client counts it, and with `resume` goes on by Range at the next node, as containerd does.
Prints one JSON list with what each client got. Nothing here knows how nodes are started or killed (`fleet`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

CHUNK = 1 << 18
PATIENCE = 60.0
"""Seconds that a client waits for a byte."""
ROUNDS = 10
"""How often a client asks each node before it gives up."""


@dataclass(frozen=True)
class Plan:
    """`count` clients that start over `stagger` seconds, client n at node n of `urls`, round and round.

    Every `slow_every`-th takes no more than `slow_rate` bytes per second (0: none is slow). resume: who is cut goes on
    elsewhere.
    """

    urls: tuple[str, ...]
    path: str
    count: int
    stagger: float = 0.0
    slow_every: int = 0
    slow_rate: float = 0.0
    resume: bool = False


@dataclass
class Got:
    """What one client got. Times in seconds (monotonic), `crc` the CRC-32 of the whole body.

    nodes: the numbers of those that gave it a part, in order; `cuts`: at which byte each of them ended early;
    `refused`: how many connections came to nothing before an answer; `first`: when the first answer's headers came.
    """

    client: int
    began: float
    first: float = 0.0
    ended: float = 0.0
    status: int = 0
    length: int = 0
    crc: int = 0
    refused: int = 0
    nodes: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)


class _Silent(Exception):
    """The connection came to nothing before an answer."""


def _head(connection: socket.socket) -> tuple[int, int, bytes]:
    """Read the answer's head; return its status, the length of its body, and what has come of that."""
    head = b""
    while b"\r\n\r\n" not in head:
        try:
            received = connection.recv(CHUNK)
        except ConnectionError:
            received = b""
        if not received:
            raise _Silent
        head += received
    head, _, body = head.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split(" ", 2)[1]), int(headers.get("content-length", -1)), body


def _read(plan: Plan, node: int, got: Got, pace: float) -> bool:
    """Take what one node gives; return whether the client has all. Raises _Silent."""
    where = urlsplit(plan.urls[node])
    try:
        connection = socket.create_connection((where.hostname or "", where.port or 80), timeout=PATIENCE)
    except ConnectionError as error:
        raise _Silent from error
    with connection:
        span = f"Range: bytes={got.length}-\r\n" if got.length else ""
        request = f"GET {plan.path} HTTP/1.1\r\nHost: {where.netloc}\r\n{span}Connection: close\r\n\r\n"
        try:
            connection.sendall(request.encode())
            status, missing, body = _head(connection)
        except ConnectionError as error:
            raise _Silent from error
        if not got.nodes:
            got.status, got.first = status, time.monotonic()
        got.nodes.append(node)
        if status != (206 if got.length else 200):
            got.status = status
            return True
        began, start = time.monotonic(), got.length
        while True:
            got.length += len(body)
            got.crc = zlib.crc32(body, got.crc)
            if got.length - start == missing:
                return True
            if pace:
                time.sleep(max(0.0, began + (got.length - start) / pace - time.monotonic()))
            try:
                body = connection.recv(CHUNK)
            except ConnectionError:
                body = b""
            if not body:
                if missing < 0:
                    return True
                got.cuts.append(got.length)
                return False


def pull(plan: Plan, client: int) -> Got:
    """Be one client, to the end of its body."""
    node, pace = client % len(plan.urls), 0.0
    if plan.slow_every and client % plan.slow_every == 0:
        pace = plan.slow_rate
    got = Got(client, time.monotonic())
    for _ in range(ROUNDS * len(plan.urls)):
        try:
            if _read(plan, node, got, pace) or not plan.resume:
                break
        except _Silent:
            got.refused += 1
            if got.refused % len(plan.urls) == 0:
                time.sleep(0.1)  # all have refused: a balancer would answer 503 now, a client asks again
        except TimeoutError:
            got.cuts.append(got.length)
            break
        node = (node + 1) % len(plan.urls)
    got.ended = time.monotonic()
    return got


def main(plan: Plan) -> list[Got]:
    """Be all the clients; return when the last has ended."""
    results: list[Got] = []
    lock = threading.Lock()
    began = time.monotonic()

    def client(number: int) -> None:
        time.sleep(max(0.0, began + plan.stagger * number / plan.count - time.monotonic()))
        got = pull(plan, number)
        with lock:
            results.append(got)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(plan.count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(results, key=lambda got: got.client)


@asynccontextmanager
async def herding(plan: Plan, patience: float = 90) -> AsyncIterator[asyncio.Task[list[Got]]]:
    """Run the clients beside what the block does; the task returns what they got, within `patience` seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.balanced"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )

    async def results() -> list[Got]:
        async with asyncio.timeout(patience):
            out, _ = await process.communicate(json.dumps(asdict(plan)).encode())
        return [Got(**got) for got in json.loads(out)]

    task = asyncio.create_task(results())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if process.returncode is None:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    json.dump([asdict(got) for got in main(Plan(**wanted))], sys.stdout)
