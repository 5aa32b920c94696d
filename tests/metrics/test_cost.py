"""Counting costs next to nothing where a request is answered from memory, and loses nothing to who looks meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import cast

import msgspec
import pytest

from metrics.declarations import FIRST_BYTE_SECONDS, LOOKUPS, REQUEST_DURATION_SECONDS, REQUESTS, SENT_BYTES
from metrics.emit import emitting
from metrics.events import RequestFinished
from metrics.families import Snapshot
from metrics.logs import Logs
from metrics.prometheus import Metrics
from metrics.pulls.gathering import Gathering
from tests.metrics.test_bounds import busy

WORKERS = 8


def hit(*, alike: int = 7, seconds: float = 0.0003) -> RequestFinished:
    return RequestFinished(
        kind="manifest",
        method="GET",
        status=200,
        outcome="hit",
        upstream="docker.io",
        repository="library/alpine",
        reference="3.20",
        sent=1000,
        first_byte=seconds,
        duration=seconds,
        client="192.0.2.7",
        request_id="r-1",
        digest="sha256:" + "a" * 64,
        agent="containerd/2.0",
        started=1.0,
        alike=alike,
    )


def cpu(act: Callable[[], object], rounds: int = 5000) -> float:
    """Return the CPU seconds that one `act` takes, at best."""
    best = math.inf
    for _ in range(9):
        began = time.thread_time()
        for _ in range(rounds):
            act()
        best = min(best, time.thread_time() - began)
    return best / rounds


def test_counting_a_hit_costs_less_than_to_say_what_it_was() -> None:
    # An answer from memory takes forty times what its event takes to be made; `python -m bench --only metrics-cost`.
    logs, event = Logs(level="warning"), hit()
    emit = emitting(Metrics(version="1"), logs, Gathering())
    counting = cpu(lambda: emit(event)) - cpu(lambda: logs.log_request(event))
    assert counting < cpu(hit)


def test_what_is_counted_while_another_thread_looks_is_not_lost() -> None:
    metrics, over, rounds = Metrics(version="1"), threading.Event(), 30_000
    looks = 0

    def look() -> None:
        nonlocal looks
        while not over.is_set():
            metrics.expose()
            looks += 1

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(rounds):
        metrics.observe(hit(alike=number % 3))
    over.set()
    thread.join()
    assert looks
    assert metrics.by(REQUESTS, "status") == {("200",): rounds}
    assert metrics.by(LOOKUPS, "outcome") == {("hit",): rounds}
    assert sum(metrics.buckets_by(REQUEST_DURATION_SECONDS, "outcome")["hit"]) == rounds
    assert (
        f'entrepot_request_duration_seconds_sum{{outcome="hit"}} {rounds * 0.0003:.1f}' in metrics.expose()[0].decode()
    )


def test_bytes_of_a_request_that_is_being_counted_as_somebody_looks_are_not_lost() -> None:
    metrics = Metrics(version="1")
    metrics.observe(hit())

    class LookedAt:
        """A request during whose count another thread exposes, after its bytes and before its number."""

        def __getattr__(self, name: str) -> object:
            if name == "first_byte":
                metrics.expose()
            return getattr(hit(), name)

    metrics.expose()
    metrics.tally(hit()).count(cast(RequestFinished, LookedAt()))
    assert sum(metrics.by(REQUESTS, "status").values()) == 2
    assert sum(metrics.by(SENT_BYTES, "outcome").values()) == 2000


def test_an_answer_that_began_before_it_ended_counts_twice() -> None:
    metrics = Metrics(version="1")
    metrics.observe(msgspec.structs.replace(hit(), duration=1.0))
    metrics.observe(hit())
    assert metrics.buckets_by(FIRST_BYTE_SECONDS, "outcome") == {"hit": [2, 0, 0, 0, 0, 0, 0, 0]}
    assert metrics.buckets_by(REQUEST_DURATION_SECONDS, "outcome") == {"hit": [1, 0, 0, 0, 0, 1, 0, 0]}


@pytest.fixture
def reports() -> list[bytes]:
    """What eight busy workers report."""
    return [msgspec.msgpack.encode(busy().snapshot())] * WORKERS


def test_a_report_and_the_reports_of_eight_workers_hold_no_loop_for_long(reports: list[bytes]) -> None:
    decode = msgspec.msgpack.Decoder(Snapshot).decode
    worker = busy()
    told = cpu(lambda: msgspec.msgpack.encode(worker.snapshot()), rounds=3)
    heard = cpu(lambda: [decode(report) for report in reports], rounds=3)
    assert told < 0.05
    assert heard < 0.05


def test_the_numbers_of_eight_workers_are_exposed_as_one(reports: list[bytes]) -> None:
    ours, one = Metrics(version="1.2.3"), busy()
    snapshots = [msgspec.msgpack.decode(report, type=Snapshot) for report in reports]
    ours.include(lambda: snapshots)
    assert sum(ours.by(REQUESTS, "kind").values()) == WORKERS * sum(one.by(REQUESTS, "kind").values())
