"""What to ask next where two regions differ: ranges of places, compared by their sums. Pure: no I/O, no clock.

    the whole, two levels deep → equal: done with → the peer has none: drop ours → few of ours: compare → else deeper

A range costs some bytes, so that it goes deeper by FANOUT until at most LEAF of our records are in one. Then the peer
is told their marks, and tells what differs; where we have nothing, that is all it has, page by page. Neighbouring
ranges are compared as one: a first sync is one long range. What costs is the number of differences, and the logarithm
of the number of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.store.ranges import Interval, Sum, split
from sync.regional_records import MOST_INTERVALS, MOST_MARKS, MOST_PREFIXES

LEAF = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One question: the sums `levels` below each prefix of `deeper`, and what differs in `compare`."""

    levels: int
    deeper: tuple[str, ...]
    compare: tuple[Interval, ...]

    def intervals(self, prefix: str) -> list[Interval]:
        """Return the ranges that a prefix of this question is split into."""
        return split(prefix, self.levels)


class Walk:
    """State: prefixes to be looked into, and ranges to be compared with how many records we have there."""

    def __init__(self) -> None:
        self._levels = 2
        self._deeper: list[str] = [""]
        self._compare: list[tuple[Interval, int]] = []

    def ask(self) -> Step | None:
        """Return the next question; None: all was compared."""
        if not self._deeper and not self._compare:
            return None
        compare: list[Interval] = []
        marks = 0
        for interval, own in self._compare[:MOST_INTERVALS]:
            marks += own
            if marks > MOST_MARKS:
                break
            compare.append(interval)
        return Step(self._levels, tuple(self._deeper[:MOST_PREFIXES]), tuple(compare))

    def answered(
        self,
        step: Step,
        own: Sequence[Sequence[Sum]],
        theirs: Sequence[Sequence[Sum]],
        done: int,
        upto: int | None,
    ) -> list[Interval]:
        """Take the answer to a question; return the ranges of which the peer has nothing any more.

        own, theirs: the sums of each range of each of the step's prefixes. done: how many of its ranges were compared,
        and up to which place the next one was.
        """
        rest = self._compare[done:]
        if upto is not None:
            (_, high), records = rest.pop(0)
            if upto < high:
                rest.insert(0, (Interval(upto + 1, high), records))
        self._compare = rest
        self._deeper = self._deeper[len(step.deeper) :]
        self._levels = 1
        empty: list[Interval] = []
        for prefix, ours, others in zip(step.deeper, own, theirs, strict=True):
            empty += self._look(prefix, step, ours, others)
        return empty

    def _look(self, prefix: str, step: Step, own: Sequence[Sum], theirs: Sequence[Sum]) -> list[Interval]:
        empty: list[Interval] = []
        last: Interval | None = None
        for number, (interval, ours, others) in enumerate(zip(step.intervals(prefix), own, theirs, strict=True)):
            if ours == others:
                continue
            if others.records == 0:
                empty.append(interval)
            elif ours.records > LEAF:
                self._deeper.append(f"{prefix}{number:0{step.levels}x}")
            elif last is not None and last.high + 1 == interval.low and self._compare[-1][1] + ours.records <= LEAF:
                last = Interval(last.low, interval.high)
                self._compare[-1] = (last, self._compare[-1][1] + ours.records)
            else:
                last = interval
                self._compare.append((interval, ours.records))
        return empty
