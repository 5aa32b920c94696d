"""When a question is asked, and asked again: breaker, holds, the failures that pass, and the schedule.

Asking again is safe: all we send is idempotent. Which source comes next, when this one has failed for good, is the
cache's to decide.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

from metrics.events import Emit, UpstreamHealth, UpstreamRetry
from proxy.oci.errors import TooManyRequests
from proxy.upstream.answers import Asked
from proxy.upstream.callers import asker
from proxy.upstream.failures import Passing, Resting, Unreached
from proxy.upstream.health import Health, State
from proxy.upstream.holds import Holds
from proxy.upstream.keyring import Keyring
from proxy.upstream.settings import Limits

T = TypeVar("T")


def delay_before(attempt: int, limits: Limits, random: Random) -> float:
    """Return the seconds to wait before `attempt` (1 is the first retry): exponential, capped, with full jitter."""
    return random.uniform(0, min(limits.backoff_most, limits.backoff_first * 2.0 ** (attempt - 1)))


class Persistence:
    """Asks one host until it answers, it is pointless, or the time for an answer is over (P26).

    `_probe` is there while a question is let through in the half-open state, and done when that question is over.
    `when_failing` is called after each question that leaves the host counting as failing.
    """

    def __init__(
        self,
        host: str,
        limits: Limits,
        health: Health,
        holds: Holds,
        keyring: Keyring,
        emit: Emit,
        random: Random | None = None,
    ) -> None:
        self._host = host
        self._limits = limits
        self._health = health
        self._holds = holds
        self._keyring = keyring
        self._emit = emit
        self._told = UpstreamHealth(host, False, False)
        self._random = random or Random()
        self._probe: asyncio.Future[None] | None = None
        self.when_failing: Callable[[], None] | None = None

    async def ask(self, asked: Asked, attempt: Callable[[], Awaitable[T]], quiet_most: float = math.inf) -> T:
        """Return what `attempt` returns; `quiet_most` seconds after a failure the host is asked in any case.

        Raises:
            Unavailable: the host is down, or failed every attempt, or `limits.answer` seconds are over.
            TooManyRequests, Unavailable: it said when to come back; `retry_after` are the seconds left (P16, P35).
            RegistryError: whatever else `attempt` raises, at once.
        """
        self._holds.check(asked.kind, asker())
        async with self._admitted(quiet_most) as retries:
            began = self._health.clock()
            try:
                return await self._persist(asked, attempt, retries)
            except (Passing, Unreached) as error:
                if isinstance(error, Unreached) or error.unreached:
                    self._health.failed(error, began)
                raise
            finally:
                self.tell()

    def tell(self) -> None:
        """Say how the host stands where that has changed, and call `when_failing` where it fails."""
        now = UpstreamHealth(self._host, self._health.failing, self._keyring.refused)
        if now != self._told:
            self._told = now
            self._emit(now)
        if now.failing and self.when_failing is not None:
            self.when_failing()

    @asynccontextmanager
    async def _admitted(self, quiet_most: float) -> AsyncIterator[int]:
        """Give the number of retries. In doubt about the host one question goes, the others wait what it brings."""
        deadline = asyncio.get_running_loop().time() + self._limits.probe
        while self._probe is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._probe)
            except TimeoutError:
                raise Resting(f"{self._host} failed lately and does not answer yet", retry_after=1) from None
        self._health.check(quiet_most)
        if self._health.state is State.CLOSED:
            yield self._limits.retries
            return
        probe = self._probe = asyncio.get_running_loop().create_future()
        try:
            yield 0
        finally:
            self._probe = None
            probe.set_result(None)

    async def _persist(self, asked: Asked, attempt: Callable[[], Awaitable[T]], retries: int) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.answer
        last: Passing | None = None
        try:
            async with asyncio.timeout_at(deadline):
                for number in range(1, retries + 2):
                    try:
                        return await attempt()
                    except Passing as error:
                        self._holds.note(asked.kind, error, asker())
                        last = error
                    except TooManyRequests as error:
                        self._holds.note(asked.kind, error, asker())
                        raise
                    delay = max(delay_before(number, self._limits, self._random), last.retry_after or 0.0)
                    if number > retries or loop.time() + delay >= deadline:
                        break
                    self._emit(UpstreamRetry(self._host, last.reason))
                    await asyncio.sleep(delay)
        except TimeoutError:
            if last is None:
                last = Passing(
                    f"{self._host} did not answer for {asked} within {self._limits.answer:g} s",
                    reason="timeout",
                    unreached=True,
                )
        assert last is not None  # the loop is left by return, or with a failure noted
        raise last
