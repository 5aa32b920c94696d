"""The last hours: whatever is read, points stay sane, few, and say what lay between two readings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from metrics.history import Point
from metrics.remembering import STEP_SECONDS, Reading, Remembering, bucket_quantile, quantile

BOUNDS = (0.1, 0.2, 0.4)
START = Reading(1_000_000.0, 50.0, bounds=BOUNDS, first_byte=(0, 0, 0, 0))
RATES = ("requests", "errors", "sent", "received", "near", "pulls")
RATIOS = ("hit_ratio", "byte_hit_ratio")
QUANTILES = ("first_byte_p50", "first_byte_p99", "pull_p50", "pull_p90", "pull_p99")
COUNTS = st.integers(0, 1 << 50)


def later(reading: Reading, seconds: float = STEP_SECONDS, **counted: float) -> Reading:
    """Return a reading so much later, with so much more counted."""
    grown = {name: getattr(reading, name) + more for name, more in counted.items()}
    return replace(reading, time=reading.time + seconds, monotonic=reading.monotonic + seconds, **grown)


def point(before: Reading, after: Reading, pulls: Sequence[float] = ()) -> Point:
    remembering = Remembering()
    remembering.take(before, ())
    remembering.take(after, pulls)
    assert remembering.newest is not None
    return remembering.newest


READINGS = st.builds(
    Reading,
    time=st.floats(1e9, 2e9),
    monotonic=st.just(0.0),
    requests=COUNTS,
    errors=COUNTS,
    lookups=COUNTS,
    spared=COUNTS,
    sent=COUNTS,
    received=COUNTS,
    near=COUNTS,
    fills=st.integers(0, 100),
    used=st.none() | COUNTS,
    bounds=st.just(BOUNDS),
    first_byte=st.just(()) | st.tuples(*[COUNTS] * 4),
)
STEPS = st.tuples(READINGS, st.floats(0.0, 1e5), st.lists(st.floats(0.0, 1e6), max_size=5))


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=12))
def test_no_rate_is_negative_and_no_ratio_beyond_one_whatever_is_read(
    steps: list[tuple[Reading, float, list[float]]],
) -> None:
    remembering, now = Remembering(), 0.0
    for reading, elapsed, pulls in steps:
        now += elapsed
        remembering.take(replace(reading, monotonic=now), pulls)
    for window in (60.0, 3600.0, 86400.0):
        points = remembering.view(window).points
        assert all(one.time < next_one.time for one, next_one in pairwise(points))
        for one in points:
            assert all(getattr(one, name) >= 0 for name in RATES)
            assert all(value is None or 0 <= value <= 1 for value in (getattr(one, name) for name in RATIOS))
            assert all(value is None or value >= 0 for value in (getattr(one, name) for name in QUANTILES))
            assert one.first_byte_p99 is None or one.first_byte_p99 <= BOUNDS[-1]


def test_a_point_says_what_lay_between_two_readings() -> None:
    after = later(START, 10.0, requests=50, errors=5, lookups=40, spared=30, sent=1000, received=250, near=20)
    after = replace(after, fills=3, used=77, first_byte=(5, 5, 0, 0))
    shown = point(START, after, [3.0, 1.0, 2.0])
    assert (shown.requests, shown.errors, shown.pulls) == (5.0, 0.5, 0.3)
    assert (shown.sent, shown.received, shown.near) == (100.0, 25.0, 2.0)
    assert (shown.hit_ratio, shown.byte_hit_ratio) == (0.75, 0.75)
    assert (shown.fills, shown.used, shown.time) == (3, 77, START.time + 10.0)
    assert shown.first_byte_p50 == pytest.approx(0.1)
    assert shown.first_byte_p99 == pytest.approx(0.198)
    assert shown.pull_p50 == pytest.approx(2.0)
    assert shown.pull_p90 == pytest.approx(2.8)


def test_of_nothing_there_is_no_ratio_and_no_quantile() -> None:
    shown = point(START, later(START))
    assert {getattr(shown, name) for name in (*RATIOS, *QUANTILES)} == {None}


def test_what_counted_less_than_before_stands_still() -> None:
    before = replace(later(START, requests=100, sent=100), first_byte=(9, 0, 0, 0))
    shown = point(before, replace(later(START, 10.0, requests=3, sent=50), first_byte=(1, 0, 0, 0)))
    assert (shown.requests, shown.sent, shown.first_byte_p50) == (0.0, 0.0, None)


def test_a_late_reading_is_one_point_of_the_whole_time() -> None:
    remembering = Remembering()
    remembering.take(START, ())
    remembering.take(later(START, 300.0, requests=300), ())
    (only,) = remembering.view(3600).points
    assert (only.requests, only.time) == (1.0, START.time + 300.0)


def test_of_the_time_for_which_the_machine_slept_there_is_no_point_and_rates_are_of_the_time_awake() -> None:
    awake = later(START, requests=5)
    shown = point(START, replace(awake, time=awake.time + 7200.0))
    assert (shown.requests, shown.time) == (1.0, START.time + 7205.0)


def test_a_clock_set_back_leaves_points_in_order() -> None:
    remembering, reading = Remembering(), START
    for _ in range(5):
        remembering.take(reading, ())
        reading = later(reading)
    remembering.take(replace(reading, time=START.time + 7.0), ())
    assert [one.time - START.time for one in remembering.view(3600).points] == [5.0, 7.0]


def test_a_day_is_kept_in_bounded_room_and_each_window_has_some_hundred_points() -> None:
    remembering, reading = Remembering(), START
    for number in range(3 * 17280 // 2):
        remembering.take(reading, [1.0])
        reading = replace(later(reading, requests=10, lookups=10, spared=5, sent=100, received=10), fills=number)
    shapes = {}
    for hours in (1, 6, 24):
        view = remembering.view(hours * 3600)
        shapes[hours] = view.step, len(view.points)
        assert {one.requests for one in view.points} == {2.0}
        assert {one.hit_ratio for one in view.points} == {0.5}
        assert {one.pulls for one in view.points} == {0.2}
        assert all(after.time - before.time == view.step for before, after in pairwise(view.points))
    assert shapes == {1: (5.0, 720), 6: (60.0, 360), 24: (120.0, 720)}
    points = [one for hours in (1, 6, 24) for one in remembering.view(hours * 3600).points]
    numbers = sum(sys.getsizeof(getattr(one, name)) for one in points for name in Point.__struct_fields__)
    assert sum(map(sys.getsizeof, points)) + numbers < 1 << 20


def test_a_young_mirror_shows_its_finest_points_in_every_window() -> None:
    remembering, reading = Remembering(), START
    for _ in range(10):
        remembering.take(reading, ())
        reading = later(reading)
    for hours in (1, 6, 24):
        view = remembering.view(hours * 3600)
        assert (view.step, len(view.points)) == (5.0, 9)


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_lie_between_the_least_and_the_greatest(values: list[float]) -> None:
    ordered = sorted(values)
    found = [quantile(ordered, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)]
    assert (found[0], found[-1]) == (ordered[0], ordered[-1])
    assert all(one is not None and ordered[0] <= one <= ordered[-1] * (1 + 1e-9) for one in found)


def test_a_quantile_of_buckets_is_that_of_prometheus() -> None:
    assert bucket_quantile(BOUNDS, (0, 4, 4, 0), 0.25) == pytest.approx(0.15)
    assert bucket_quantile(BOUNDS, (0, 4, 4, 0), 0.75) == pytest.approx(0.3)
    assert bucket_quantile(BOUNDS, (0, 0, 0, 7), 0.5) == 0.4  # beyond the last bound nothing is known
    assert bucket_quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None
