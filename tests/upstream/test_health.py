"""The breaker's table, what is kept of Retry-After, and how the quota stretches the time a tag is believed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from metrics.events import UpstreamQuota
from proxy.oci.errors import TooManyRequests, Unavailable
from proxy.upstream.health import DISPROVED_SECONDS, FEWEST, HEARD_SECONDS, WATCHED_SECONDS, Health, State
from proxy.upstream.holds import LONGEST, Holds
from proxy.upstream.quota import MOST, PLENTY, QuotaWatch, stretch

LOST = Unavailable("no route")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Longest(Random):
    """Chance that never shortens anything."""

    def uniform(self, a: float, b: float) -> float:
        return b


def breaker(clock: Clock, random: Random | None = None) -> Health:
    return Health("r.test", 1.0, 60.0, clock, random or Longest())


def state_of(health: Health) -> State:
    return health.state


def test_quiet_time_doubles_up_to_a_minute_and_starts_over_after_an_answer() -> None:  # P30
    clock = Clock()
    health = breaker(clock)
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        health.failed(LOST, clock.now)
        clock.now += seconds - 0.01
        assert state_of(health) is State.OPEN
        clock.now += 0.01
        assert state_of(health) is State.HALF_OPEN
    health.answer(401, clock.now)
    assert state_of(health) is State.CLOSED
    clock.now += 1
    health.failed(LOST, clock.now)
    clock.now += 1
    assert state_of(health) is State.HALF_OPEN


def test_quiet_time_is_cut_by_chance_by_no_more_than_half() -> None:
    until = set()
    for seed in range(50):
        clock = Clock()
        health = breaker(clock, Random(seed))
        health.failed(LOST, clock.now)
        with pytest.raises(Unavailable) as caught:
            health.check()
        assert caught.value.retry_after is not None
        until.add(caught.value.retry_after)
    assert 0.5 <= min(until) < 0.6
    assert 0.9 < max(until) <= 1.0


def test_questions_that_fail_together_open_the_breaker_once() -> None:
    clock = Clock()
    health = breaker(clock)
    since = clock.now
    clock.now += 3
    for _ in range(20):
        health.failed(LOST, since)
    clock.now += 1
    assert state_of(health) is State.HALF_OPEN


def test_host_that_answers_half_of_the_time_with_5xx_is_left_alone_and_probed() -> None:
    clock = Clock()
    health = breaker(clock)
    for number in range(FEWEST):
        assert state_of(health) is State.CLOSED
        health.answer(502 if number % 2 else 200, clock.now)
    assert state_of(health) is State.OPEN
    assert health.last_error is not None
    assert "5xx" in health.last_error.message
    health.answer(200, clock.now - 1)  # what was asked before says nothing of now
    assert state_of(health) is State.OPEN
    clock.now += 1
    health.answer(503, clock.now - 2)  # nor does this
    assert state_of(health) is State.HALF_OPEN
    health.answer(503, clock.now)  # the probe
    clock.now += 1.5
    assert state_of(health) is State.OPEN  # for two seconds this time
    clock.now += 0.5
    health.answer(200, clock.now)
    assert state_of(health) is State.CLOSED


@pytest.mark.parametrize("pause", [0.0, WATCHED_SECONDS])
def test_rare_5xx_are_no_reason_to_stop_asking(pause: float) -> None:
    clock = Clock()
    health = breaker(clock)
    for number in range(100):
        health.answer(500 if pause or number % 3 == 0 else 200, clock.now)
        clock.now += pause
        assert state_of(health) is State.CLOSED


def test_client_errors_are_answers() -> None:  # P34
    clock = Clock()
    health = breaker(clock)
    for status in (401, 403, 404, 429) * 10:
        health.answer(status, clock.now)
    assert state_of(health) is State.CLOSED


def test_learned_failure_is_believed_until_the_others_quiet_time_ends_and_costs_no_longer_one_of_ours() -> None:
    clock = Clock()
    health = breaker(clock)
    health.learn_failing(LOST, age=2, left=5)
    assert (state_of(health), health.learned, health.last_error) == (State.OPEN, True, LOST)
    assert health.quiet_left == 5
    clock.now += 5
    assert state_of(health) is State.HALF_OPEN
    health.failed(LOST, clock.now)
    assert (health.learned, health.quiet_left) == (False, 1.0)
    health.answer(200, clock.now)
    assert (state_of(health), health.learned) == (State.CLOSED, False)


def test_learned_failure_is_not_believed_by_whom_the_host_answered_since_nor_when_it_is_over() -> None:
    clock = Clock()
    health = breaker(clock)
    health.answer(200, clock.now)
    clock.now += 1
    health.learn_failing(LOST, age=2, left=5)
    health.learn_failing(LOST, age=0.5, left=0)
    assert state_of(health) is State.CLOSED
    health.failed(LOST, clock.now)
    health.learn_failing(LOST, age=0, left=50)
    assert (health.learned, health.quiet_left) == (False, 1.0)


def test_who_heard_a_host_lately_asks_it_at_once_where_another_says_that_it_fails() -> None:
    clock = Clock()
    health = breaker(clock)
    health.answer(200, clock.now)
    clock.now += HEARD_SECONDS
    health.learn_failing(LOST, age=0, left=50)
    assert state_of(health) is State.HALF_OPEN
    health.failed(LOST, clock.now)
    assert (state_of(health), health.learned) == (State.OPEN, False)
    clock.now += 1
    health.answer(200, clock.now)
    clock.now += HEARD_SECONDS + 1
    health.learn_failing(LOST, age=0, left=50)
    assert state_of(health) is State.OPEN


def test_one_node_with_a_broken_network_closes_no_host_to_the_others_again_and_again() -> None:
    clock = Clock()
    health = breaker(clock)
    health.learn_failing(LOST, age=0, left=20)
    clock.now += 20
    health.answer(200, clock.now)
    for _ in range(9):
        clock.now += 60
        health.learn_failing(LOST, age=0.5, left=60)
        assert state_of(health) is State.CLOSED
    clock.now += DISPROVED_SECONDS
    health.learn_failing(LOST, age=0.5, left=60)
    assert state_of(health) is State.OPEN


def test_learned_answer_lets_one_question_through_at_once_unless_the_host_failed_us_since() -> None:
    clock = Clock()
    health = breaker(clock)
    health.learn_answering(0)
    assert state_of(health) is State.CLOSED
    health.failed(LOST, clock.now)
    clock.now += 0.5
    health.learn_answering(age=0.6)
    assert state_of(health) is State.OPEN
    health.learn_answering(age=0.1)
    assert state_of(health) is State.HALF_OPEN
    health.check()


def test_learned_hold_counts_where_it_is_longer_and_is_not_what_was_heard_here() -> None:
    clock = Clock()
    holds = Holds("r.test", clock)
    holds.note("blob", TooManyRequests("429", retry_after=20))
    holds.note("blob", TooManyRequests("429", retry_after=50), b"a caller")
    holds.learn("blob", 10, "theirs", everybody=False)
    holds.learn("manifest", 30, "theirs", everybody=True)
    holds.learn("manifest", 30.2, "the same again", everybody=True)
    assert holds.remaining() == {"blob": 20, "manifest": 30}
    assert [(one.kind, one.everybody, one.until) for one in holds.heard()] == [("blob", False, clock.now + 20)]
    holds.learn("blob", 10 * LONGEST, "theirs", everybody=False)
    assert holds.remaining()["blob"] == LONGEST
    assert list(holds.heard()) == []


def test_newer_quota_is_learned_and_is_not_what_was_heard_here() -> None:
    clock = Clock()
    watch = QuotaWatch(clock)
    watch.note(UpstreamQuota("r.test", 100, 10, 600))
    watch.learn(UpstreamQuota("r.test", 100, 0, 600), age=1)
    assert watch.heard == (UpstreamQuota("r.test", 100, 10, 600), clock.now)
    later = QuotaWatch(clock)
    later.learn(UpstreamQuota("r.test", 100, 0, 600), age=1)
    assert later.heard is None
    clock.now += 2
    watch.learn(UpstreamQuota("r.test", 100, 0, 600), age=1)
    assert (watch.used_up, later.used_up) == (True, True)
    clock.now += 600
    assert (watch.used_up, later.used_up) == (False, False)


def test_hold_tells_the_seconds_that_are_left_and_holds_back_its_own_kind_only() -> None:  # P16, P35
    clock = Clock()
    holds = Holds("r.test", clock)
    holds.note("manifest", TooManyRequests("429", retry_after=20))
    holds.note("token", TooManyRequests("429"))
    clock.now += 5
    with pytest.raises(TooManyRequests, match=r"r\.test.*15 s") as caught:
        holds.check("manifest")
    assert caught.value.retry_after == 15
    assert holds.remaining() == {"manifest": 15}
    holds.check("blob")
    holds.check("token")
    clock.now += 15
    holds.check("manifest")
    assert holds.remaining() == {}


def test_hold_never_lasts_longer_than_an_hour() -> None:
    clock = Clock()
    holds = Holds("r.test", clock)
    holds.note("blob", Unavailable("503", retry_after=86400))
    with pytest.raises(Unavailable) as caught:
        holds.check("blob")
    assert caught.value.retry_after == LONGEST


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_tags_are_believed_longer_the_less_is_left(limit: int, one: int, other: int) -> None:  # P35
    less, more = sorted((one, other))
    assert 1.0 <= stretch(limit, more) <= stretch(limit, less) <= MOST
    assert stretch(limit, 0) == MOST
    if more >= limit * PLENTY:
        assert stretch(limit, more) == 1.0


def test_quota_is_believed_for_its_window() -> None:  # P35
    clock = Clock()
    watch = QuotaWatch(clock)
    assert (watch.stretch, watch.used_up) == (1.0, False)
    watch.note(UpstreamQuota("r.test", 100, 10, 600))
    assert (watch.stretch, watch.used_up) == (4.5, False)
    watch.note(UpstreamQuota("r.test", 100, 0, 600))
    assert (watch.stretch, watch.used_up) == (MOST, True)
    clock.now += 601
    assert (watch.stretch, watch.used_up) == (1.0, False)


def test_host_without_a_limit_stretches_nothing() -> None:
    watch = QuotaWatch(Clock())
    watch.note(UpstreamQuota("r.test", 0, 0, 0))
    assert (watch.stretch, watch.used_up) == (1.0, False)
