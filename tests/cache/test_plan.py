"""What a fill decides: how much may leave, whom to ask next, when to give up."""

from __future__ import annotations

from hypothesis import given, strategies as st

from proxy.cache.plan import SMALL, WITHHELD, Ask, Candidate, GiveUp, Roster, Wait, is_far_footer, releasable
from proxy.memory import MemorySource
from proxy.oci.errors import BadContent, BlobUnknown, TooManyRequests, Unavailable
from proxy.oci.names import Repository

HERE = Repository("docker.io", "library/alpine")
MIB = 1 << 20


def roster_of(count: int) -> tuple[Roster, list[Candidate]]:
    roster = Roster(patience=30)
    for number in range(count):
        roster.add(HERE, MemorySource(f"source-{number}"))
    return roster, roster.candidates


def ask(roster: Roster, now: float = 0) -> Candidate:
    step = roster.next(now)
    assert isinstance(step, Ask), step
    return step.candidate


@given(size=st.none() | st.integers(0, 1 << 34), contiguous=st.integers(0, 1 << 34))
def test_what_could_complete_a_body_never_leaves_unverified(size: int | None, contiguous: int) -> None:  # P38
    watermark = releasable(size, contiguous, verified=False)
    assert 0 <= watermark <= contiguous
    if size is None:
        assert watermark == 0 or watermark <= contiguous - WITHHELD
    elif size <= SMALL:
        assert watermark == 0
    else:
        assert watermark <= size - WITHHELD


@given(contiguous=st.integers(0, 1 << 34))
def test_all_may_leave_once_verified(contiguous: int) -> None:
    assert releasable(contiguous, contiguous, verified=True) == contiguous


def test_only_a_small_bounded_range_far_ahead_is_relayed() -> None:
    assert is_far_footer(100 * MIB, 101 * MIB, 10 * MIB)
    assert not is_far_footer(100 * MIB, None, 10 * MIB)
    assert not is_far_footer(100 * MIB, 105 * MIB, 10 * MIB)
    assert not is_far_footer(18 * MIB, 19 * MIB, 10 * MIB)


def test_sources_are_asked_in_order_and_a_break_with_progress_goes_on_with_the_same() -> None:
    roster, (main, alternate) = roster_of(2)
    assert ask(roster) is main
    roster.progressed(1)
    roster.broke(main, Unavailable("cut"), MIB, 1, 0.5)
    assert ask(roster, 1) is main
    roster.broke(main, Unavailable("refused"), 0, 1, 0.5)
    assert ask(roster, 1) is alternate


def test_before_the_first_byte_a_failure_of_all_is_told_at_once() -> None:  # P30
    roster, (main, alternate) = roster_of(2)
    roster.broke(ask(roster), Unavailable("main"), 0, 0, 0.5)
    roster.broke(ask(roster), Unavailable("alternate"), 0, 0, 0.5)
    step = roster.next(0)
    assert isinstance(step, GiveUp)
    assert main.failures == alternate.failures == 1


def test_in_mid_body_sources_are_asked_again_until_patience_ends() -> None:  # P28
    roster, (main,) = roster_of(1)
    roster.progressed(0)
    now = 0.0
    waited = 0
    roster.broke(main, Unavailable("dead"), 0, now, 1.0)
    while not isinstance(step := roster.next(now), GiveUp):
        if isinstance(step, Wait):
            waited += 1
            now += step.seconds
        else:
            roster.broke(step.candidate, Unavailable("dead"), 0, now, 1.0)
    assert 28 <= now <= 30
    assert waited < 30


def test_a_trickle_is_no_progress() -> None:
    roster, (main, alternate) = roster_of(2)
    roster.progressed(0)
    roster.broke(main, Unavailable("cut"), 10, 0, 0.5)
    assert ask(roster) is alternate


def test_retry_after_is_waited_for() -> None:  # P35
    roster, (main,) = roster_of(1)
    roster.progressed(0)
    roster.broke(main, TooManyRequests("slow down", retry_after=7), 0, 0, 0.5)
    step = roster.next(0)
    assert isinstance(step, Wait)
    assert step.seconds == 7


def test_a_retry_after_beyond_all_patience_is_told_at_once() -> None:  # P16
    roster, (main,) = roster_of(1)
    roster.progressed(0)
    roster.broke(main, TooManyRequests("come back in an hour", retry_after=3600), 0, 0, 0.5)
    step = roster.next(0)
    assert isinstance(step, GiveUp)
    assert step.error.retry_after == 3600


def test_who_answered_no_is_not_asked_again_and_transient_errors_outweigh_the_no() -> None:
    roster, (main, alternate) = roster_of(2)
    roster.refuse(main, BlobUnknown("no"))
    assert ask(roster) is alternate
    roster.broke(alternate, Unavailable("down"), 0, 0, 0.5)
    step = roster.next(0)
    assert isinstance(step, GiveUp)
    assert isinstance(step.error, Unavailable)


def test_a_single_origin_of_wrong_bytes_is_blamed() -> None:
    roster, (main, alternate) = roster_of(2)
    assert roster.mismatch({main}, recovered=False) is main
    assert ask(roster) is alternate
    roster.mismatch({alternate}, recovered=False)
    step = roster.next(0)
    assert isinstance(step, GiveUp)
    assert isinstance(step.error, BadContent)


def test_nobody_is_blamed_where_several_or_a_restart_may_be_at_fault() -> None:
    roster, (main, alternate) = roster_of(2)
    assert roster.mismatch({main, alternate}, recovered=False) is None
    assert roster.mismatch({main}, recovered=True) is None
    assert ask(roster) is main
    assert not roster.hopeless
    roster.mismatch({main, alternate}, recovered=False)
    roster.mismatch({main, alternate}, recovered=False)
    assert roster.hopeless


def test_a_joiner_adds_its_source_once() -> None:
    roster, (main,) = roster_of(1)
    roster.add(HERE, main.source)
    assert len(roster.candidates) == 1
    roster.add(Repository("docker.io", "me/other"), main.source)
    assert len(roster.candidates) == 2
