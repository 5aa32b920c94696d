"""This process's link to Redis: short calls, and a breaker for when Redis is slow or gone.

    up     a call failed, or did not end in time           down: every call is refused at once
    up     nothing is answered within SLOW_SECONDS         down
    down   a quick probe, by a task of the link's own      up

Nobody who waits for content pays for finding out: the first call that fails costs CALL_SECONDS at most, later ones
nothing. A pull makes several calls, one after the other, so that a Redis that is slow and not dead would cost it their
sum: the second slow call in a row, with no quick one in between, is the last, and only a quick probe lets calls through
again. Where this process is too busy to tell whether Redis is slow, or more calls are made than the connections take,
a call has twice that time; one that is given up then opens the breaker only if a probe fails, too. What is asked lies
in `leases`, `nodes`, `answers` and `hosts`, what an error means in `problems`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisError

from metrics.events import Emit, RedisCall, RedisHealth, RedisRefused
from proxy.fleet.address import RedisAddress
from proxy.fleet.dialing import CONNECTIONS, Client, Command, dial
from proxy.fleet.problems import problem_of
from proxy.fleet.scripts import Script

CALL_SECONDS = 0.1
SLOW_SECONDS = 0.05
PROBE_SECONDS = 0.75
PROBE_EVERY = 1.0
WAITING_MOST = 1024
BATCH = 100
_FIRST_PROBE = 0.1
_SOUND_SECONDS = 10.0
_LATE = 0.02
_PUNCTUAL = 0.005
_ROW_SECONDS = 2.5
_TRIES = 3
_CLOSING_SECONDS = 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")
Keys = Sequence[str]
Arguments = Sequence[str | bytes | int | float]


class LinkDown(Exception):
    """Redis was not asked, or did not answer: go on alone. The message is for people and shows no secret."""


def prefix_of(region: str) -> str:
    """Return what the keys of a region's fleet begin with; 1 is the version of their layout."""
    return f"entrepot:1:{region}:"


@asynccontextmanager
async def open_link(address: RedisAddress, emit: Emit, *, prefix: str) -> AsyncIterator[Link]:
    """Give a link to Redis while the context lasts. Neither fails nor waits where Redis does not answer."""
    client = dial(address)
    link = Link(client, address, emit, prefix=prefix)
    watch = asyncio.create_task(link.watch(), name="is Redis there")
    try:
        yield link
    finally:
        link.end()
        watch.cancel()
        await asyncio.wait([watch])
        with suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await client.aclose()


class _Look:
    """Calls `slow` where something asked of Redis takes longer than SLOW_SECONDS, and this process is not to blame."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: Callable[[], None]) -> None:
        self.began = loop.time()
        self.asked_at: float | None = None
        self._loop = loop
        self._slow = slow
        self._worked = time.thread_time()
        self._timer = loop.call_at(self.began + SLOW_SECONDS, self._look)

    def end(self) -> None:
        """It is over."""
        self._timer.cancel()

    def _look(self) -> None:
        late = self._loop.time() - self.began - SLOW_SECONDS > _PUNCTUAL
        waited = self.asked_at is None or self.asked_at - self.began > _PUNCTUAL
        if not (late or waited or time.thread_time() - self._worked > SLOW_SECONDS / 2):
            self._slow()


class _Patience(_Look):
    """The time limit of one call; `busy`: it ran into it, and that says nothing of Redis."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: Callable[[], None]) -> None:
        super().__init__(loop, slow)
        self.busy = False
        self.limit = asyncio.timeout_at(self.began + 2 * CALL_SECONDS)

    def _look(self) -> None:
        super()._look()
        end = self.began + CALL_SECONDS
        if self._loop.time() < end:
            self._timer = self._loop.call_at(end, self._judge)
        else:  # now: the limit itself may be over, too
            self._judge()

    def _judge(self) -> None:
        """The time for a call is over: end it, unless this loop, or the wait for a place, took too much of it."""
        now = self._loop.time()
        late = now - self.began > CALL_SECONDS + _LATE or time.thread_time() - self._worked > CALL_SECONDS / 2
        self.busy = late or self.asked_at is None or self.asked_at - self.began > CALL_SECONDS / 2
        if not self.busy:
            self.limit.reschedule(now)


class Link:
    """Calls to Redis. `problem` is why it is not used now, None while it is. Made by `open_link`."""

    def __init__(self, client: Client, address: RedisAddress, emit: Emit, *, prefix: str) -> None:
        self.prefix = prefix
        self.problem: str | None = None
        self._client = client
        self._address = address
        self._emit = emit
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._waiting = 0
        self._doubt = asyncio.Event()
        self._doubt.set()
        self._told: bool | None = None
        self._ended = False
        self._mended_at = 0.0
        self._slow_since: float | None = None

    @property
    def up(self) -> bool:
        """Calls are let through."""
        return self.problem is None

    @property
    def region(self) -> str:
        """The region of `prefix`."""
        return self.prefix.rstrip(":").rpartition(":")[2]

    async def run(self, script: Script, keys: Keys, args: Arguments = ()) -> Any:
        """Return what `script` returns: bytes, int, None or a list of them.

        Raises LinkDown: at once while Redis is not used, within CALL_SECONDS otherwise (see the module).
        """
        return await self._call(script.name, partial(self._evaluate, script, keys, args))

    async def run_many(self, script: Script, calls: Sequence[tuple[Keys, Arguments]]) -> list[Any]:
        """Return what `script` returns for each of `calls`, BATCH at the most. Raises LinkDown as `run` does."""
        return await self._call(script.name, partial(self._evaluate_all, script, calls))

    async def watch(self) -> None:
        """Probe where there is doubt, and until Redis is back. Runs until it is cancelled, or the link has ended."""
        while not self._ended:
            await self._doubt.wait()
            self._doubt.clear()
            problem = await self._probe()
            if problem is None:
                self._mend()
            else:
                self._fail(problem)
                await asyncio.sleep(PROBE_EVERY)
                self._doubt.set()

    def end(self) -> None:
        """Let no call through any more."""
        self._ended = True
        self.problem = "the link to Redis is closed"

    async def _call(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        self._check(name)
        if self._waiting >= WAITING_MOST:
            self._emit(RedisRefused(name))
            raise LinkDown(f"{WAITING_MOST} calls to Redis wait already")
        loop = asyncio.get_running_loop()
        patience, outcome = _Patience(loop, self._slow), "cancelled"
        try:
            async with patience.limit, self._place():
                self._check(name)
                patience.asked_at = loop.time()
                answer = await ask()
            outcome = "ok"
            return answer
        except TimeoutError as error:
            outcome = "timeout"
            if patience.busy:
                self._doubt.set()
                raise LinkDown("a call to Redis was given up, since this process is busy") from None
            raise self._failed(error) from None
        except (RedisError, OSError) as error:
            outcome = "down"
            raise self._failed(error) from None
        finally:
            patience.end()
            if patience.asked_at is not None and outcome != "cancelled":
                seconds = loop.time() - patience.asked_at
                if outcome == "ok" and seconds < SLOW_SECONDS:
                    self._slow_since = None
                self._emit(RedisCall(name, outcome, seconds))

    def _check(self, name: str) -> None:
        if self.problem is not None:
            self._emit(RedisRefused(name))
            raise LinkDown(self.problem)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _evaluate(self, script: Script, keys: Keys, args: Arguments) -> Any:
        try:
            return await self._client.execute(_command("EVALSHA", script.sha, keys, args))
        except NoScriptError:
            return await self._client.execute(_command("EVAL", script.text, keys, args))

    async def _evaluate_all(self, script: Script, calls: Sequence[tuple[Keys, Arguments]]) -> list[Any]:
        answers = await self._client.batch([_command("EVALSHA", script.sha, *call) for call in calls])
        if any(isinstance(answer, NoScriptError) for answer in answers):
            answers = await self._client.batch([_command("EVAL", script.text, *call) for call in calls])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _probe(self) -> str | None:
        """Return why Redis is not to be used. One that was not used must be quick, once it is connected."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if not self.up:
                    await self._client.forget()
                await self._client.probe(f"{self.prefix}probe")
                # A call may have failed meanwhile.
                return None if self.up or not await self._is_slow() else self._slowness()
        except (TimeoutError, RedisError, OSError) as error:
            return problem_of(error, self._address)

    async def _is_slow(self) -> bool:
        loop = asyncio.get_running_loop()
        slow: list[bool] = []
        quickest = CALL_SECONDS
        for _ in range(_TRIES):
            look = _Look(loop, partial(slow.append, True))
            look.asked_at = look.began
            try:
                await self._client.probe(f"{self.prefix}probe")
            finally:
                look.end()
            quickest = min(quickest, loop.time() - look.began)
            if slow or quickest < SLOW_SECONDS:
                break
        return bool(slow) or quickest >= CALL_SECONDS

    def _slow(self) -> None:
        """A call takes long, and this process is not to blame."""
        now = asyncio.get_running_loop().time()
        if self._slow_since is None or now - self._slow_since > _ROW_SECONDS:
            self._slow_since = now
        elif now - self._slow_since >= SLOW_SECONDS and self.up:
            self._fail(self._slowness())

    def _slowness(self) -> str:
        return (
            f"Redis at {self._address} takes longer than {SLOW_SECONDS * 1000:.0f} ms to answer: look at its load, its"
            " SLOWLOG, and how far away it is"
        )

    def _failed(self, error: Exception) -> LinkDown:
        self._fail(problem_of(error, self._address))
        return LinkDown(self.problem)

    def _fail(self, problem: str) -> None:
        before, self.problem = self.problem, problem
        if before is not None:
            return
        loop = asyncio.get_running_loop()
        calm = loop.time() - self._mended_at > _SOUND_SECONDS
        loop.call_later(_FIRST_PROBE if calm else PROBE_EVERY, self._doubt.set)
        if self._told is not False:
            self._told = False
            self._emit(RedisHealth(up=False))
            _log.warning("%s; nodes work on alone until it is back, and each fetches for itself", problem)

    def _mend(self) -> None:
        if self._ended:
            return
        if self.problem is not None:
            self._mended_at = asyncio.get_running_loop().time()
            self._slow_since = None
            _log.info("Redis at %s answers again", self._address)
        self.problem = None
        if self._told is not True:
            self._told = True
            self._emit(RedisHealth(up=True))


def _command(kind: str, script: str, keys: Keys, args: Arguments) -> Command:
    return (kind, script, len(keys), *keys, *args)
