"""What is remembered of a host: whether it may be asked now (circuit breaker). Pure state: no I/O, no clock of its own.

    state      event                                        becomes
    closed     a question reached nobody                    open
    closed     half of the latest answers were 5xx          open
    open       time passes                                  half-open
    half-open  a question is let through, one at a time     half-open
    half-open  it reached nobody, or got a 5xx              open, for longer
    any        an answer below 500 to what was asked since  closed

In `open` nothing is sent: the caller fails at once, or goes to an alternate. In `half-open` one question is the probe,
with no retries; the others wait for what becomes of it. The quiet time doubles from `quiet` up to `quiet_most` seconds
and is cut by up to half at random, so that a fleet does not come back at one instant. What a host asks for by
`Retry-After` is `holds`.

What another node of the fleet found out is learned: that a host fails opens the breaker until that node's quiet time
ends, unless the host has answered us since; that it answers again lets a question through at once. Only our own
questions close the breaker. It may be that node's own network that fails: where the host answered us within
HEARD_SECONDS one question goes at once, and where it answers what was learned is false, and nothing of the kind is
believed for DISPROVED_SECONDS.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum
from random import Random

from proxy.oci.errors import RegistryError, Unavailable
from proxy.upstream.failures import Resting

WATCHED = 20
FEWEST = 10
WATCHED_SECONDS = 30.0
HEARD_SECONDS = 30.0
DISPROVED_SECONDS = 600.0


class State(Enum):
    """Of the breaker; see the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Health:
    """The health of one host. `clock` gives monotonic seconds."""

    def __init__(
        self, host: str, quiet: float, quiet_most: float, clock: Callable[[], float], random: Random | None = None
    ) -> None:
        self._host = host
        self._quiet = quiet
        self._quiet_most = quiet_most
        self.clock = clock
        self._random = random or Random()
        self._answered_at: float | None = None
        self._opened_at: float | None = None
        self._until = 0.0
        self._openings = 0
        self._by_answers = False
        self._learned = False
        self._disproved_at = -math.inf
        self._answers: deque[tuple[float, bool]] = deque(maxlen=WATCHED)
        self._last_error: RegistryError | None = None

    @property
    def state(self) -> State:
        """Closed, open or half-open."""
        if self._opened_at is None:
            return State.CLOSED
        return State.OPEN if self.clock() < self._until else State.HALF_OPEN

    @property
    def last_error(self) -> RegistryError | None:
        """Why it counts as failing; None while the breaker is closed."""
        return self._last_error

    @property
    def answered(self) -> bool:
        """It has answered at least once."""
        return self._answered_at is not None

    @property
    def opened_at(self) -> float | None:
        """When the latest question failed, by the clock; None while the breaker is closed."""
        return self._opened_at

    @property
    def answered_at(self) -> float | None:
        """When it last answered us, by the clock."""
        return self._answered_at

    @property
    def quiet_left(self) -> float:
        """The seconds for which it is not asked yet; 0 while it may be."""
        return max(0.0, self._until - self.clock()) if self.failing else 0.0

    @property
    def learned(self) -> bool:
        """It counts as failing by what another node found out, not by a question of ours."""
        return self._learned

    @property
    def failing(self) -> bool:
        """The last that was heard of it is that it could not be reached, or fails most questions."""
        return self._opened_at is not None

    def heard_within(self, seconds: float) -> bool:
        """It has answered so lately, and nothing worse was heard of it since."""
        return not self.failing and self._answered_at is not None and self.clock() - self._answered_at <= seconds

    @property
    def is_down(self) -> bool:
        """It failed so recently that it is not asked again yet."""
        return self.state is State.OPEN

    def check(self, longest: float = math.inf) -> None:
        """Raise Resting while the host is not to be asked; `retry_after` says for how long.

        Whoever cannot wait so long, as a download that broke off, asks after `longest` seconds of quiet already.
        """
        if self._opened_at is None or self._last_error is None:
            return
        left = min(self._until, self._opened_at + longest) - self.clock()
        if left > 0:
            raise Resting(
                f"{self._host} failed a moment ago and is not asked again yet: {self._last_error.message}",
                retry_after=left,
            )

    def answer(self, status: int, since: float) -> None:
        """A request sent at `since` got an answer of its own; whatever it is, the host can be reached."""
        now = self.clock()
        self._answered_at = now
        bad = status >= 500
        if self._opened_at is None:
            self._note(now, status)
        elif bad:
            if self.state is State.HALF_OPEN and since >= self._opened_at:
                self._open(Unavailable(f"{self._host} still answers with {status}"), by_answers=True)
        elif not self._by_answers or since >= self._opened_at:
            self._close()

    def failed(self, error: RegistryError, since: float) -> None:
        """A question that began at `since` reached nobody.

        Where the host answered any question meanwhile, it is a storage host or token server that is down: no change.
        Of the questions that fail together only the first counts.
        """
        if self._answered_at is not None and self._answered_at >= since:
            return
        if self._opened_at is not None and since < self._opened_at:
            self._last_error = error
            return
        self._open(error, by_answers=False)

    def learn_failing(self, error: RegistryError, age: float, left: float) -> None:
        """Another node found out `age` seconds ago that it fails, and asks it again in `left` seconds."""
        now = self.clock()
        if self.failing or left <= 0 or (self._answered_at is not None and self._answered_at > now - age):
            return
        if now - self._disproved_at < DISPROVED_SECONDS:
            return
        quiet = 0.0 if self.heard_within(HEARD_SECONDS) else min(left, self._quiet_most)
        self._opened_at, self._until = now - age, now + quiet
        self._by_answers, self._learned = False, True
        self._last_error = error

    def learn_answering(self, age: float) -> None:
        """Another node had an answer of it `age` seconds ago: find out at once whether we have, too."""
        now = self.clock()
        if self._opened_at is not None and self._opened_at < now - age:
            self._until = min(self._until, now)

    def _note(self, now: float, status: int) -> None:
        bad = status >= 500
        self._answers.append((now, bad))
        while self._answers[0][0] < now - WATCHED_SECONDS:
            self._answers.popleft()
        failed = sum(one for _, one in self._answers)
        if bad and len(self._answers) >= FEWEST and failed * 2 >= len(self._answers):
            asked = len(self._answers)
            error = Unavailable(f"{self._host} answered {failed} of the last {asked} requests with 5xx, now {status}")
            self._open(error, by_answers=True)

    def _open(self, error: RegistryError, *, by_answers: bool) -> None:
        seconds = min(self._quiet_most, self._quiet * 2.0 ** min(self._openings, 30))
        self._openings += 1
        self._opened_at = self.clock()
        self._until = self._opened_at + seconds * self._random.uniform(0.5, 1.0)
        self._by_answers = by_answers
        self._learned = False
        self._last_error = error
        self._answers.clear()

    def _close(self) -> None:
        if self._learned:
            self._disproved_at = self.clock()
        self._opened_at = self._last_error = None
        self._learned = False
        self._openings = 0
        self._answers.clear()
