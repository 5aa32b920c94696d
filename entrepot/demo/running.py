"""The demo from its start to its end: a folder that goes with it, a registry, a mirror before it, and the clients.

What people see of it on the terminal is `entrepot.cli.demo`'s.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from entrepot.demo.link import Traffic, linked
from entrepot.demo.processes import child
from entrepot.demo.rollouts import Tally, machines, play
from entrepot.demo.sample import write_sample

UPSTREAM = "hub.example"
QUOTA = "108MiB"
_SPACE = 300 << 20
"""Bytes on the disk: the sample images twice for as long as they are written, then once, and what the mirror stores."""
_HOST = "127.0.0.1"
_SETTINGS = """\
listen = "{listen}"
admin = "{admin}"
data = {data}
region = "demo"
quota = "{quota}"
drain_timeout = "1s"
[log]
format = "json"
[[upstream]]
name = "{upstream}"
url = "{url}"
tag_ttl = "5s"
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for. Ports: wanted, not promised. seconds: how long clients pull, None: until it is ended."""

    port: int
    admin_port: int
    seconds: float | None = None
    keep: bool = False


class Summary(msgspec.Struct, frozen=True):
    """What happened. Bytes; fetched: what the registry gave, each digest `again` times more than once.

    seconds: how long clients pulled; endings: of their pulls; folder: where the data is, None where it is gone.
    """

    dashboard: str
    seconds: float
    pulls: int
    endings: dict[str, int]
    sent: int
    received: int
    fetched: int
    again: int
    problems: tuple[str, ...]
    folder: str | None = None


@dataclass
class Demo:
    """A demo. State: where its mirror is, since when clients pull, and what was counted.

    note: hears what people should know; watch: runs beside the clients, for as long as they pull.
    """

    wish: Wish
    note: Callable[[str], None]
    watch: Callable[[Demo], Coroutine[Any, Any, None]]
    tally: Tally = field(default_factory=Tally)
    traffic: Traffic = field(default_factory=Traffic)
    mirror: str = ""
    dashboard: str = ""
    folder: Path | None = None
    _begun: float | None = None
    _seconds: float = 0.0

    async def run(self) -> None:
        """Run it for as long as was asked for, or until cancelled; then nothing of it runs any more.

        Raises ChildDied when one of its processes ends before, Interrupted, OSError.
        """
        async with AsyncExitStack() as stack:
            folder = await stack.enter_async_context(_folder(keep=self.wish.keep))
            self.folder = folder if self.wish.keep else None
            # The mirror asks the registry for nothing before clients ask it: both come up at once.
            making = await stack.enter_async_context(_making(folder))
            link = await stack.enter_async_context(linked(self.traffic))
            settings = await asyncio.to_thread(self._configure, folder, link.url)
            serve = ("serve", "--config", settings)
            heir_of = None if self.wish.keep else folder
            mirror = await stack.enter_async_context(child("the mirror", serve, folder / "mirror.log", heir_of=heir_of))
            given = ("--from", await asyncio.shield(making), "--listen", f"{_HOST}:0", "--admin", f"{_HOST}:0")
            registry = await stack.enter_async_context(child("the registry", (*serve, *given), folder / "registry.log"))
            self.mirror = await mirror.serving()
            self.note(f"dashboard: {self.dashboard}")
            link.target = await registry.serving()
            self._begun = time.monotonic()
            try:
                await _first(self._play(), self.watch(self), mirror.died(), registry.died())
            finally:
                self._seconds = self.seconds
                self._begun = None

    @property
    def seconds(self) -> float:
        """How long clients have pulled, or did."""
        return self._seconds if self._begun is None else time.monotonic() - self._begun

    def summary(self) -> Summary:
        """Return what happened up to now."""
        return Summary(
            dashboard=self.dashboard,
            seconds=round(self.seconds, 1),
            pulls=self.tally.pulls,
            endings=dict(self.tally.endings),
            sent=self.tally.sent,
            received=self.traffic.received,
            fetched=len(self.traffic.fetched),
            again=self.traffic.again,
            problems=tuple(self.tally.problems),
            folder=None if self.folder is None else str(self.folder),
        )

    async def _play(self) -> None:
        nodes = machines(self.mirror, self.tally)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wish.seconds):
                await play(nodes, self.tally)

    def _configure(self, folder: Path, upstream: str) -> Path:
        """Write the configuration of the mirror; the registry is told the rest by flags."""
        port, admin_port = self._port(self.wish.port), self._port(self.wish.admin_port)
        self.dashboard = f"http://{_HOST}:{admin_port}/dashboard/"
        file = folder / "demo.toml"
        file.write_text(
            _SETTINGS.format(
                listen=f"{_HOST}:{port}",
                admin=f"{_HOST}:{admin_port}",
                data=msgspec.json.encode(str(folder / "data")).decode(),
                upstream=UPSTREAM,
                url=upstream,
                quota=QUOTA,
            )
        )
        return file

    def _port(self, wanted: int) -> int:
        """Return a port on which one can listen: the one wanted, or where it is taken any."""
        try:
            return _free(wanted)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"the demo cannot listen on port {wanted}: {error.strerror}") from None
            port = _free(0)
            self.note(f"port {wanted} is taken: {port} is used instead")
            return port


def _free(port: int) -> int:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((_HOST, port))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _folder(*, keep: bool) -> AsyncIterator[Path]:
    folder = Path(await asyncio.to_thread(_make_folder))
    try:
        yield folder
    finally:
        if not keep:
            await asyncio.to_thread(shutil.rmtree, folder)


def _make_folder() -> str:
    """Raises OSError where there is none, or no space."""
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < _SPACE:
        text = f"the demo takes {_SPACE >> 20} MiB of disk, and {free >> 20} MiB are free; TMPDIR names another folder"
        raise OSError(errno.ENOSPC, text, place)
    return tempfile.mkdtemp(prefix="entrepot-demo-")


@asynccontextmanager
async def _making(folder: Path) -> AsyncIterator[asyncio.Future[Path]]:
    """Give the bundle of the sample images, once it is made; on leaving nothing writes to the folder any more."""
    stop = threading.Event()
    making = asyncio.ensure_future(asyncio.to_thread(write_sample, folder, UPSTREAM, stop))
    try:
        yield making
    finally:
        stop.set()
        await asyncio.wait([making])
        if not making.cancelled():
            making.exception()


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Wait for the first that ends, end the others, and raise what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
