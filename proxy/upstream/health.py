"""What is remembered of a host that could not be reached. Pure state: no I/O, no clock of its own.

    reachable ──could not be reached──▶ quiet (for `seconds`) ──time passes──▶ failing ──answer──▶ reachable
                                          ▲                                      │
                                          └──────────could not be reached────────┘

In `quiet` nothing is sent: the caller fails at once, or goes to an alternate. In `failing` one attempt is made, with no
retries. Only failures below HTTP count; a status, whatever it is, is an answer.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.oci.errors import RegistryError, Unavailable


class Health:
    """The health of one host. `clock` gives monotonic seconds."""

    def __init__(self, host: str, seconds: float, clock: Callable[[], float]) -> None:
        self._host = host
        self._seconds = seconds
        self.clock = clock
        self._answered_at: float | None = None
        self._failed_at: float | None = None
        self._last_error: RegistryError | None = None

    @property
    def last_error(self) -> RegistryError | None:
        """Why it counts as failing; None while it is reachable."""
        return self._last_error

    @property
    def answered(self) -> bool:
        """It has answered at least once."""
        return self._answered_at is not None

    @property
    def failing(self) -> bool:
        """The last that was heard of it is that it could not be reached."""
        return self._failed_at is not None

    @property
    def is_down(self) -> bool:
        """It failed so recently that it is not asked again yet."""
        return self._failed_at is not None and self.clock() - self._failed_at < self._seconds

    def check(self) -> None:
        """Raise Unavailable while the host is not to be asked."""
        if self.is_down and self._last_error is not None:
            raise Unavailable(f"{self._host} failed a moment ago and is not asked again yet: {self._last_error}")

    def succeeded(self) -> None:
        """It answered."""
        self._answered_at = self.clock()
        self._failed_at = self._last_error = None

    def failed(self, error: RegistryError, since: float) -> None:
        """A question that began at `since` reached nobody.

        Where the host answered any question meanwhile, it is a storage host or token server that is down: no change.
        """
        if self._answered_at is None or self._answered_at < since:
            self._failed_at = self.clock()
            self._last_error = error
