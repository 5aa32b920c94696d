"""Requests of one kind, counted as cheaply as can be, and brought into their families when somebody looks.

A request that was answered from memory takes some 20 µs, so counting one is a search among bounds and three additions.
"""

from __future__ import annotations

import operator
from bisect import bisect_left

from metrics import declarations as declared
from metrics.events import RequestFinished
from metrics.families import OTHER, Distribution, Families

_METHODS = frozenset({"GET", "HEAD"})
_TIMED = frozenset({"manifest", "blob"})
_BOUNDS = declared.REQUEST_SECONDS
_LEAST = _BOUNDS[0]
_PLACES = len(_BOUNDS) + 1


class Tally:
    """What requests of the same kind, method, status, outcome and upstream took and sent.

    `count` runs on the event loop, `bring` in any one thread at a time. State: by duration how many began when they
    ended, and of the others their durations and first bytes; sums of seconds and bytes; all that as last brought.
    """

    __slots__ = ("_brought", "_bytes", "_durations", "_first", "_first_seconds", "_key", "_same", "_seconds")

    def __init__(self, key: tuple[str, str, int, str, str]) -> None:
        self._key = key
        self._same = [0] * _PLACES
        self._durations = [0] * _PLACES
        self._first = [0] * _PLACES
        self._seconds = 0.0
        self._first_seconds = 0.0
        self._bytes = 0
        self._brought = self._read()

    def count(self, event: RequestFinished) -> None:
        """Count one request."""
        seconds = event.duration
        self._seconds += seconds
        self._bytes += event.sent
        if event.first_byte == seconds:
            self._same[0 if seconds <= _LEAST else bisect_left(_BOUNDS, seconds)] += 1
            return
        self._durations[bisect_left(_BOUNDS, seconds)] += 1
        self._first[bisect_left(_BOUNDS, event.first_byte)] += 1
        self._first_seconds += event.first_byte - seconds

    def bring(self, families: Families) -> None:
        """Add to the families what was counted since the last time."""
        before, now = self._brought, self._read()
        kind, method, status, outcome, upstream = self._key
        durations = [*map(operator.sub, now[0], before[0])]
        if not (number := sum(durations)):
            return
        self._brought = now
        families.value(declared.REQUESTS, kind, method if method in _METHODS else OTHER, str(status)).number += number
        if outcome == "none":
            return
        families.value(declared.LOOKUPS, kind, upstream, outcome).number += number
        if sent := now[4] - before[4]:
            families.value(declared.SENT_BYTES, kind, upstream, outcome).number += sent
        if kind not in _TIMED:
            return
        _add(families.distribution(declared.REQUEST_DURATION_SECONDS, outcome), durations, now[2] - before[2])
        if outcome != "error":
            first = [*map(operator.sub, now[1], before[1])]
            _add(families.distribution(declared.FIRST_BYTE_SECONDS, kind, outcome), first, now[3] - before[3])

    def _read(self) -> tuple[list[int], list[int], float, float, int]:
        same, seconds = list(self._same), self._seconds
        durations = [*map(operator.add, same, self._durations)]
        first = [*map(operator.add, same, self._first)]
        return durations, first, seconds, seconds + self._first_seconds, self._bytes


def _add(distribution: Distribution, counts: list[int], total: float) -> None:
    distribution.counts = [*map(operator.add, distribution.counts, counts)]
    distribution.total += total
