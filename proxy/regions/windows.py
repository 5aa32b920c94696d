"""When a link may be used: times of day in a zone or in local time, over midnight and changes of the clock. Pure.

A window is open whenever a clock on the wall there shows a time in it: where summer time skips its begin it opens as
the clock jumps past it, and a time of day that comes twice is in it twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

_DAY = 86400.0
_MINUTE = 60.0
_LONGEST = 9 * _DAY


class Span(Protocol):
    """A time of day, in minutes since midnight, from `begin` to `end`, over midnight where that is not later.

    Equal ends are a whole day. zone: an IANA name; empty: local time.
    """

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def zone(self) -> str: ...


def opens(windows: Sequence[Span], now: float) -> tuple[bool, float]:
    """Tell whether one of `windows` is open at the unix time `now`, and in how many seconds that changes.

    Without windows it is always open. What never changes does so in infinitely many seconds.
    """
    if not windows:
        return True, math.inf
    state, at = _is_open(windows, now), now
    while at - now < _LONGEST:
        at = min(_next_look(window, at) for window in windows)
        if _is_open(windows, at) != state:
            return state, at - now
    return state, math.inf


def _is_open(windows: Sequence[Span], at: float) -> bool:
    return any(_contains(window, _wall(window.zone, at)[0]) for window in windows)


def _contains(window: Span, seconds: float) -> bool:
    begin, end = window.begin * _MINUTE, window.end * _MINUTE
    if begin < end:
        return begin <= seconds < end
    return begin == end or seconds >= begin or seconds < end


def _next_look(window: Span, at: float) -> float:
    """Return when the wall's clock next shows an end of `window`, or jumps, if that is earlier."""
    seconds, offset = _wall(window.zone, at)
    ahead = at + min((end * _MINUTE - seconds) % _DAY or _DAY for end in (window.begin, window.end))
    if _wall(window.zone, ahead)[1] == offset:
        return ahead
    before, after = math.floor(at), math.ceil(ahead)
    while after - before > 1:
        middle = (before + after) // 2
        if _wall(window.zone, middle)[1] == offset:
            before = middle
        else:
            after = middle
    return float(after) if after > at else ahead


def _wall(zone: str, at: float) -> tuple[float, float]:
    """Return the seconds since midnight that a clock there shows, and how far it is ahead of UTC."""
    whole = math.floor(at)
    moment = datetime.fromtimestamp(whole, UTC).astimezone(_zone(zone))
    offset = moment.utcoffset()
    assert offset is not None
    shown = moment.hour * 3600 + moment.minute * 60 + moment.second
    return shown + (at - whole), offset.total_seconds()


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo | None:
    return ZoneInfo(name) if name else None
