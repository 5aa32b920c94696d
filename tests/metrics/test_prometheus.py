"""Events in, exposition out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import get_args

import msgspec
import pytest
from hypothesis import given, strategies as st
from prometheus_client import openmetrics
from prometheus_client.metrics_core import Metric as Exposed
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from metrics import declarations as declared, events
from metrics.declarations import METRICS
from metrics.document import page
from metrics.events import (
    BucketCollected,
    BucketHealth,
    BucketRequest,
    BucketTransferred,
    ClosureEvicted,
    Event,
    FeedFailed,
    FeedStanding,
    FillFinished,
    FillJoined,
    FillResumed,
    FillStarted,
    ImageFailed,
    ImageSynced,
    NeighbourAnswered,
    NeighbourRequest,
    PeerFailed,
    PeerPolled,
    PeerReconciled,
    PeerStanding,
    PeerTransferred,
    PullEnded,
    RecordsMerged,
    RedisCall,
    RedisHealth,
    RedisRefused,
    RegionAnswered,
    RequestFinished,
    SpaceMeasured,
    StaleServed,
    TagRevalidated,
    UploadsQueued,
    UpstreamHealth,
    UpstreamQuota,
    UpstreamRequest,
    UpstreamRetry,
    VerificationFailed,
    WarmFinished,
)
from metrics.families import Distribution, Snapshot
from metrics.prometheus import Metrics, Quota

DIGEST = "sha256:" + "a" * 64
HIT = RequestFinished(
    kind="manifest",
    method="GET",
    status=200,
    outcome="hit",
    upstream="docker.io",
    repository="library/alpine",
    reference="3.20",
    sent=1000,
    first_byte=0.002,
    duration=0.004,
    client="192.0.2.7",
    request_id="r-1",
)
ONE_OF_EACH: tuple[Event, ...] = (
    HIT,
    StaleServed(90.0),
    UpstreamRequest("docker.io", "blob", "GET", "200", 0.2),
    UpstreamRetry("docker.io", "timeout"),
    UpstreamQuota("docker.io", 100, 42, 21600),
    UpstreamHealth("docker.io", True, False),
    WarmFinished(1, "done", 1.7e9),
    RedisHealth(True),
    RedisCall("acquire", "ok", 0.001),
    RedisRefused("acquire"),
    RecordsMerged(1, 2, 3, 4),
    FeedFailed("unreachable"),
    FeedStanding(2, 1),
    PeerStanding("us-east", 12.5, 3, 4096, 1),
    PeerFailed("us-east", "unreachable"),
    PeerPolled("us-east", 120, 2),
    PeerReconciled("us-east", 4, 9000),
    PeerTransferred("us-east", 4096),
    ImageSynced("us-east", 4096, 2.5),
    ImageFailed("us-east", "missing"),
    RegionAnswered("changes", 200, 120),
    NeighbourRequest("blob", "ok", 0.01),
    NeighbourAnswered("blob", 200, 4096),
    PullEnded("docker.io", "miss", 1.5, 4096, 3, 1, 5000, 1000),
    FillStarted("docker.io", 512),
    FillJoined("docker.io"),
    FillResumed("docker.io", "mirror.example"),
    FillFinished("docker.io", "committed", 2048, 1.5, {"neighbour": 1, "bucket": 2}),
    FillFinished("docker.io", "failed", 10, 1.5, reason="network"),
    VerificationFailed("docker.io", "registry-1.docker.io", DIGEST),
    TagRevalidated("docker.io", "moved"),
    ClosureEvicted("quota", 3, 4096),
    SpaceMeasured(1000, 900, 500, 10_000, 20_000),
    BucketRequest("get", "ok", 0.01),
    BucketTransferred("up", 4096),
    BucketHealth(True, "did not answer in time"),
    UploadsQueued(3, 12.5),
    BucketCollected("done", 2, 4096, 1),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.expose()[0].decode()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in parse_text(text) for s in family.samples}


def number(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_every_kind_of_event_is_counted(metrics: Metrics) -> None:
    counted = set(get_args(events.Event)) - {events.BlobStarted}  # that one is for pulls
    assert {type(event) for event in ONE_OF_EACH} == counted
    for event in ONE_OF_EACH:
        before = samples(metrics)
        metrics.observe(event)
        after = {key: value for key, value in samples(metrics).items() if not key[0].startswith("process_")}
        assert after != before, f"{event} left no trace"


def test_a_request_counts_as_request_look_up_bytes_and_times(metrics: Metrics) -> None:
    metrics.observe(HIT)
    metrics.observe(HIT)
    assert number(metrics, "entrepot_requests_total", kind="manifest", method="GET", status="200") == 2
    labels = {"kind": "manifest", "upstream": "docker.io"}
    assert number(metrics, "entrepot_lookups_total", outcome="hit", **labels) == 2
    assert number(metrics, "entrepot_sent_bytes_total", outcome="hit", **labels) == 2000
    assert number(metrics, "entrepot_time_to_first_byte_seconds_count", kind="manifest", outcome="hit") == 2
    assert number(metrics, "entrepot_request_duration_seconds_sum", outcome="hit") == pytest.approx(0.008)


def test_a_request_that_looked_nothing_up_is_no_look_up(metrics: Metrics) -> None:
    metrics.observe(RequestFinished("ping", "GET", 200, "none", "", "", "", 2, 0.001, 0.001, "192.0.2.7", "r-2"))
    assert not [key for key in samples(metrics) if key[0] == "entrepot_lookups_total"]
    assert sum(metrics.totals().values()) == 0


def test_totals_add_up_over_kinds_and_upstreams(metrics: Metrics) -> None:
    for kind, upstream, outcome in (
        ("blob", "docker.io", "hit"),
        ("manifest", "ghcr.io", "hit"),
        ("blob", "ghcr.io", "miss"),
        ("blob", "ghcr.io", "joined"),
    ):
        metrics.observe(RequestFinished(kind, "GET", 200, outcome, upstream, "a/b", DIGEST, 1, 0.1, 0.1, "c", "r"))
    counted = {"hit": 2, "joined": 1, "miss": 1}
    assert (
        metrics.totals()
        == dict.fromkeys(("neighbour", "bucket", "stale", "relayed", "redirected", "error"), 0) | counted
    )


def test_a_running_fill_is_counted_until_it_ends(metrics: Metrics) -> None:
    metrics.observe(FillStarted("docker.io", 512))
    metrics.observe(FillStarted("docker.io", 0))
    metrics.observe(FillFinished("docker.io", "committed", 2048, 1.5))
    assert number(metrics, "entrepot_fills_running", upstream="docker.io") == 1
    assert number(metrics, "entrepot_received_bytes_total", upstream="docker.io") == 2048
    assert number(metrics, "entrepot_recovered_bytes_total", upstream="docker.io") == 512
    assert number(metrics, "entrepot_fills_finished_total", upstream="docker.io", outcome="committed") == 1


def test_remaining_quota_is_what_the_upstream_said_last(metrics: Metrics) -> None:  # P35
    assert metrics.quota("docker.io") is None
    metrics.observe(UpstreamQuota("docker.io", 100, 42, 21600))
    metrics.observe(UpstreamQuota("docker.io", 100, 41, 21600))
    assert number(metrics, "entrepot_upstream_quota_remaining", upstream="docker.io") == 41
    assert metrics.quota("docker.io") == Quota(100, 41, 21600)


def test_a_host_is_told_to_be_well_from_its_first_answer_on(metrics: Metrics) -> None:
    metrics.observe(UpstreamRequest("registry-1.docker.io", "manifest", "GET", "200", 0.1))
    for name in ("entrepot_upstream_failing", "entrepot_upstream_credential_refused"):
        assert number(metrics, name, upstream="registry-1.docker.io") == 0
    metrics.observe(UpstreamHealth("registry-1.docker.io", True, True))
    metrics.observe(UpstreamRequest("registry-1.docker.io", "blob", "GET", "network", 0.1))
    for name in ("entrepot_upstream_failing", "entrepot_upstream_credential_refused"):
        assert number(metrics, name, upstream="registry-1.docker.io") == 1


def test_both_expositions_parse_and_agree_with_the_declarations(metrics: Metrics) -> None:
    for event in ONE_OF_EACH:
        metrics.observe(event)
    metrics.worker_up(1, up=True)
    metrics.worker_restarted(1)
    metrics.worker_used(1, resident=1, cpu=1.0)
    for metric in METRICS:
        if metric.type == "gauge" and not metric.labels:
            metrics.set(metric, 1)
    text, text_type = metrics.expose("text/plain")
    open_text, open_type = metrics.expose("application/openmetrics-text; version=1.0.0")
    assert text_type.startswith("text/plain")
    assert open_type.startswith(openmetrics.exposition.CONTENT_TYPE_LATEST.split(";")[0])
    parsers: list[tuple[Callable[[str], Iterable[Exposed]], bytes]] = [
        (parse_text, text),
        (parse_openmetrics, open_text),
    ]
    for parse, exposition in parsers:
        parsed = {family.name: family for family in parse(exposition.decode())}
        for metric in METRICS:
            family = parsed[metric.name.removesuffix("_total")]
            assert family.type == metric.type
            assert family.documentation == metric.help
            assert family.samples, f"{metric.name} has no sample"
            assert {label for s in family.samples for label in s.labels} - {"le"} == set(metric.labels)


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("entrepot_")
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert bool(metric.buckets) == (metric.type == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert not set(metric.labels) & {"repository", "reference", "digest", "client", "tag", "request_id"}


def test_nothing_of_a_repository_or_a_client_is_exposed(metrics: Metrics) -> None:
    for event in ONE_OF_EACH:
        metrics.observe(event)
    text = metrics.expose()[0].decode()
    for private in (HIT.repository, HIT.client, HIT.reference, HIT.request_id, DIGEST):
        assert private not in text


def test_labels_stay_few_whatever_comes(metrics: Metrics) -> None:
    rounds = 5000
    for i in range(rounds):
        metrics.observe(RequestFinished("blob", f"M{i}", 200, "hit", f"host{i}", "a", "b", 1, 0.1, 0.1, "c", "r"))
        metrics.observe(UpstreamRequest("docker.io", "blob", "GET", str(i), 0.1))
    exposed = samples(metrics)
    looked_up = {key: value for key, value in exposed.items() if key[0] == "entrepot_lookups_total"}
    asked = {key: value for key, value in exposed.items() if key[0] == "entrepot_upstream_requests_total"}
    assert len(looked_up) == declared.LOOKUPS.most
    assert len(asked) == declared.UPSTREAM_REQUESTS.most
    assert sum(looked_up.values()) == sum(asked.values()) == rounds
    assert number(metrics, "entrepot_requests_total", kind="blob", method="other", status="200") == rounds


def test_a_reader_is_asked_at_every_exposition(metrics: Metrics) -> None:
    dropped = 0
    metrics.read_from(declared.LOG_LINES_DROPPED, lambda: dropped)
    assert number(metrics, "entrepot_log_lines_dropped_total") == 0
    dropped = 7
    assert number(metrics, "entrepot_log_lines_dropped_total") == 7


def test_two_metrics_share_nothing(metrics: Metrics) -> None:
    metrics.observe(HIT)
    assert Metrics(version="1.2.3").totals()["hit"] == 0


def test_the_build_is_told(metrics: Metrics) -> None:
    assert [key for key in samples(metrics) if key[0] == "entrepot_build_info" and ("version", "1.2.3") in key[1]]


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_a_distribution_counts_each_value_once_under_the_first_bound_that_holds_it(values: list[float]) -> None:
    bounds = (0.001, 0.5, 1.0, 60.0)
    cell = Distribution(bounds)
    for value in values:
        cell.observe(value)
    edges = (-math.inf, *bounds, math.inf)
    expected = [sum(low < value <= high for value in values) for low, high in pairwise(edges)]
    assert cell.counts == expected
    assert cell.total == pytest.approx(sum(values))


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_an_event_costs_microseconds(metrics: Metrics, event: Event) -> None:
    rounds, best = 2000, math.inf
    for _ in range(5):
        start = time.thread_time()
        for _ in range(rounds):
            metrics.observe(event)
        best = min(best, (time.thread_time() - start) / rounds)
    assert best < 10e-6


def test_the_documentation_is_current(pytestconfig: pytest.Config) -> None:
    written = (pytestconfig.rootpath / "docs" / "metrics.md").read_text()
    assert written == page(), "run: python -m metrics.document > docs/metrics.md"


def test_what_several_processes_counted_is_exposed_as_one() -> None:
    ours, theirs = Metrics(version="1"), Metrics(version="1")
    for metrics in (ours, theirs):
        metrics.observe(HIT)
        metrics.observe(FillStarted("docker.io", 0))
        metrics.observe_lag(0.002)
    theirs.observe(UpstreamQuota("docker.io", 100, 40, 21600))
    ours.include(lambda: [theirs.snapshot()])
    text = ours.expose()[0].decode()
    assert 'entrepot_requests_total{kind="manifest",method="GET",status="200"} 2.0' in text
    assert 'entrepot_fills_running{upstream="docker.io"} 2.0' in text
    assert "entrepot_event_loop_lag_seconds_count 2.0" in text
    assert 'entrepot_upstream_quota_remaining{upstream="docker.io"} 40.0' in text
    assert ours.totals()["hit"] == 2
    ours.include(tuple)
    ours.absorb(theirs.snapshot())  # it died: what it counted stays, what it was doing has ended
    text = ours.expose()[0].decode()
    assert 'entrepot_requests_total{kind="manifest",method="GET",status="200"} 2.0' in text
    assert 'entrepot_fills_running{upstream="docker.io"} 1.0' in text


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_what_a_worker_counted_can_be_read_by_its_supervisor(metrics: Metrics, event: Event) -> None:
    metrics.observe(event)
    snapshot = metrics.snapshot()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot) == snapshot


def test_of_a_quota_that_several_processes_saw_the_least_is_told() -> None:  # P35
    ours, theirs = Metrics(version="1"), Metrics(version="1")
    ours.observe(UpstreamQuota("r.test", 100, 90, 21600))
    theirs.observe(UpstreamQuota("r.test", 100, 7, 21600))
    ours.include(lambda: [theirs.snapshot()])
    assert b'entrepot_upstream_quota_remaining{upstream="r.test"} 7.0' in ours.expose()[0]
