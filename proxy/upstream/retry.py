"""When a question is asked again: the failures that pass, and the schedule. Asking is safe: all we send is idempotent.

Which source comes next, when this one has failed for good, is the cache's to decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from metrics.events import Emit, UpstreamRetry
from proxy.oci.errors import Unavailable
from proxy.upstream.health import Health
from proxy.upstream.settings import Limits

T = TypeVar("T")


class Passing(Unavailable):
    """A failure that may be gone in a moment. `reason`: network | timeout | the status, for metrics.

    `unreached`: no HTTP answer came at all, so that the host may count as down.
    """

    def __init__(self, message: str, *, reason: str, unreached: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason
        self.unreached = unreached


def delay_before(attempt: int, limits: Limits, random: Random) -> float:
    """Return the seconds to wait before `attempt` (1 is the first retry): exponential, capped, with full jitter."""
    return random.uniform(0, min(limits.backoff_most, limits.backoff_first * 2.0 ** (attempt - 1)))


class Persistence:
    """Asks one host until it answers, it is pointless, or the time for an answer is over (P26)."""

    def __init__(self, host: str, limits: Limits, health: Health, emit: Emit, random: Random | None = None) -> None:
        self._host = host
        self._limits = limits
        self._health = health
        self._emit = emit
        self._random = random or Random()

    async def ask(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what `attempt` returns; `what` names the question in errors.

        Raises:
            Unavailable: the host is down, or failed every attempt, or `limits.answer` seconds are over.
            RegistryError: whatever else `attempt` raises, at once.
        """
        self._health.check()
        began = self._health.clock()
        retries = 0 if self._health.failing else self._limits.retries
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.answer
        last: Passing | None = None
        try:
            async with asyncio.timeout_at(deadline):
                for number in range(1, retries + 2):
                    try:
                        return await attempt()
                    except Passing as error:
                        last = error
                    delay = max(delay_before(number, self._limits, self._random), last.retry_after or 0.0)
                    if number > retries or loop.time() + delay >= deadline:
                        break
                    self._emit(UpstreamRetry(self._host, last.reason))
                    await asyncio.sleep(delay)
        except TimeoutError:
            if last is None:
                last = Passing(
                    f"{self._host} did not answer for {what} within {self._limits.answer:g} s",
                    reason="timeout",
                    unreached=True,
                )
        assert last is not None  # the loop is left by return, or with a failure noted
        if last.unreached:
            self._health.failed(last, began)
        raise last
