"""The workers of a supervisor: started, watched, started again when they die, replaced when it is configured anew."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Protocol

import msgspec

from entrepot.config import Config
from entrepot.views import WorkerView
from entrepot.workers.wire import (
    Ask,
    Channel,
    Drain,
    Ready,
    Report,
    SetLevel,
    Start,
    Steps,
    decode_from_worker,
    send_start,
)
from metrics.families import Snapshot
from metrics.prometheus import Metrics
from metrics.pulls.model import Step

READY_SECONDS = 30.0
ASK_SECONDS = 0.5
SILENT_SECONDS = 6.0
RESTART_SECONDS = 0.2
MOST_RESTART_SECONDS = 10.0
SETTLED_SECONDS = 30.0
HUNG_SECONDS = 90.0
LAST_SECONDS = 10.0
LEAVING_SECONDS = 10.0
log = logging.getLogger(__name__)


class Listener(Protocol):
    """Who is told what clients ask of workers."""

    def hear(self, pid: int, steps: Sequence[Step]) -> None: ...

    def lose(self, pid: int) -> None:
        """That process is gone."""
        ...


class Worker:
    """One process. State: its last report and when it came, whether it serves, and whether it was told to end."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.started = monotonic()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.report: Report | None = None
        self.reported = asyncio.Event()
        self.heard = monotonic()
        self.ending = False

    def drain(self) -> None:
        """Tell it to finish and end."""
        self.ending = True
        self.channel.send(Drain())

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def _next(self) -> bytes | None:
        # A question comes before the end: it may be this process that has stood still.
        for seconds in (HUNG_SECONDS, LAST_SECONDS):
            try:
                async with asyncio.timeout(seconds):
                    return await self.channel.receive()
            except TimeoutError:
                self.channel.send(Ask())
        log.error("worker stands still and is killed", extra={"worker": self.number, "seconds": HUNG_SECONDS})
        self.kill()
        return None

    async def listen(self, listener: Listener) -> None:
        """Take what it says until it is gone; one that says nothing for very long is ended."""
        while (message := await self._next()) is not None:
            try:
                told = decode_from_worker(message)
            except msgspec.MsgspecError:
                log.exception("worker speaks another language and is killed", extra={"worker": self.number})
                self.kill()
                return
            self.heard = monotonic()
            if isinstance(told, Ready):
                self.ready.set_result(None)
            elif isinstance(told, Steps):
                listener.hear(self.process.pid, told.steps)
            else:
                self.report = told
                self.reported.set()

    async def ended(self) -> int:
        """Return the exit code of one that is not heard any more; it is ended where it does not do so itself."""
        try:
            async with asyncio.timeout(LEAVING_SECONDS):
                return await self.process.wait()
        except TimeoutError:
            log.error("worker has said its last word, goes on, and is killed", extra={"worker": self.number})
        self.kill()
        return await self.process.wait()


class Crew:
    """State: the worker of each number, those that still drain, and how often each number was started again."""

    def __init__(
        self,
        config: Config,
        sockets: Sequence[socket.socket],
        metrics: Metrics,
        listener: Listener,
        on_death: Callable[[], object],
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._metrics = metrics
        self._listener = listener
        self._on_death = on_death
        self._group = asyncio.TaskGroup()
        self._current: dict[int, Worker] = {}
        self._all: set[Worker] = set()
        self._restarts: dict[int, int] = {}
        self._ended = asyncio.Event()

    def reports(self) -> list[Report]:
        """Return what each worker said last."""
        return [worker.report for worker in self._all if worker.report is not None]

    def snapshots(self) -> list[Snapshot]:
        """Return what the workers have counted."""
        return [report.metrics for report in self.reports()]

    def views(self) -> list[WorkerView]:
        """Return the workers for people."""
        return [
            WorkerView(number, worker.process.pid, self._answers(worker), self._restarts.get(number, 0))
            for number, worker in sorted(self._current.items())
        ]

    async def refresh(self) -> None:
        """Ask all for a report and wait a moment for it; one that stands still keeps its last."""
        asked = [worker for worker in self._all if not worker.channel.backlog]
        for worker in asked:
            worker.reported.clear()
            worker.channel.send(Ask())
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                await asyncio.gather(*(worker.reported.wait() for worker in asked))
        for number, worker in self._current.items():
            self._metrics.worker_up(number, up=self._answers(worker))
            if worker.report is not None:
                self._metrics.worker_used(number, resident=worker.report.resident, cpu=worker.report.cpu)

    async def replace(self, config: Config) -> None:
        """Start workers that do what `config` says, one by one; each takes the place of one that then drains.

        Raises OSError when one does not start: those that are left go on as they were.
        """
        before, self._config = self._config, config
        try:
            for number in sorted(self._current):
                worker = await self._start(number)
                self._current[number].drain()
                self._current[number] = worker
        except BaseException:
            self._config = before
            raise

    def set_level(self, config: Config) -> None:
        """Let all log as `config` says, which is the one they have but for that; those too that still drain."""
        self._config = config
        for worker in self._all:
            worker.channel.send(SetLevel(config.log.level))

    async def __aenter__(self) -> Crew:
        await self._group.__aenter__()
        try:
            numbers = range(1, self._config.workers + 1)
            started = await asyncio.gather(*map(self._start, numbers), return_exceptions=True)
            for number, worker in zip(numbers, started, strict=True):
                if isinstance(worker, BaseException):
                    raise worker
                self._current[number] = worker
        except BaseException as error:
            await self._end(type(error), error)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await self._end(kind, error)

    async def _end(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._ended.set()
        for worker in self._all:
            if not worker.ending:
                worker.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout + 5):
                await asyncio.gather(*(worker.process.wait() for worker in self._all))
        for worker in self._all:
            if worker.process.returncode is None:
                log.warning("worker does not end and is killed", extra={"worker": worker.number})
                worker.kill()
        await self._group.__aexit__(None, None, None)

    async def _start(self, number: int) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                numbers = [theirs.fileno(), *(one.fileno() for one in self._sockets)]
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "entrepot.workers",
                    *map(str, numbers),
                    pass_fds=numbers,
                    stdin=asyncio.subprocess.DEVNULL,
                )
                send_start(ours, Start(number, self._config))
            except BaseException:
                ours.close()
                raise
        worker = Worker(number, process, await Channel.open(ours))
        self._all.add(worker)
        worker.channel.send(SetLevel(self._config.log.level))  # it may have changed since the start was sent
        self._group.create_task(self._tend(worker), name=f"worker {number}")
        if self._ended.is_set():
            worker.drain()
        await asyncio.wait([worker.ready], timeout=READY_SECONDS)
        if not worker.ready.done() or worker.ready.cancelled():
            worker.ending = True
            worker.kill()
            raise OSError(f"worker {number} did not start; the log has the reason")
        self._metrics.worker_up(number, up=True)
        log.info("worker answers", extra={"worker": number, "pid": process.pid})
        return worker

    async def _tend(self, worker: Worker) -> None:
        """Listen to a worker until it is gone; when nobody told it to end, start another in its place."""
        await worker.listen(self._listener)
        code = await worker.ended()
        self._listener.lose(worker.process.pid)
        worker.ready.cancel()
        await worker.channel.aclose()
        self._all.discard(worker)
        if worker.report is not None:
            self._metrics.absorb(worker.report.metrics)
        if self._ended.is_set():
            return
        if code:
            self._on_death()
        if worker.ending or self._current.get(worker.number) is not worker:
            return
        self._metrics.worker_up(worker.number, up=False)
        log.error("worker died and is started again", extra={"worker": worker.number, "how": _how(code)})
        await self._again(worker)

    async def _again(self, dead: Worker) -> None:
        """Start one in the place of a dead worker, unless somebody else (a reload) does."""
        number = dead.number
        delay = 0.0 if monotonic() - dead.started > SETTLED_SECONDS else RESTART_SECONDS
        while not await _happens(self._ended, delay) and self._current[number] is dead:
            delay = min(MOST_RESTART_SECONDS, max(RESTART_SECONDS, delay * 2))
            self._restarts[number] = self._restarts.get(number, 0) + 1
            self._metrics.worker_restarted(number)
            try:
                worker = await self._start(number)
            except OSError as error:
                log.error("worker cannot be started", extra={"worker": number, "why": str(error)})
                continue
            if self._current[number] is dead:
                self._current[number] = worker
            else:
                worker.drain()

    def _answers(self, worker: Worker) -> bool:
        return worker.process.returncode is None and monotonic() - worker.heard < SILENT_SECONDS


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event`, at most so many seconds, and tell whether it has happened."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@asynccontextmanager
async def working(
    config: Config,
    sockets: Sequence[socket.socket],
    metrics: Metrics,
    listener: Listener,
    on_death: Callable[[], object],
) -> AsyncIterator[Crew]:
    """Run `config.workers` workers on `sockets` for as long as the context lasts; then let them drain.

    Raises OSError when they do not start.
    """
    async with Crew(config, sockets, metrics, listener, on_death) as crew:
        metrics.include(crew.snapshots)
        try:
            yield crew
        finally:
            await crew.refresh()
