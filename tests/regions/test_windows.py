"""Windows open and close by the clock on the wall, whatever that does."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from entrepot.config.model import Window
from entrepot.config.values import windows as parse
from proxy.regions.windows import opens

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
_SPRING = int(datetime(2025, 3, 28, tzinfo=UTC).timestamp()) // 60
_AUTUMN = int(datetime(2025, 10, 24, tzinfo=UTC).timestamp()) // 60
_STARTS = st.one_of(
    st.integers(_SPRING, _SPRING + 3 * 1440),
    st.integers(_AUTUMN, _AUTUMN + 3 * 1440),
    st.integers(29_000_000, 30_000_000),
)
_WINDOWS = st.lists(
    st.builds(Window, st.integers(0, 1439), st.integers(0, 1439), st.sampled_from(ZONES)), min_size=1, max_size=3
)


def shows(window: Window, minute: int) -> bool:
    """Tell whether the clock on the wall shows a time in `window` at a minute of UTC."""
    wall = datetime.fromtimestamp(minute * 60, ZoneInfo(window.zone))
    at = wall.hour * 60 + wall.minute
    if window.begin < window.end:
        return window.begin <= at < window.end
    return window.begin == window.end or at >= window.begin or at < window.end


@given(_WINDOWS, _STARTS)
def test_windows_open_and_close_at_the_minute_that_a_walk_through_all_minutes_finds(
    windows: list[Window], minute: int
) -> None:
    state, seconds = opens(windows, minute * 60.0)
    assert state == any(shows(window, minute) for window in windows)
    until = 1600 if math.isinf(seconds) else int(seconds // 60)
    for later in range(minute, min(minute + until, minute + 1600)):
        assert any(shows(window, later) for window in windows) == state
    if not math.isinf(seconds):
        assert seconds % 60 == 0
        assert any(shows(window, minute + until) for window in windows) != state


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


@pytest.mark.parametrize(
    ("written", "now", "expected"),
    [
        ("22:00-06:00 Europe/Berlin", at("2025-06-01T21:00"), (False, 3600)),
        ("22:00-06:00 Europe/Berlin", at("2025-06-01T23:30"), (True, 6.5 * 3600)),
        ("22:00-06:00 Europe/Berlin", at("2025-03-29T23:00"), (True, 6 * 3600)),  # the night that lacks an hour
        ("22:00-06:00 Europe/Berlin", at("2025-10-25T23:00"), (True, 8 * 3600)),  # the one with an hour more
        ("02:30-04:00 Europe/Berlin", at("2025-03-30T01:59"), (False, 60)),  # 02:30 is skipped: open from 03:00
        ("02:15-02:45 Europe/Berlin", at("2025-03-30T01:00"), (False, 24.25 * 3600)),  # it does not come that day
        ("02:15-02:45 Europe/Berlin", at("2025-10-26T02:45"), (False, 1800)),  # it comes twice
        ("00:00-24:00 UTC", 0.0, (True, math.inf)),
    ],
)
def test_nights_around_a_change_of_the_clock(written: str, now: float, expected: tuple[bool, float]) -> None:
    assert opens(parse(written), now) == expected


def test_windows_that_meet_are_one_and_those_of_all_day_never_close() -> None:
    assert opens(parse(["01:00-02:00 UTC", "02:00-03:00 UTC"]), 3600.0) == (True, 7200)
    assert opens(parse(["00:00-12:00 UTC", "12:00-24:00 UTC"]), 3600.0) == (True, math.inf)


def test_without_windows_it_is_always_open() -> None:
    assert opens((), 5.0) == (True, math.inf)


def test_without_a_zone_the_machine_s_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert opens(parse("22:00-06:00"), at("2025-06-01T21:00", "America/New_York")) == (False, 3600)
    finally:
        monkeypatch.undo()
        time.tzset()
