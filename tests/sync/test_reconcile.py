"""The walk over ranges finds every difference, whatever two regions have and however short the answers are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from hypothesis import example, given, strategies as st

from proxy.store.ranges import SPAN, Interval, Sum
from sync.reconcile import Walk

WORD = 0xFFFFFFFF
PLACES = st.one_of(st.integers(0, SPAN - 1), st.integers(0, 2000), st.integers(SPAN - 2000, SPAN - 1))


def marked(said: Mapping[int, int]) -> dict[int, int]:
    """Return marks whose sums are alike by no chance."""
    return {
        place: int.from_bytes(hashlib.blake2b(f"{place} {one}".encode(), digest_size=4).digest())
        for place, one in said.items()
    }


ROOTS = st.dictionaries(PLACES, st.integers(1, 3), max_size=120).map(marked)


CROWDED = marked(dict.fromkeys(range(100), 1))


def within(roots: Mapping[int, int], interval: Interval) -> dict[int, int]:
    return {place: roots[place] for place in sorted(roots) if interval.low <= place <= interval.high}


def summed(roots: Mapping[int, int], interval: Interval) -> Sum:
    marks = within(roots, interval).values()
    return Sum.of(sum(mark & WORD for mark in marks), 0, len(marks))


def differing(
    theirs: Mapping[int, int], asked: list[tuple[Interval, dict[int, int]]], limit: int
) -> tuple[dict[int, int], list[int], int, int | None]:
    """Answer as `read_difference` does, looking at `limit` rows."""
    found: dict[int, int] = {}
    gone: list[int] = []
    for done, (interval, known) in enumerate(asked):
        there = within(theirs, interval)
        upto: int | None = None
        for place, mark in there.items():
            limit -= 1
            if known.get(place) != mark:
                found[place] = mark
            if limit <= 0:
                upto = place
                break
        gone += [place for place in known if place not in there and (upto is None or place <= upto)]
        if upto is not None:
            return found, gone, done, upto
    return found, gone, len(asked), None


@given(ROOTS, ROOTS, ROOTS, st.integers(1, 50))
@example(CROWDED, {}, {}, 7)
@example({}, {}, CROWDED, 7)
@example(CROWDED, marked({50: 2, SPAN - 1: 1}), {}, 1)
def test_what_one_has_is_what_the_other_has_afterwards(
    both: dict[int, int], ours: dict[int, int], theirs: dict[int, int], limit: int
) -> None:
    mine, other = both | ours, both | theirs
    walk, questions = Walk(), 0
    while (step := walk.ask()) is not None:
        questions += 1
        assert questions < 1000
        ranges = [step.intervals(prefix) for prefix in step.deeper]
        asked = [(interval, within(mine, interval)) for interval in step.compare]
        found, gone, done, upto = differing(other, asked, limit)
        own = [[summed(mine, one) for one in each] for each in ranges]
        told = [[summed(other, one) for one in each] for each in ranges]
        empty = walk.answered(step, own, told, done, upto)
        mine |= found
        for place in [*gone, *(place for interval in empty for place in within(mine, interval))]:
            mine.pop(place, None)
    assert mine == other
