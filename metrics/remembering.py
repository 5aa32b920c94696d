"""The engine of the last hours: cumulative readings in, `Point`s of what lies between them out. No clock, no I/O.

Three series, of 5 s for an hour, of 60 s for six, of 120 s for a day, each made of differences of its own, so that no
ratio or quantile is averaged: together at most 1800 points. Who reads, and when, is `entrepot.watching`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from metrics.history import HistoryView, Point

STEP_SECONDS = 5.0
_SERIES = ((STEP_SECONDS, 720), (60.0, 360), (120.0, 720))
_MAX_PULLS = 2048


@dataclass(frozen=True, slots=True)
class Reading:
    """What had been counted by `time` (unix time), which was `monotonic`. Counts and bytes are since the start.

    errors: answers of 500 and more. lookups: all that looked for content, spared: those of them for which nobody
    outside was asked. fills: downloads that run. used: bytes stored and reserved, None while unknown. first_byte: how
    many answers fell in each bucket, whose upper bounds are `bounds`; the last bucket has none.
    """

    time: float
    monotonic: float
    requests: float = 0.0
    errors: float = 0.0
    lookups: float = 0.0
    spared: float = 0.0
    sent: float = 0.0
    received: float = 0.0
    near: float = 0.0
    fills: int = 0
    used: int | None = None
    bounds: tuple[float, ...] = ()
    first_byte: tuple[int, ...] = ()


class Remembering:
    """The last hours, from readings. State: three series, each with its points and the reading it goes on from."""

    def __init__(self) -> None:
        self._series = tuple(_Series(step, most) for step, most in _SERIES)

    @property
    def newest(self) -> Point | None:
        """The newest of the finest points."""
        points = self._series[0].points
        return points[-1] if points else None

    def take(self, reading: Reading, pulls: Sequence[float]) -> None:
        """Go on to `reading`; `pulls` took so many seconds each and ended since the one before."""
        for series in self._series:
            series.take(reading, pulls)

    def view(self, seconds: float) -> HistoryView:
        """Return the points of the last so many seconds: the finest that reach back so far, or to the start."""
        series = next((one for one in self._series if one.reaches(seconds)), self._series[-1])
        newest = series.points[-1].time if series.points else 0.0
        return HistoryView(series.step, tuple(point for point in series.points if point.time > newest - seconds))


class _Series:
    """Points `step` seconds apart, `most` of them; how long the pulls took since the last is kept up to a bound."""

    def __init__(self, step: float, most: int) -> None:
        self.step = step
        self.points: deque[Point] = deque(maxlen=most)
        self._most = most
        self._before: Reading | None = None
        self._pulls: deque[float] = deque(maxlen=_MAX_PULLS)
        self._ended = 0

    def reaches(self, seconds: float) -> bool:
        return self._most * self.step >= seconds or len(self.points) < self._most

    def take(self, reading: Reading, pulls: Sequence[float]) -> None:
        before = self._before
        if before is None:
            self._before = reading
            return
        self._pulls.extend(pulls)
        self._ended += len(pulls)
        elapsed = reading.monotonic - before.monotonic
        if elapsed < self.step - STEP_SECONDS / 2:
            return
        # The clock was set back: what it has yet to come to again cannot stay.
        while self.points and self.points[-1].time >= reading.time:
            self.points.pop()
        self.points.append(between(before, reading, elapsed, sorted(self._pulls), self._ended))
        self._before = reading
        self._pulls.clear()
        self._ended = 0


def between(before: Reading, after: Reading, elapsed: float, pulls: Sequence[float], ended: int) -> Point:
    """Return what happened in the `elapsed` seconds from one reading to the next.

    pulls: how long they took, in order; ended: how many they were. A count that is smaller than it was (its process is
    gone) is taken for one that stands still.
    """

    def grown(name: str) -> float:
        return max(0.0, float(getattr(after, name) - getattr(before, name)))

    lookups, sent, received = grown("lookups"), grown("sent"), grown("received")
    first_byte = _grown_buckets(before, after)
    return Point(
        time=after.time,
        requests=grown("requests") / elapsed,
        errors=grown("errors") / elapsed,
        hit_ratio=min(1.0, grown("spared") / lookups) if lookups else None,
        byte_hit_ratio=max(0.0, 1.0 - received / sent) if sent else None,
        sent=sent / elapsed,
        received=received / elapsed,
        near=grown("near") / elapsed,
        fills=after.fills,
        pulls=ended / elapsed,
        first_byte_p50=bucket_quantile(after.bounds, first_byte, 0.5),
        first_byte_p99=bucket_quantile(after.bounds, first_byte, 0.99),
        pull_p50=quantile(pulls, 0.5),
        pull_p90=quantile(pulls, 0.9),
        pull_p99=quantile(pulls, 0.99),
        used=after.used,
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of these do not exceed, between its neighbours; None of nothing."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def bucket_quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Return a quantile as Prometheus does: linear in its bucket; of the last, open one its lower bound."""
    reached = [*accumulate(counts)]
    if not reached or not bounds or not reached[-1]:
        return None
    rank = share * reached[-1]
    bucket = next(index for index, count in enumerate(reached) if count >= rank and counts[index])
    if bucket >= len(bounds):
        return bounds[-1]
    low = bounds[bucket - 1] if bucket else 0.0
    below = reached[bucket] - counts[bucket]
    return low + (bounds[bucket] - low) * max(0.0, rank - below) / counts[bucket]


def added(columns: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return buckets added up, one by one; nothing of nothing."""
    return tuple(map(sum, zip(*columns, strict=True)))


def _grown_buckets(before: Reading, after: Reading) -> Sequence[int]:
    """Return what fell in each bucket between two readings, nothing where one has fewer than it had."""
    if not before.first_byte or not after.first_byte:
        return after.first_byte
    grown = [new - old for new, old in zip(after.first_byte, before.first_byte, strict=True)]
    return grown if min(grown) >= 0 else ()
