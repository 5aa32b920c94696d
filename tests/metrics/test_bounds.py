"""How many series there are: bounded by the declarations, and some 600 in a busy mirror."""

from __future__ import annotations

import pytest

from metrics.declarations import FILLS_FAILED, LOOKUPS, METRICS, SPACE_USED
from metrics.events import (
    ClosureEvicted,
    Event,
    FillFinished,
    FillJoined,
    FillResumed,
    FillStarted,
    PullEnded,
    RedisHealth,
    RequestFinished,
    SpaceMeasured,
    StaleServed,
    TagRevalidated,
    UpstreamHealth,
    UpstreamQuota,
    UpstreamRequest,
    UpstreamRetry,
    VerificationFailed,
)
from metrics.families import OTHER
from metrics.metric import Metric
from metrics.prometheus import Metrics
from metrics.sharing import REDIS_UP

HUB, *_ = UPSTREAMS = ("docker.io", "ghcr.io", "quay.io")
MOST_SERIES = 620
ANSWERS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "manifest": (
        *(("GET", 200, outcome) for outcome in ("hit", "joined", "miss", "stale")),
        ("HEAD", 200, "hit"),
        *(("GET", status, "error") for status in (404, 403, 429, 503)),
    ),
    "blob": (
        *(("GET", 200, outcome) for outcome in ("hit", "joined", "miss", "relayed")),
        *(("GET", 206, "hit"), ("HEAD", 200, "none"), ("GET", 499, "miss")),
        *(("GET", status, "error") for status in (404, 503, 502)),
    ),
    "tags": (("GET", 200, "hit"), ("GET", 200, "miss"), ("GET", 404, "error")),
    "referrers": (("GET", 200, "hit"), ("GET", 200, "miss")),
}
ASKED: dict[str, tuple[tuple[str, str], ...]] = {
    "manifest": (("HEAD", "200"), ("GET", "200"), ("HEAD", "404"), ("HEAD", "429"), ("GET", "timeout")),
    "blob": (("GET", "200"), ("GET", "206"), ("GET", "503")),
    "token": (("GET", "200"),),
    "tags": (("GET", "200"),),
}


def answered(kind: str, method: str, status: int, outcome: str, upstream: str) -> RequestFinished:
    sent = 0 if outcome in ("error", "none") or method == "HEAD" else 100
    return RequestFinished(kind, method, status, outcome, upstream, "a/b", "c", sent, 0.001, 0.002, "192.0.2.7", "r")


def everything_of(upstream: str) -> list[Event]:
    return [
        *(answered(kind, *answer, upstream) for kind, answers in ANSWERS.items() for answer in answers),
        *(UpstreamRequest(upstream, kind, *asked, 0.1) for kind, several in ASKED.items() for asked in several),
        *(UpstreamRetry(upstream, reason) for reason in ("503", "timeout")),
        UpstreamHealth(upstream, False, False),
        *(FillStarted(upstream, 0), FillJoined(upstream), FillResumed(upstream, upstream)),
        FillFinished(upstream, "committed", 1, 0.1),
        *(FillFinished(upstream, "failed", 1, 0.1, reason=reason) for reason in ("network", "status", "missing")),
        FillFinished(upstream, "corrupt", 1, 0.1, reason="corrupt"),
        VerificationFailed(upstream, upstream, "sha256:0"),
        *(TagRevalidated(upstream, outcome) for outcome in ("unchanged", "moved", "new", "gone", "failed")),
        *(PullEnded(upstream, outcome, 1.0, 1, 2, 1, 2, 1) for outcome in ("hit", "joined", "miss")),
        *(PullEnded(upstream, outcome, 1.0, 0, 2, 2, 2, 2) for outcome in ("unchanged", "broken")),
    ]


def busy() -> Metrics:
    """A mirror without fleet, bucket and regions that has seen all that usually comes."""
    metrics = Metrics(version="1.2.3")
    for upstream in UPSTREAMS:
        for event in everything_of(upstream):
            metrics.observe(event)
    metrics.observe(UpstreamQuota(HUB, 100, 42, 21600))
    for status in (200, 401):
        metrics.observe(answered("ping", "GET", status, "none" if status == 200 else "error", ""))
    metrics.observe(answered("other", "GET", 404, "error", ""))
    metrics.observe(StaleServed(3600.0))
    metrics.observe(SpaceMeasured(4, 3, 2, 1, 5))
    for reason in ("quota", "orphan", "gc", "rm"):
        metrics.observe(ClosureEvicted(reason, 1, 1))
    for metric in METRICS:
        if metric.part == "mirror" and not metric.labels and metric.type == "gauge":
            metrics.set(metric, 1)
    return metrics


def lines(metrics: Metrics) -> list[str]:
    return [line for line in metrics.expose()[0].decode().splitlines() if not line.startswith("#")]


def test_a_busy_mirror_of_three_upstreams_has_some_600_series() -> None:
    assert len(lines(busy())) <= MOST_SERIES
    assert len(lines(busy())) > MOST_SERIES / 2, "this mirror is not busy"


def test_what_a_mirror_has_no_part_in_has_no_series() -> None:
    metrics = busy()
    shown = {line.split("{")[0].split(" ")[0] for line in lines(metrics)}
    apart = [metric.name for metric in METRICS if metric.part != "mirror"]
    assert not [name for name in apart if any(line.startswith(name) for line in shown)]
    metrics.observe(RedisHealth(False))
    assert "entrepot_redis_up 0.0" in lines(metrics)
    assert REDIS_UP.part == "fleet"


def test_a_gauge_that_nobody_has_told_is_not_shown_as_nought() -> None:
    metrics = Metrics(version="1.2.3")
    assert not [line for line in lines(metrics) if line.startswith("entrepot_space_")]
    metrics.set(SPACE_USED, 0)
    assert "entrepot_space_used_bytes 0.0" in lines(metrics)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_no_metric_can_have_more_series_than_its_declaration_says(metric: Metric) -> None:
    assert metric.most_series <= 700
    families = Metrics(version="1")._families
    cell = families.distribution if metric.type == "histogram" else families.value
    for number in range(3 * metric.bound):
        cell(metric, *(f"{label}{number}" for label in metric.labels))
    exposed = next(one for one in families.collect() if one.name == metric.name.removesuffix("_total"))
    assert len(exposed.samples) <= metric.most_series
    if metric.labels and metric.name != "entrepot_build_info":
        assert len(exposed.samples) == metric.most_series
        assert OTHER in exposed.samples[-1].labels.values()


def test_what_is_beyond_the_bound_is_counted_together() -> None:
    metrics, rounds = Metrics(version="1"), FILLS_FAILED.bound + 40
    for number in range(rounds):
        metrics.observe(FillFinished(f"host{number}", "failed", 0, 0.1, reason="network"))
    failed = metrics.by(FILLS_FAILED, "upstream")
    assert len(failed) == FILLS_FAILED.most
    assert failed[(OTHER,)] == 40
    assert sum(failed.values()) == rounds


def test_several_processes_together_keep_to_the_bound() -> None:
    ours, theirs = Metrics(version="1"), Metrics(version="1")
    for number in range(LOOKUPS.bound):
        ours.observe(answered("blob", "GET", 200, "hit", f"ours{number}"))
        theirs.observe(answered("blob", "GET", 200, "hit", f"theirs{number}"))
    ours.include(lambda: [theirs.snapshot()])
    counted = ours.by(LOOKUPS, "upstream")
    assert len(counted) == LOOKUPS.most
    assert sum(counted.values()) == 2 * LOOKUPS.bound
