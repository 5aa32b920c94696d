"""Leases: the real Lua on the real Redis, held to a model through stopped leaders, a forgetful Redis and clocks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from metrics.events import ignore
from proxy.fleet.address import parse
from proxy.fleet.leases import HOLDERS_MOST, LEASE_SECONDS, SAID_MOST, Lease, Leases, sole
from proxy.fleet.link import Link, open_link, prefix_of
from tests.support.redis import RedisServer

pytestmark = pytest.mark.needs("redis-server")

PREFIX = prefix_of("eu")
KEY = "sha256:" + "ab" * 32
NAMES = ("http://one:5000", "http://two:5000", "http://three:5000")
LEASE_MS = round(LEASE_SECONDS * 1000)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Redis does is looked at, not how soon: others may keep the machine busy."""
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 10.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 10.0)


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    async with open_link(parse(url), ignore, prefix=PREFIX) as link:
        yield link


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    async with linked(redis_url) as link:
        yield link


class LeaseMachine(RuleBasedStateMachine):
    """Three nodes want one lease. `ours` is what each was told and believes; `held` and `left` what Redis should have.

    A node that stands still neither beats nor asks; when it wakes it beats, as it would. Time passes by shortening
    what Redis keeps, all at once; what passes meanwhile by itself is far below the least step.
    """

    server: RedisServer

    @initialize()
    def begin(self) -> None:
        self.client: Any = self.server.client()
        self.client.flushall()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        link = self.runner.run(self.stack.enter_async_context(linked(self.server.url)))
        self.nodes = {name: Leases(link, name) for name in NAMES}
        self.ours: dict[str, Lease] = {}
        self.seen: dict[str, Lease] = {}
        self.stopped: set[str] = set()
        self.holders: list[str] = []
        self.held: Lease | None = None
        self.left = 0

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.client.close()

    @property
    def key(self) -> str:
        return f"{PREFIX}{{{KEY}}}:lease"

    def take(self, name: str, instead_of: Lease | None = None) -> None:
        before = self.held
        standing = self.runner.run(self.nodes[name].acquire(KEY, instead_of=instead_of))
        assert list(standing.holders) == [node for node in self.holders if node != name]
        free = before is None or before == instead_of or before.node == name
        if free:
            assert standing.theirs is None
            assert standing.ours is not None
            assert standing.ours.node == name
            self.held, self.left = standing.ours, LEASE_MS
            self.ours[name] = standing.ours
        else:
            assert standing.ours is None
            assert standing.theirs == before
            self.left = min(self.left, LEASE_MS)
            assert before is not None
            self.seen[name] = before

    def beat(self, name: str) -> None:
        lease = self.ours[name]
        still = self.runner.run(self.nodes[name].beat(lease))
        assert still is (self.held in (None, lease))
        if still:
            self.held, self.left = lease, LEASE_MS
        else:
            del self.ours[name]

    def runs(self, name: str) -> bool:
        return name not in self.stopped

    @rule(name=st.sampled_from(NAMES))
    def acquire(self, name: str) -> None:
        if self.runs(name) and name not in self.ours:
            self.take(name)

    @rule(name=st.sampled_from(NAMES))
    def acquire_what_somebody_gone_in_this_node_held(self, name: str) -> None:
        if self.runs(name):
            self.ours.pop(name, None)
            self.take(name)

    @rule(name=st.sampled_from(NAMES))
    def take_over_from_whom_it_saw_lead(self, name: str) -> None:
        if self.runs(name) and name not in self.ours and name in self.seen:
            self.take(name, self.seen[name])

    @rule(name=st.sampled_from(NAMES))
    def renew(self, name: str) -> None:
        if self.runs(name) and name in self.ours:
            self.beat(name)

    @rule(name=st.sampled_from(NAMES), holds=st.booleans())
    def release(self, name: str, holds: bool) -> None:
        lease = self.ours.pop(name, None) if self.runs(name) else None
        if lease is not None:
            self.runner.run(self.nodes[name].release(lease, holds=holds))
            if self.held == lease:
                self.held = None
            if holds:
                self.holders = [name, *(node for node in self.holders if node != name)]
                self.runner.run(asyncio.sleep(0.002))  # so that no two say so in one millisecond

    @rule(name=st.sampled_from(NAMES))
    def stand_still(self, name: str) -> None:
        self.stopped.add(name)

    @rule(name=st.sampled_from(NAMES))
    def wake(self, name: str) -> None:
        if name in self.stopped:
            self.stopped.discard(name)
            if name in self.ours:
                self.beat(name)

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        left = self.client.pttl(self.key)
        if left > 0:
            self.client.pexpire(self.key, left - seconds * 1000) if left > seconds * 1000 else self.client.delete(
                self.key
            )
        if self.held is not None:
            self.left -= seconds * 1000
            if self.left <= 0:
                self.held = None

    @rule()
    def redis_forgets(self) -> None:
        self.client.flushall()
        self.held, self.holders = None, []

    @precondition(lambda self: self.held is not None)
    @rule(seconds=st.sampled_from([60, 86400]))
    def the_clock_is_set_back(self, seconds: int) -> None:
        self.client.pexpire(self.key, self.left + seconds * 1000)
        self.left += seconds * 1000

    @rule(name=st.sampled_from(NAMES), set_back=st.sampled_from([0, 60, 86400]))
    def whoever_waits_gets_it_within_a_leases_time_of_its_leaders_end(self, name: str, set_back: int) -> None:
        """All others stand still for ever; one that runs asks, and asks again when a lease's time is over."""
        if self.runs(name) and name not in self.ours:
            self.stopped |= set(NAMES) - {name}
            if set_back and self.held is not None:
                self.the_clock_is_set_back(set_back)
            self.take(name)
            if name not in self.ours:
                self.time_passes(round(LEASE_SECONDS))
                self.take(name)
            assert name in self.ours

    @precondition(lambda self: self.ours)
    @rule(data=st.data())
    def a_leader_stands_still_until_another_leads_and_ends_before_it_hears_of_it(self, data: st.DataObject) -> None:
        late = data.draw(st.sampled_from(sorted(self.ours)))
        free = sorted(set(NAMES) - set(self.ours) - self.stopped)
        if self.runs(late) and free:
            self.time_passes(round(LEASE_SECONDS))
            self.take(data.draw(st.sampled_from(free)))
            self.release(late, holds=False)

    @invariant()
    def redis_has_what_it_should(self) -> None:
        if hasattr(self, "nodes"):
            found = self.runner.run(self.nodes[NAMES[0]].look(KEY))
            assert found == self.held

    @rule()
    def of_all_who_lead_one_is_left_when_each_has_renewed(self) -> None:
        for name in [name for name in self.ours if self.runs(name)]:
            self.beat(name)
        assert len([name for name in self.ours if self.runs(name)]) <= 1


def hold_to_the_model(server: RedisServer, examples: int) -> None:
    machine = type("Machine", (LeaseMachine,), {"server": server})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_no_two_nodes_go_on_leading_and_no_lease_is_out_of_reach_for_long(redis_server: RedisServer) -> None:
    hold_to_the_model(redis_server, 25)


@pytest.mark.slow
def test_no_two_nodes_go_on_leading_however_long_one_looks(redis_server: RedisServer) -> None:
    hold_to_the_model(redis_server, 600)


async def test_of_many_who_ask_at_once_one_leads(link: Link) -> None:
    nodes = [Leases(link, f"http://node{number}") for number in range(20)]
    standings = await asyncio.gather(*(node.acquire(KEY) for node in nodes))
    leaders = [standing.ours for standing in standings if standing.ours is not None]
    assert len(leaders) == 1
    assert {standing.theirs for standing in standings} == {None, leaders[0]}


async def test_one_of_those_who_find_the_leader_dead_takes_over(link: Link) -> None:
    nodes = [Leases(link, f"http://node{number}") for number in range(10)]
    dead = (await nodes[0].acquire(KEY)).ours
    assert dead is not None
    standings = await asyncio.gather(*(node.acquire(KEY, instead_of=dead) for node in nodes[1:]))
    assert sum(standing.ours is not None for standing in standings) == 1
    assert not await nodes[0].beat(dead)


async def test_what_a_late_leader_gives_back_is_not_anothers(link: Link) -> None:
    one, two = Leases(link, NAMES[0]), Leases(link, NAMES[1])
    late = (await one.acquire(KEY)).ours
    assert late is not None
    ours = (await two.acquire(KEY, instead_of=late)).ours
    await one.release(late, holds=True)
    assert await two.look(KEY) == ours
    assert await two.holders(KEY) == (NAMES[0],)


async def test_who_did_the_work_alone_is_told_when_another_has_it(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.fleet.leases.BEAT_SECONDS", 0.01)
    one, two = Leases(link, NAMES[0]), Leases(link, NAMES[1])
    async with sole(one, KEY) as lost:
        assert lost is not None
        async with sole(two, KEY) as other:
            assert other is None
        assert not lost.is_set()
        ours = (await two.acquire(KEY, instead_of=await two.look(KEY))).ours
        async with asyncio.timeout(30):
            await lost.wait()
    assert await two.look(KEY) == ours


async def test_a_lease_ends_by_itself(link: Link, redis_server: RedisServer) -> None:
    await Leases(link, NAMES[0]).acquire(KEY)
    with contextlib.closing(redis_server.client()) as client:
        assert 0 < client.pttl(f"{PREFIX}{{{KEY}}}:lease") <= LEASE_MS


async def test_what_was_said_is_given_with_its_age_for_as_long_as_it_may_be_believed(link: Link) -> None:
    one, two = Leases(link, NAMES[0]), Leases(link, NAMES[1])
    lease = (await one.acquire("tag:docker.io/library/alpine:3")).ours
    assert lease is not None
    await one.release(lease, holds=False, said=(b"a digest \xff", 2))
    said = (await two.acquire(lease.key)).said
    assert said is not None
    assert said.data == b"a digest \xff"
    assert 0 <= said.age < 2
    await asyncio.sleep(2.05)
    assert (await one.acquire(lease.key)).said is None
    await two.release(lease, holds=False, said=(b"x" * (SAID_MOST + 1), 60))
    assert (await one.acquire(lease.key)).said is None


async def test_who_has_content_is_told_newest_first_without_oneself_and_bounded(link: Link) -> None:
    nodes = [Leases(link, f"http://node{number:02}") for number in range(20)]
    for node in nodes:
        await node.hold(KEY)
        await asyncio.sleep(0.002)
    newest = tuple(f"http://node{number:02}" for number in range(19, 19 - HOLDERS_MOST - 1, -1))
    assert (await Leases(link, "http://asks").acquire(KEY)).holders == newest[:-1]
    assert await nodes[-1].holders(KEY) == newest[1:]
