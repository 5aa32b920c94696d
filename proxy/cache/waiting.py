"""When a fill waited for a source's answer, so that a request can tell how much of its own time that was. No I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

MOST = 16


class Waits:
    """The last spans, in monotonic seconds, in which a source had been asked and had not answered yet."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._since = math.inf

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A source is asked now, and has answered, or failed to, at the end."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """A source is asked now."""
        self._since = monotonic()

    def end(self) -> None:
        """It has answered, or failed to. Without a `begin` it says nothing."""
        if self._since != math.inf:
            self._spans.append((self._since, monotonic()))
            self._since = math.inf

    def within(self, start: float, end: float) -> float:
        """Return how many of the seconds from `start` to `end` were such spans."""
        spans = (*self._spans, (self._since, math.inf))
        return sum(max(0.0, min(end, until) - max(start, since)) for since, until in spans)
