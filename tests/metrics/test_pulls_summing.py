"""What is kept and shown of pulls that ended, and how few steps a process gathers."""

from __future__ import annotations

import msgspec
import pytest

from entrepot.workers.wire import MAX_MESSAGE, Steps
from metrics.events import UpstreamRetry
from metrics.prometheus import Metrics
from metrics.pulls.agents import agent_of
from metrics.pulls.bars import ended_of
from metrics.pulls.gathering import MOST_AGENT, MOST_MANIFESTS, MOST_STEPS, Gathering
from metrics.pulls.model import Bar, PullDetail, PullSummary, State, Step
from metrics.pulls.summing import (
    MOST_RECENT,
    MOST_RECENT_BARS,
    MOST_SLOWEST,
    MOST_UNCHANGED,
    WINDOW_SECONDS,
    Repositories,
    Sums,
)
from tests.metrics.pulling import BASE, CONFIG, IMAGE, TOP, Watched, blob, manifest

BAR = Bar("layer", "d", "d", 1, "hit", 200, 0.0, 0.0, 0.0, 0.0, 1)


def ended(name: str, seconds: float, outcome: str = "miss", bars: int = 1, had: int = 1) -> PullDetail:
    state: State = "unchanged" if outcome == "unchanged" else "done"
    pull = PullSummary(name, "i", "d", "", "podman", state, outcome, 0.0, seconds, 10, 4, had, 40, 10)
    return PullDetail(pull, (BAR,) * bars, 0)


def test_latency_is_of_the_hours_pulls_that_transferred_something() -> None:
    sums = Sums()
    sums.add("r", ended("old", 1000.0), 0.0)
    for number in range(1, 101):
        sums.add("r", ended(str(number), float(number)), WINDOW_SECONDS + number)
    sums.add("r", ended("none", 5000.0, "unchanged"), WINDOW_SECONDS + 101)
    latency = sums.latency(WINDOW_SECONDS + 101)
    assert latency.count == 100
    assert (latency.p50, latency.p90, latency.p99) == (50, 90, 99)
    assert sums.ended_within(11.0, WINDOW_SECONDS + 101) == [float(n) for n in range(100, 89, -1)]


def test_more_pulls_than_are_remembered_are_counted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.pulls.summing.MOST_TIMES", 10)
    sums = Sums()
    for number in range(25):
        sums.add("r", ended(str(number), float(number)), WINDOW_SECONDS + number)
    latency = sums.latency(WINDOW_SECONDS + 25)
    assert (latency.count, latency.p50) == (25, 19)


def test_the_slowest_of_the_last_hour_are_kept_with_their_requests_when_they_are_recent_no_more() -> None:
    sums = Sums()
    sums.add("r", ended("slow", 99.0, bars=5), 10.0)
    for number in range(MOST_RECENT + 1):
        sums.add("r", ended(str(number), number / 1000), 700.0)
    view = sums.view([], 700.0)
    assert view.slowest[0].id == "slow"
    assert len(view.slowest) == MOST_SLOWEST
    assert "slow" not in {pull.id for pull in view.recent}
    assert [pull.id for pull in view.recent[:2]] == [str(MOST_RECENT), str(MOST_RECENT - 1)]
    detail = sums.detail("slow")
    assert detail is not None
    assert len(detail.bars) == 5
    assert sums.detail("never") is None
    assert sums.view([], 10.0 + 2 * WINDOW_SECONDS).slowest == ()


def test_a_fleet_that_looks_whether_tags_moved_leaves_the_pulls_before_it_among_the_recent() -> None:
    sums = Sums()
    sums.add("r", ended("pulled", 5.0), 1.0)
    for number in range(1000):
        sums.add("r", ended(str(number), 10.0 + number, "unchanged"), 2.0)
    shown = sums.view([], 3.0).recent
    assert [pull.id for pull in shown[:2]] == ["999", "998"]
    assert len(shown) == MOST_UNCHANGED + 1
    assert shown[-1].id == "pulled"
    assert all(sums.detail(pull.id) is not None for pull in shown)


def test_steps_of_hostile_clients_fit_into_a_message_between_processes() -> None:
    gathering, name, digest = Gathering(), "r" * 255, "sha512:" + "0" * 128
    for number in range(MOST_STEPS):
        step = blob(digest, 0, sent=1, client="f" * 45, agent="x" * 8000, repository=name)[number % 2]
        gathering.observe(step)
    message = msgspec.msgpack.encode(Steps(tuple(gathering.take())))
    assert len(message) < MAX_MESSAGE


def test_pulls_of_many_requests_take_the_room_of_several() -> None:
    sums = Sums()
    for number in range(50):
        sums.add("r", ended(str(number), 0.0, bars=MOST_RECENT_BARS // 20), float(number))
    assert len(sums.view([], 50.0).recent) == 20


def test_the_share_of_layers_that_clients_had_is_of_the_last_hour() -> None:
    sums = Sums()
    assert sums.view([], 0.0).had_share is None
    sums.add("r", ended("1", 1.0, had=4), 0.0)
    sums.add("r", ended("2", 1.0, had=0), 1.0)
    assert sums.view([], 1.0).had_share == 0.5
    sums.add("r", ended("3", 1.0, had=1), 2 * WINDOW_SECONDS)
    view = sums.view([], 2 * WINDOW_SECONDS)
    assert view.had_share == 0.25
    assert view.outcomes == {"hit": 0, "joined": 0, "miss": 3, "near": 0, "unchanged": 0, "broken": 0}


def test_what_is_pulled_most_is_found_among_more_repositories_than_are_kept() -> None:
    repositories = Repositories(most=10)
    for number in range(1000):
        repositories.add("often", 5)
        repositories.add(f"once-{number}", 1)
    (first,) = repositories.top(1)
    assert (first.repository, first.pulls, first.sent) == ("often", 1000, 5000)
    assert len(repositories.top(1000)) == 10


def test_a_pull_that_ended_is_counted_by_outcome_and_its_layers_by_who_had_them() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0, outcome="miss"), *blob(CONFIG, 0.1), *blob(TOP, 0.2, 2.0))
    watched.wait(30)
    metrics = Metrics(version="0")
    metrics.observe(ended_of("docker.io", watched.ended[0].summary(0)))
    metrics.observe(ended_of("docker.io", ended("2", 7.0, "broken").pull))
    text = metrics.expose()[0].decode()
    for line in (
        'entrepot_pulls_total{outcome="miss",upstream="docker.io"} 1.0',
        'entrepot_pulls_total{outcome="broken",upstream="docker.io"} 1.0',
        'entrepot_pull_duration_seconds_bucket{le="2.5",outcome="miss",upstream="docker.io"} 1.0',
        'entrepot_pull_size_bytes_sum{outcome="miss",upstream="docker.io"} 1000.0',
        'entrepot_pull_layers_total{had="yes",upstream="docker.io"} 2.0',
        'entrepot_pull_layer_bytes_total{had="no",upstream="docker.io"} 530.0',
    ):
        assert _in_any_order(line) in {_in_any_order(other) for other in text.splitlines()}, line
    assert 'entrepot_pull_duration_seconds_count{upstream="docker.io",outcome="broken"}' not in text


def _in_any_order(line: str) -> tuple[str, ...]:
    name, _, rest = line.partition("{")
    labels, _, number = rest.partition("}")
    return name, *sorted(labels.split(",")), number


def test_a_process_gathers_steps_of_pulls_alone_and_not_without_end() -> None:
    woken = []
    gathering = Gathering()
    gathering.wake = lambda: woken.append(True)
    gathering.observe(UpstreamRetry("docker.io", "503"))
    assert gathering.take() == []
    begin, end = blob(BASE, 0)
    once = manifest("1", IMAGE, 0)
    for event in (once, manifest("1", IMAGE, 0.01), begin, end):
        gathering.observe(event)
    assert gathering.take() == [once, begin, end]
    for number in range(MOST_MANIFESTS + 5):
        gathering.observe(manifest(str(number), IMAGE, 0))
    assert gathering.dropped == 5
    while len(gathering.take()) == MOST_MANIFESTS:
        for _ in range(MOST_STEPS + 3):
            gathering.observe(begin)
    assert gathering.dropped == 5 + 3
    assert len(woken) == 3


def test_ends_of_blobs_have_room_where_manifests_are_too_many() -> None:
    gathering, (begin, end) = Gathering(), blob(BASE, 0)
    for number in range(MOST_STEPS):
        gathering.observe(manifest(str(number), IMAGE, 0))
    gathering.observe(begin)
    gathering.observe(end)
    assert gathering.take()[-2:] == [begin, end]


def test_a_manifest_that_is_asked_for_again_after_a_blob_is_another_machines() -> None:
    gathering = Gathering()
    steps: list[Step] = [manifest("1", IMAGE, 0), blob(BASE, 0.1)[0], manifest("1", IMAGE, 0.2)]
    for step in steps:
        gathering.observe(step)
    assert gathering.take() == steps


def test_of_a_long_user_agent_the_begin_is_kept() -> None:
    gathering = Gathering()
    gathering.observe(manifest("1", IMAGE, 0, agent="podman/5 " + "x" * 8000))
    (step,) = gathering.take()
    assert len(step.agent) == MOST_AGENT
    assert agent_of(step.agent) == "podman"


@pytest.mark.parametrize(
    ("header", "agent"),
    [
        (
            "docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1 os/linux arch/amd64 "
            "UpstreamClient(Docker-Client/20.10.24+dfsg1 \\(linux\\))",
            "docker",
        ),
        ("containerd/1.6.20~ds1", "containerd"),
        ("containers/5.23.1 (github.com/containers/image)", "podman"),
        ("libpod/4.3.1", "podman"),
        ("skopeo/1.9.3", "skopeo"),
        ("buildkit/v0.12", "buildkit"),
        ("cri-o/1.28.0 go/go1.20 os/linux arch/amd64", "cri-o"),
        ("crane/v0.16.1 go-containerregistry/v0.16.1", "crane"),
        ("kaniko go-containerregistry/v0.16.1", "kaniko"),
        ("oras/1.1.0", "oras"),
        ("regclient/regctl (v0.5.0)", "regclient"),
        ("entrepot", "entrepot"),
        ("curl/8.0", "other"),
        ("", "other"),
    ],
)
def test_programs_are_told_by_their_user_agents(header: str, agent: str) -> None:
    assert agent_of(header) == agent
