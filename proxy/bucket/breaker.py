"""Whether the bucket may be asked now. Pure state: no I/O, no clock of its own.

It opens when a question got no answer in its time, or `FAILURES` in a row failed. While it is open nobody but the probe
asks; each failed probe doubles the time until the next, from `FIRST` to `MOST` seconds, cut by up to half at random so
that a fleet does not come back at one instant.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from proxy.oci.errors import Unavailable

FAILURES = 3
FIRST = 2.0
MOST = 30.0


class Breaker:
    """The breaker of the bucket that is called `name`. `clock` gives monotonic seconds."""

    def __init__(self, name: str, clock: Callable[[], float], random: Random | None = None) -> None:
        self._name = name
        self._clock = clock
        self._random = random or Random()
        self._reason = ""
        self._failures = 0
        self._openings = 0
        self._opened_at: float | None = None
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """The bucket is not to be asked."""
        return self._opened_at is not None

    @property
    def reason(self) -> str:
        """What failed last."""
        return self._reason

    @property
    def left(self) -> float:
        """Seconds until the next probe; 0 when it is due or the breaker is closed."""
        return max(0.0, self._until - self._clock()) if self.is_open else 0.0

    def check(self) -> None:
        """Raise Unavailable while the bucket is not to be asked; `retry_after` says until when at least."""
        if self.is_open:
            raise Unavailable(
                f"{self._name} failed a moment ago and is not asked again yet: {self._reason}", retry_after=self.left
            )

    def answered(self, since: float) -> None:
        """A question asked at `since` was answered, by whatever."""
        self._failures = 0
        if self._opened_at is not None and since >= self._opened_at:
            self._opened_at = None
            self._openings = 0

    def failed(self, reason: str, since: float, *, silent: bool) -> None:
        """A question asked at `since` failed; `silent`: nothing came in its time.

        Of those that fail together one counts.
        """
        if self._opened_at is not None and since < self._opened_at:
            return
        self._reason = reason
        self._failures += 1
        if silent or self.is_open or self._failures >= FAILURES:
            seconds = min(MOST, FIRST * 2.0 ** min(self._openings, 10))
            self._openings += 1
            self._opened_at = self._clock()
            self._until = self._opened_at + seconds * self._random.uniform(0.5, 1.0)
