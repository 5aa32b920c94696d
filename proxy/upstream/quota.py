"""What an upstream's pull quota means for us (P35): the less is left, the longer tags are believed. Pure.

Docker Hub counts GETs of manifests and not HEADs, so that asking where a tag points is always free.
"""

from __future__ import annotations

from collections.abc import Callable

from metrics.events import UpstreamQuota

PLENTY = 0.2
MOST = 8.0
_DEFAULT_WINDOW = 21600.0


def stretch(limit: int, remaining: int) -> float:
    """Return the factor on `tag_ttl`: 1 while a fifth of the quota is left, growing evenly to 8 when nothing is."""
    if limit <= 0:
        return 1.0
    left = max(0.0, remaining / limit)
    return 1.0 if left >= PLENTY else MOST - (MOST - 1.0) * left / PLENTY


class QuotaWatch:
    """What a host last said of its quota, believed for the length of its window. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: UpstreamQuota | None = None
        self._told_at = 0.0
        self._learned = False

    def note(self, told: UpstreamQuota) -> None:
        """Keep what the host says now."""
        self._told, self._told_at, self._learned = told, self._clock(), False

    def learn(self, told: UpstreamQuota, age: float) -> None:
        """Keep what the host said to another node `age` seconds ago, where that is newer than what is known here."""
        at = self._clock() - age
        if self._told is None or at > self._told_at:
            self._told, self._told_at, self._learned = told, at, True

    @property
    def heard(self) -> tuple[UpstreamQuota, float] | None:
        """What the host last said, and when by the clock; None where another node told us so."""
        return None if self._told is None or self._learned else (self._told, self._told_at)

    @property
    def stretch(self) -> float:
        """The factor on `tag_ttl` now, 1 to 8."""
        told = self._now()
        return 1.0 if told is None else stretch(told.limit, told.remaining)

    @property
    def used_up(self) -> bool:
        """Nothing is left: what can be avoided is not fetched."""
        told = self._now()
        return told is not None and told.limit > 0 and told.remaining <= 0

    def _now(self) -> UpstreamQuota | None:
        if self._told is None or self._clock() - self._told_at > (self._told.window or _DEFAULT_WINDOW):
            return None
        return self._told
