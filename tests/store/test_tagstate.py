"""What regions said about a tag comes together alike, in whatever order it meets."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, strategies as st

from proxy.oci.descriptor import Descriptor
from proxy.store import tagstate
from proxy.store.exchanged import Past
from proxy.store.tagstate import State, conflicts, join, observe, read_others, write_others
from tests.store.contents import TYPES, digest

X, Y, Z = (Descriptor(TYPES["image"], digest(name), 1) for name in ("x", "y", "z"))


def entry(number: int, generation: int, version: int, base: int, origin: str) -> Past:
    what = None if number == 0 else digest(str(number))
    return Past(what, generation, version, base, origin, None, None, 0.0)


ENTRIES = st.builds(
    entry, st.integers(0, 5), st.integers(0, 2), st.integers(1, 9), st.integers(0, 3), st.sampled_from(["a", "b"])
)
STATES = st.lists(ENTRIES, min_size=1, max_size=6).map(lambda said: join((), tuple(said)))


@given(STATES, STATES, STATES)
def test_joining_is_commutative_associative_and_idempotent_and_draws_nothing(a: State, b: State, c: State) -> None:
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert join(join(a, b), b) == join(a, b)
    assert set(join(a, b)) <= {*a, *b}


def test_an_old_digest_seen_late_never_beats_what_replaced_it() -> None:
    a = observe(observe(None, X, 1, "a", 1.0), Y, 3, "a", 3.0)
    unaware = observe(None, X, 5, "b", 5.0)
    assert join(a, unaware)[0].digest == join(unaware, a)[0].digest == Y.digest
    assert conflicts(join(a, unaware)) == ()


def test_a_digest_that_came_back_wins() -> None:
    a = observe(observe(None, X, 1, "a", 1.0), Y, 3, "a", 3.0)
    back = observe(a, X, 7, "b", 7.0)
    assert join(a, back)[0].digest == X.digest
    assert back[0].generation == 1
    assert conflicts(back) == ()


def test_a_removal_is_undone_by_who_knew_of_it_alone() -> None:
    removed = observe(observe(None, X, 1, "a", 1.0), None, 3, "a", 3.0)
    assert join(removed, observe(None, X, 5, "b", 5.0))[0].digest is None
    assert join(removed, observe(removed, X, 5, "b", 5.0))[0].digest == X.digest


def test_two_moves_that_did_not_know_of_each_other_are_a_conflict() -> None:
    known = observe(None, X, 1, "a", 1.0)
    a, b = observe(known, Y, 3, "a", 3.0), observe(known, Z, 4, "b", 4.0)
    joined = join(a, b)
    assert joined[0].digest == Z.digest
    assert [(lost.digest, lost.origin) for lost in conflicts(joined)] == [(Y.digest, "a")]


def test_what_is_kept_of_a_state_is_read_as_it_was_written() -> None:
    state = observe(observe(None, X, 1, "a", 1.0), None, 3, "a", 3.0)
    assert read_others(write_others(state)) == state[1:]
    assert write_others(state[:1]) is None


@given(st.lists(ENTRIES, min_size=3, max_size=12), st.randoms(use_true_random=False))
def test_catalogs_come_to_rest_alike_though_they_cut(said: list[Past], random: Random) -> None:
    """Three that tell their neighbours what changed, or what those lack and may have cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagstate, "MOST_OTHERS", 2)
        states: list[State] = [join((), tuple(said[number::3])) for number in range(3)]
        waiting = [(taker, giver) for taker in range(3) for giver in range(3) if taker != giver]
        for _ in range(500):
            if not waiting:
                break
            taker, giver = waiting.pop(random.randrange(len(waiting)))
            joined = join(states[taker], states[giver])
            if joined != states[taker] or tagstate.differs(joined, states[giver]):
                waiting += [(other, taker) for other in range(3) if other != taker and (other, taker) not in waiting]
            states[taker] = joined
        assert not waiting
        assert states[0] == states[1] == states[2]
