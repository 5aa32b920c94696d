"""What is a pull: its begin, its requests, its end, and how several of one client are told apart."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from metrics.pulls.closures import Closure, Closures
from metrics.pulls.model import Part, Step
from metrics.pulls.tracking import ABANDONED_SECONDS, LATE_SECONDS, MOST_PULLS, QUIET_SECONDS, Repeats
from tests.metrics.pulling import (
    BASE,
    CONFIG,
    IMAGE,
    INDEX,
    OF_IMAGE,
    OF_OTHER,
    OF_PROOF,
    OTHER_IMAGE,
    PROOF,
    SIZES,
    SKOPEO,
    TOP,
    Watched,
    blob,
    manifest,
    told_at,
)


def whole(at: float = 0.0, client: str = "10.0.0.1", repository: str = "library/one", tag: str = "1") -> list[Step]:
    """Return the steps of a pull of 2 s by tag, of an image of two platforms, in the order of time."""
    steps: list[Step] = [
        manifest(tag, INDEX, at, client=client, repository=repository, outcome="miss"),
        manifest(IMAGE, IMAGE, at + 0.1, client=client, repository=repository),
    ]
    for digest, begin, seconds in ((CONFIG, 0.2, 0.1), (BASE, 0.3, 1.7), (TOP, 0.3, 0.5)):
        steps += blob(digest, at + begin, seconds, client=client, repository=repository)
    return sorted(steps, key=told_at)


def test_a_pull_ends_with_the_last_blob_of_its_image() -> None:
    watched = Watched()
    *before, last = whole(at=5.0)
    watched.take(*before)
    assert not watched.ended
    watched.take(last)
    (pull,) = watched.ended
    summary = pull.summary(1000.0)
    assert summary.seconds == pytest.approx(2.0)
    assert summary.started_at == pytest.approx(1005.0)
    assert (summary.state, summary.outcome) == ("done", "miss")
    assert (summary.image, summary.platform, summary.agent) == ("docker.io/library/one:1", "linux/amd64", "podman")
    assert (summary.layers, summary.had, summary.layer_bytes, summary.had_bytes) == (2, 0, 1500, 0)
    assert summary.sent == 400 + 400 + 1600


def test_docker_asks_for_the_head_of_a_tag_and_then_for_its_digest_in_one_pull() -> None:
    watched = Watched()
    watched.take(manifest("1", INDEX, 0, method="HEAD"), manifest(INDEX, INDEX, 0.1), *whole()[1:])
    assert [pull.reference for pull in watched.ended] == ["1"]
    assert len(watched.ended[0].steps) == 6


def test_layers_that_the_client_has_are_not_waited_for_longer_than_it_is_quiet() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), *blob(CONFIG, 0.1), *blob(TOP, 0.2, 0.8))
    watched.wait(1.0 + QUIET_SECONDS - 0.01)
    assert not watched.ended
    watched.wait(1.1 + QUIET_SECONDS)
    summary = watched.ended[0].summary(0)
    assert (summary.state, summary.layers, summary.had, summary.had_bytes) == ("done", 2, 1, 1000)
    assert summary.seconds == pytest.approx(1.1)  # the quiet is no part of it


def test_nothing_under_way_is_taken_for_quiet_however_long_a_layer_takes() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0))
    begin, end = blob(TOP, 0.2, 60.0)
    watched.take(begin)
    watched.wait(59.0)
    assert not watched.ended
    watched.take(end)
    watched.wait(70.0)
    assert watched.ended[0].summary(0).seconds == pytest.approx(60.2)


@pytest.mark.parametrize("asked", [(), (CONFIG,)])
def test_who_asks_for_no_layer_had_the_image_already(asked: tuple[str, ...]) -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0, outcome="miss"))
    for digest in asked:  # podman asks for the config each time
        watched.take(*blob(digest, 0.1, 0.1))
    watched.wait(20)
    summary = watched.ended[0].summary(0)
    assert (summary.state, summary.outcome, summary.had) == ("unchanged", "unchanged", 2)


@pytest.mark.parametrize(
    ("outcomes", "outcome"),
    [
        (("hit", "joined", "relayed"), "miss"),
        (("hit", "joined", "neighbour"), "joined"),
        (("hit", "hit", "redirected"), "near"),
        (("hit", "hit", "hit"), "hit"),
    ],
)
def test_the_worst_of_a_pulls_requests_is_its_outcome(outcomes: tuple[str, ...], outcome: str) -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0))
    for digest, each in zip((CONFIG, BASE, TOP), outcomes, strict=True):
        watched.take(*blob(digest, 0.1, 0.1, outcome=each, status=307 if each == "redirected" else 200))
    assert watched.ended[0].summary(0).outcome == outcome


def test_a_broken_blob_breaks_the_pull_unless_the_rest_is_asked_for() -> None:  # P28
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), *blob(CONFIG, 0.1), *blob(BASE, 0.2, sent=600, status=499))
    watched.take(*blob(TOP, 0.3), *blob(BASE, 1.5, sent=400, status=206))
    assert watched.states() == ["done"]
    watched.take(manifest("1", IMAGE, 10), *blob(CONFIG, 10.1), *blob(BASE, 10.2, sent=600, status=499))
    watched.wait(30)
    assert watched.states() == ["done", "broken"]


def test_a_manifest_that_failed_and_then_came_breaks_nothing() -> None:
    watched = Watched()
    watched.take(manifest("1", "", 0, status=503, outcome="error"), *whole(0.2))
    assert watched.states() == ["done"]
    watched.take(manifest("1", "", 20, status=503, outcome="error"))
    watched.wait(40)
    assert watched.states() == ["done", "broken"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_refused_a_manifest_pulls_nothing(status: int) -> None:
    watched = Watched()
    watched.take(manifest("1", "", 0, status=status, outcome="error"))
    assert len(watched.tracker) == 0


def test_signatures_that_are_looked_for_are_no_pulls() -> None:
    watched = Watched()
    watched.take(manifest(f"sha256-{'0' * 64}.sig", "sha256:signature", 0))
    assert len(watched.tracker) == 0


@pytest.mark.parametrize("looks", [(0.0, 1.0, 2.0, 3.0, 4.0), (0.0, 4.0), (0.0, 2.5, 4.9, 5.5)])
def test_who_looked_at_a_tag_from_the_same_address_before_is_no_part_of_a_pull(looks: tuple[float, ...]) -> None:
    watched = Watched()
    watched.take(*(manifest("1", IMAGE, at, method="HEAD") for at in looks))
    watched.take(manifest("1", IMAGE, 6.0, method="HEAD"), manifest(IMAGE, IMAGE, 6.15))
    for digest in (CONFIG, BASE, TOP):
        watched.take(*blob(digest, 6.3, 0.7))
    watched.wait(30)
    (pull,) = [pull for pull in watched.ended if pull.blobs]
    summary = pull.summary(0)
    assert (summary.state, summary.had, summary.sent) == ("done", 0, 400 + 1600)
    assert 1.0 <= summary.started_at + summary.seconds - 6.0 <= 1.01
    assert 6.0 <= summary.started_at <= 6.15
    assert min(bar.start for bar in pull.detail(0).bars) == 0.0


def test_a_slow_head_and_the_get_of_the_same_tag_after_it_are_of_one_client() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0, method="HEAD"), manifest("1", IMAGE, 0.2))
    for digest in (CONFIG, BASE, TOP):
        watched.take(*blob(digest, 0.4, 0.6))
    assert [pull.summary(0).seconds for pull in watched.ended] == [pytest.approx(1.0)]


def test_two_clients_and_two_repositories_are_never_one_pull() -> None:
    watched = Watched()
    steps = [*whole(), *whole(client="10.0.0.2"), *whole(repository="library/two")]
    watched.take(*sorted(steps, key=told_at))
    assert watched.states() == ["done"] * 3
    assert {pull.sent for pull in watched.ended} == {2400}


def test_another_machine_behind_the_same_address_has_a_pull_of_its_own() -> None:
    watched = Watched()
    watched.take(*sorted([*whole(0), *whole(0.5)], key=told_at))
    assert watched.states() == ["done", "done"]
    assert [pull.sent for pull in watched.ended] == [2400, 2400]


def test_a_layer_that_another_pull_of_the_machine_fetches_counts_as_had() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), manifest("2", "sha256:other", 0.1, repository="library/two"))
    watched.take(*blob("sha256:config2", 0.2, 0.1, repository="library/two"))
    watched.take(*blob(CONFIG, 0.3, 0.1), *blob(TOP, 0.3, 0.1), *blob(BASE, 0.4, 0.1))
    watched.wait(20)
    assert sorted((pull.repository, pull.summary(0).had) for pull in watched.ended) == [
        ("library/one", 0),
        ("library/two", 1),
    ]


def test_a_blob_that_no_manifest_names_is_shown_with_the_newest_pull() -> None:
    watched = Watched()
    begin, end = blob("sha256:foreign", 0.5, sent=7)
    watched.take(manifest("1", IMAGE, 0), begin, end)
    watched.wait(20)
    assert [(bar.role, bar.sent) for bar in watched.ended[0].detail(0).bars] == [("manifest", 400), ("other", 7)]


def test_a_waterfall_tells_the_wait_for_the_source_from_our_own() -> None:
    watched = Watched()
    watched.take(*whole())
    bar = watched.ended[0].detail(0).bars[0]
    assert (bar.role, bar.reference) == ("manifest", "1")
    assert (bar.start, bar.wait, bar.upstream, bar.transfer) == pytest.approx((0.0, 0.05, 0.05, 0.0))


def test_what_a_dead_worker_had_under_way_breaks_the_pull_at_once_unless_it_is_asked_for_again() -> None:
    watched = Watched()
    begin, _ = blob(TOP, 0.2, 60.0)
    watched.take(manifest("1", IMAGE, 0), begin, teller=77)
    watched.tracker.lost(77, 1.0)
    watched.wait(1.1 + QUIET_SECONDS)
    assert watched.states() == ["broken"]
    assert [(bar.outcome, bar.status, bar.transfer) for bar in watched.ended[0].detail(0).bars] == [
        ("hit", 200, 0.0),
        ("error", 500, 0.8),
    ]


def test_a_request_whose_end_nobody_told_is_given_up_after_a_day() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), blob(TOP, 0.2)[0])
    watched.wait(ABANDONED_SECONDS)
    assert not watched.ended
    watched.wait(ABANDONED_SECONDS + 1 + QUIET_SECONDS)
    watched.wait(ABANDONED_SECONDS + 2 + 2 * QUIET_SECONDS)
    assert watched.states() == ["broken"]


def test_more_pulls_than_are_kept_end_the_oldest() -> None:
    watched = Watched()
    for number in range(MOST_PULLS + 3):
        watched.tracker.take(manifest("1", IMAGE, number / 1e6, client=str(number)), 0.0)
    assert len(watched.tracker) == MOST_PULLS
    assert len(watched.tracker.tick(0.0)) == 3


def test_thousands_of_requests_for_the_same_tag_are_few_steps() -> None:
    flood: list[Step] = [manifest("1", IMAGE, number / 1000) for number in range(1000)]
    others = whole(client="10.0.0.2")
    repeats = Repeats()
    assert [step for step in [*flood, *others] if not repeats.has(step)] == [flood[0], *others]


def test_a_tag_that_is_asked_for_again_after_a_blob_is_no_repeat() -> None:
    repeats = Repeats()
    steps = [*whole(0), *whole(0.1)]
    assert [step for step in steps if not repeats.has(step)] == steps


def test_heads_of_a_million_tags_end_no_pull_that_transfers() -> None:
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), blob(BASE, 0.1)[0])
    for number in range(2 * MOST_PULLS):
        watched.tracker.take(manifest(f"t{number}", IMAGE, 0.2, method="HEAD"), 0.2)
    assert len(watched.tracker) == MOST_PULLS
    assert watched.tracker.running()[0].reference == "1"
    watched.wait(0.3)
    assert "1" not in {pull.reference for pull in watched.ended}


def test_what_is_kept_of_all_pulls_has_a_bound_and_the_largest_is_given_up() -> None:
    watched, most, clients = Watched(most_kept=1000), 1000, 10
    watched.take(manifest("1", IMAGE, 0), blob(BASE, 0.1)[0])
    for client in range(clients):
        watched.tracker.take(manifest("1", IMAGE, 0, client=str(client)), 0.0)
        for number in range(most // clients):
            watched.tracker.take(blob(f"sha256:{number}", 0.1, sent=1, client=str(client))[0], 0.1)
    watched.wait(0.2)
    assert watched.ended
    assert all(len(pull.blobs) > most // clients // 2 for pull in watched.ended)
    assert sum(pull.kept() for pull in watched.tracker.running()) <= most


def test_what_a_large_image_names_is_kept_once_whoever_pulls_it() -> None:
    watched = Watched()
    large = Closure([Part(f"sha256:{number}", 10, "layer") for number in range(20_000)])
    watched.tracker.learn("sha256:large", large, 0)
    for number in range(3):
        client = str(number)
        watched.take(manifest("1", "sha256:large", 0, client=client), *blob("sha256:7", 0.1, sent=10, client=client))
    pulls = watched.tracker.running()
    assert [pull.chosen is large for pull in pulls] == [True] * 3
    assert [pull.kept() < 10 for pull in pulls] == [True] * 3
    assert (pulls[0].summary(0).layers, pulls[0].summary(0).had, pulls[0].summary(0).had_bytes) == (
        20_000,
        19_999,
        199_990,
    )


def test_a_layer_that_nobody_has_to_serve_breaks_no_pull_when_it_is_refused() -> None:  # P40
    watched = Watched()
    watched.take(manifest("1", IMAGE, 0), *blob("sha256:foreign", 0.1, sent=0, status=404, outcome="error"))
    for digest in (CONFIG, BASE, TOP):
        watched.take(*blob(digest, 0.2))
    assert watched.states() == ["done"]


def test_ranges_that_came_before_the_manifest_was_known_make_a_layer_whole() -> None:
    watched = Watched()
    watched.take(manifest("1", "sha256:new", 0), *blob(CONFIG, 0.1), *blob(TOP, 0.2))
    watched.take(*blob(BASE, 0.2, sent=600, status=206), *blob(BASE, 0.3, sent=400, status=206))
    watched.tracker.learn("sha256:new", Closure(OF_IMAGE), 2.0)
    watched.wait(2.0)
    assert watched.states() == ["done"]


def test_what_manifests_name_is_kept_within_its_bound() -> None:
    closures = Closures(most=10)
    for number in range(5):
        closures.put(str(number), Closure(OF_IMAGE))
        closures.get("0")
    assert [closures.get(str(number)) is not None for number in range(5)] == [True, False, False, False, True]


def test_an_image_that_is_learned_of_late_ends_as_others() -> None:
    watched = Watched()
    watched.take(manifest("1", "sha256:new", 0), *blob(CONFIG, 0.1), *blob(BASE, 0.2), *blob(TOP, 0.3))
    assert watched.tracker.unknown() == {"sha256:new"}
    watched.tracker.learn("sha256:new", Closure(OF_IMAGE), 1.5)
    watched.wait(1.5)
    assert watched.states() == ["done"]


def test_a_copy_of_all_platforms_one_after_another_is_one_pull_without_its_attestations() -> None:
    watched = Watched()
    watched.take(manifest("1", INDEX, 0, agent=SKOPEO))
    for at, (digest, parts) in enumerate(((IMAGE, OF_IMAGE), (OTHER_IMAGE, OF_OTHER), (PROOF, OF_PROOF)), 1):
        watched.take(manifest(digest, digest, at, agent=SKOPEO))
        for part in parts:
            if not (digest == OTHER_IMAGE and part.digest == BASE):
                watched.take(*blob(part.digest, at + 0.2, 0.5, agent=SKOPEO))
    watched.wait(30)
    (pull,) = watched.ended
    summary = pull.summary(0)
    assert (summary.state, summary.layers, summary.had, summary.platform) == ("done", 2, 0, "")
    assert summary.seconds == pytest.approx(3.7)


def test_who_asks_for_a_tag_each_second_has_many_pulls_and_no_endless_one() -> None:
    watched = Watched()
    for second in range(31):
        watched.take(manifest("1", IMAGE, second, method="HEAD"))
    assert len(watched.ended) == 5
    assert watched.states() == ["unchanged"] * 5


def test_a_tag_that_another_worker_tells_of_late_is_the_one_that_was_pulled() -> None:
    watched = Watched(settle=1.5)
    of_tag, others = manifest("1", INDEX, 0), [step for step in whole(0.2) if getattr(step, "reference", "") != "1"]
    watched.take(*others)
    watched.tracker.take(of_tag, 3.0)
    watched.wait(20)
    assert [(pull.reference, pull.summary(0).state) for pull in watched.ended] == [("1", "done")]
    assert watched.ended[0].summary(0).seconds == pytest.approx(2.2)


def test_a_blob_that_is_told_of_before_its_manifest_is_of_the_pull_that_has_not_had_it() -> None:
    watched = Watched(settle=1.5)
    watched.take(*whole(0), late=0.1)
    again = whole(2.2)
    watched.take(*(step for step in again if step.digest in SIZES), late=0.1)  # one worker
    for step in again:
        if step.digest not in SIZES:
            watched.tracker.take(step, 4.5)  # the other
    watched.wait(20)
    assert [(pull.sent, pull.state(running=False)) for pull in watched.ended] == [(2400, "done"), (2400, "done")]


@given(
    pulls=st.lists(
        st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.sampled_from(["one", "two", "three"])),
        unique=True,
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 10_000),
    starts=st.lists(st.floats(0, 3), min_size=6, max_size=6),
)
def test_steps_of_workers_that_tell_late_and_twice_make_the_same_pulls(
    pulls: list[tuple[str, str]], seed: int, starts: list[float]
) -> None:
    """Each of two workers tells its steps in order, up to 1.4 s late; some are told twice."""
    chance = random.Random(seed)
    arriving: list[tuple[float, int, Step]] = []
    for (client, repository), start in zip(pulls, starts, strict=False):
        worker_of: dict[str, int] = {}
        for step in whole(start, client, repository):
            worker = worker_of.setdefault(step.request_id, chance.randrange(2))
            # A worker tells in bursts: at multiples of 0.5 s, one of them 0.9 s later.
            moment = (told_at(step) // 0.5 + 1) * 0.5 + 0.9 * worker
            arriving += [(moment, worker, step)] * (2 if chance.random() < 0.2 else 1)
    watched = Watched(settle=1.5)
    for moment, worker, step in sorted(arriving, key=lambda told: told[0]):
        watched.ended += watched.tracker.tick(moment)
        watched.tracker.take(step, moment, worker)
    watched.wait(100)
    assert len(watched.tracker) == 0
    assert {(pull.repository, pull.reference, pull.sent, pull.state(running=False)) for pull in watched.ended} == {
        (repository, "1", 2400, "done") for _, repository in pulls
    }
    assert len(watched.ended) == len(pulls)
    for pull in watched.ended:
        assert pull.summary(0).seconds == pytest.approx(2.0)


@given(seed=st.integers(0, 10_000))
def test_whatever_order_steps_come_in_every_pull_ends_and_nothing_is_kept(seed: int) -> None:
    chance = random.Random(seed)
    steps = [step for step in [*whole(0), *whole(1), *whole(2, tag="2")] if chance.random() < 0.8]
    chance.shuffle(steps)
    watched = Watched(settle=chance.choice([0.0, 1.5]))
    for step in steps:
        watched.tracker.take(step, 4.0)
    for moment in (5.0, 20.0, 2 * ABANDONED_SECONDS, 3 * ABANDONED_SECONDS):
        watched.wait(moment)
    assert len(watched.tracker) == 0
    assert watched.tracker.deadline() is None
    assert LATE_SECONDS < QUIET_SECONDS
    assert sum(pull.sent for pull in watched.ended) <= sum(getattr(step, "sent", 0) for step in steps)
