"""The last hours of a few numbers, in memory, for a page that has no Prometheus behind it."""

from __future__ import annotations

import msgspec


class Point(msgspec.Struct, frozen=True, gc=False):
    """What happened in the seconds that ended at `time` (unix time). Rates are per second, ratios from 0 to 1.

    None is what there is no number for: a ratio of nothing, a quantile of no pulls.
    hit_ratio: of look-ups for which nobody outside was asked (hit, stale, joined a download that ran);
    byte_hit_ratio: of the bytes sent, those that no upstream had to give: 1 - received / sent, at least 0.
    received: bytes of manifests and blobs from upstreams; near: from other nodes, the bucket, other regions.
    first_byte_p50, first_byte_p99: seconds, from the histogram of times to the first byte.
    pull_p50, pull_p90, pull_p99: seconds of pulls that ended in that time. used: bytes stored and reserved.
    """

    time: float
    requests: float
    errors: float
    hit_ratio: float | None
    byte_hit_ratio: float | None
    sent: float
    received: float
    near: float
    fills: int
    pulls: float
    first_byte_p50: float | None
    first_byte_p99: float | None
    pull_p50: float | None
    pull_p90: float | None
    pull_p99: float | None
    used: int | None


class HistoryView(msgspec.Struct, frozen=True):
    """Points `step` seconds apart, oldest first. Of the time in which nobody counted there are none."""

    step: float
    points: tuple[Point, ...]
