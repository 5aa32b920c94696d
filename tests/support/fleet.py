"""A fleet under test: some `entrepot serve` on 127.0.0.1 that share a Redis, and a bucket where a test has one.

Each node has its own data folder and its own ports, which it keeps when it is started again. Redis and the bucket's
server are in `redis` and `bucket`, clients behind a load balancer in `balanced`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import aiohttp

from tests.support.balanced import Plan
from tests.support.mirror import Mirror
from tests.support.processes import ProgramFailed, run

SECRET = "what the nodes of this fleet share"


class Node(Mirror):
    """One node. It advertises the address that it listens on."""

    @property
    def running(self) -> bool:
        return self._program is not None and self._program.running

    def readiness(self) -> str:
        """Return what /readyz says, "" where it answers anything but 200."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.admin}/readyz", timeout=5) as answer:
            return str(json.load(answer)["status"])
        return ""

    @property
    def settled(self) -> bool:
        """All that was begun is stored: a body may end a moment before its commit."""
        return bool(self.status()["store"]["spools"] == 0)

    def command(self, *words: str) -> str:
        """Run a command on this node's data, which its process answers, and return what it prints."""
        argv = [sys.executable, "-m", "entrepot", *words, "--data", str(self.data)]
        return run(argv, env=self.env).stdout

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): it is there, and does nothing."""
        self.program.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self.program.signal(signal.SIGCONT)


class Fleet:
    """`count` nodes under `folder`, each with one upstream, docker.io at `upstream_url`.

    `store` is a bucket's URL and `env` what its client reads of the environment; `config` is the text of a file that
    all have; `flags` are added for all.
    """

    def __init__(
        self,
        redis_url: str,
        upstream_url: str,
        folder: Path,
        *,
        count: int = 3,
        store: str | None = None,
        workers: int = 1,
        config: str = "",
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        secret: str = SECRET,
    ) -> None:
        self._redis_url = redis_url
        self._upstream_url = upstream_url
        self._folder = folder
        self._config = config
        self._env = {**(env or {}), "ENTREPOT_FLEET_SECRET": secret}
        self._flags = [*flags, *(("--store", store) if store else ())]
        self._flags += ["--workers", str(workers)] if workers > 1 else []
        self.nodes = [self.another() for _ in range(count)]

    def another(self, *, upstream_url: str | None = None, secret: str | None = None) -> Node:
        """Return one more node, not started and not among `nodes`."""
        number = sum(1 for _ in self._folder.glob("node*"))
        return Node(
            self._folder / f"node{number}",
            {"docker.io": upstream_url or self._upstream_url},
            config=self._config,
            flags=("--redis", self._redis_url, *self._flags),
            env={**self._env, **({"ENTREPOT_FLEET_SECRET": secret} if secret else {})},
        )

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    async def start(self) -> None:
        """Start what does not run, all at once, and wait until each is ready."""
        async with asyncio.TaskGroup() as group:
            for node in self.nodes:
                if not node.running:
                    group.create_task(asyncio.to_thread(node.start))

    async def stop(self) -> None:
        """End what runs, all at once. Raises ProgramFailed unless each ends in order."""
        async with asyncio.TaskGroup() as group:
            for node in self.nodes:
                if node.running:
                    group.create_task(asyncio.to_thread(node.stop))

    def plan(self, path: str, count: int, stagger: float = 0.0, *, resume: bool = False) -> Plan:
        """Return `count` clients of all nodes that GET `path`, begun over `stagger` seconds."""
        return Plan(self.urls, path, count, stagger, resume=resume)


@asynccontextmanager
async def fleet_of(fleet: Fleet) -> AsyncIterator[Fleet]:
    """Start the nodes, and end them whatever happens."""
    try:
        await fleet.start()
        yield fleet
        await fleet.stop()
    finally:
        for node in fleet.nodes:
            if node.running:
                node.resume()
                node.kill()


@dataclass(frozen=True)
class Answer:
    """What a node answered, and after how many seconds its headers and its end came."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first: float
    seconds: float


async def ask(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """Ask on a connection of its own, and read to the end. Raises aiohttp.ClientError where that does not come."""
    began = monotonic()
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
        session.request(method, url, headers=headers, allow_redirects=False) as answer,
    ):
        first = monotonic() - began
        body = await answer.read()
        return Answer(answer.status, dict(answer.headers), body, first, monotonic() - began)


async def eventually(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what only looking at other processes can tell; `what` is said where it does not come."""
    deadline = monotonic() + seconds
    while not await asyncio.to_thread(condition):
        if monotonic() > deadline:
            raise ProgramFailed(f"after {seconds} s it is not so that {what}")
        await asyncio.sleep(0.05)
