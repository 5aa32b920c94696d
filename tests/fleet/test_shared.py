"""What nodes tell one another by Redis: who is there, what does not exist, how upstream hosts fare."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from random import Random

import msgspec
import pytest

from metrics.events import UpstreamQuota, ignore
from proxy.fleet.address import parse
from proxy.fleet.answers import MESSAGE_MOST, Answers
from proxy.fleet.hosts import Hosts
from proxy.fleet.link import Link, open_link, prefix_of
from proxy.fleet.nodes import NodeInfo, Nodes
from proxy.oci.errors import TooManyRequests, Unavailable
from proxy.oci.names import Repository, Tag
from proxy.upstream.health import Health, State
from proxy.upstream.holds import Holds
from proxy.upstream.quota import QuotaWatch
from tests.support.redis import RedisServer

pytestmark = pytest.mark.needs("redis-server")

ALPINE = Repository("docker.io", "library/alpine")
HUB = "docker.io/registry-1.docker.io"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Redis does is looked at, not how soon: others may keep the machine busy."""
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 10.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 10.0)


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    async with open_link(parse(redis_url), ignore, prefix=prefix_of("eu")) as link:
        yield link


def info(name: str, protocol: int = 1) -> NodeInfo:
    return NodeInfo(f"http://{name}:5000", protocol, "1.0")


# Nodes


async def test_nodes_learn_of_each_other_and_of_who_drains_and_leaves(link: Link) -> None:
    one, two = Nodes(link, info("one")), Nodes(link, info("two"))
    await one.beat()
    news = asyncio.create_task(one.changed.wait())
    await two.beat()
    assert [node.url for node in two.others] == ["http://one:5000"]
    await one.beat()
    await asyncio.wait_for(news, 30)
    assert one.others == (info("two"),)
    await two.drain()
    await one.beat()
    assert one.others[0].state == "draining"
    await two.leave()
    assert not await two.beat()
    await one.beat()
    assert not one.others


async def test_a_silent_node_is_forgotten_by_the_clock_of_redis(link: Link, redis_server: RedisServer) -> None:
    one, two = Nodes(link, info("one")), Nodes(link, info("two"))
    await two.beat()
    with contextlib.closing(redis_server.client()) as client:
        for silent, seen, kept in (
            (4000, True, True),
            (6000, False, True),
            (61_000, False, False),
            (-9000, False, False),
        ):
            seconds, micros = client.time()
            said = msgspec.json.encode(info("two")).decode()
            client.hset("entrepot:nodes:eu", "http://two:5000", f"{seconds * 1000 + micros // 1000 - silent} {said}")
            await one.beat()
            assert bool(one.others) is seen
            assert client.hexists("entrepot:nodes:eu", "http://two:5000") is kept


async def test_a_node_of_a_newer_protocol_is_left_out_and_the_older_one_says_so_once(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    old, new = Nodes(link, info("old")), Nodes(link, info("new", protocol=2))
    for _ in range(3):
        await new.beat()
        await old.beat()
    assert old.others == new.others == ()
    assert old.incompatible == (info("new", protocol=2),)
    assert new.incompatible == (info("old"),)
    assert [record.getMessage() for record in caplog.records] == [
        "node http://new:5000 speaks fleet protocol 2, this one 1: upgrade this node; until then they do not help each "
        "other"
    ]


async def test_two_nodes_that_advertise_one_url_say_so_once(link: Link, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    one, same, worker = (Nodes(link, info("one")) for _ in range(3))
    worker._tells = False
    two = Nodes(link, info("two"))
    for _ in range(6):
        for node in (one, worker, two):
            await node.beat()
    assert not caplog.records
    for _ in range(6):
        await one.beat()
        await asyncio.sleep(0.002)
        await same.beat()
        await asyncio.sleep(0.002)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "each says it once"
    assert all("http://one:5000, too" in one and "`advertise`" in one for one in said)


async def test_what_newer_nodes_add_is_passed_by_and_what_nobody_can_read_too(
    link: Link, redis_server: RedisServer
) -> None:
    one = Nodes(link, info("one"))
    with contextlib.closing(redis_server.client()) as client:
        now = client.time()[0] * 1000
        said = '{"url":"http://two:5000","protocol":1,"version":"9","epoch":"e","state":"odd","added":[1]}'
        client.hset("entrepot:nodes:eu", "http://two:5000", f"{now} {said}")
        client.hset("entrepot:nodes:eu", "http://bad:5000", f"{now} nonsense")
        client.hset("entrepot:nodes:eu", "http://worse:5000", "nonsense")
    await one.beat()
    assert [(node.url, node.state) for node in one.others] == [("http://two:5000", "odd")]


async def test_the_last_list_stays_while_redis_is_down(link: Link) -> None:
    one, two = Nodes(link, info("one")), Nodes(link, info("two"))
    await two.beat()
    await one.beat()
    link.end()
    assert not await one.beat()
    assert one.others == (info("two"),)
    await one.leave()


# 404s


async def test_a_404_is_told_for_its_time(link: Link) -> None:
    answers, tag = Answers(link), Tag("3")
    task = asyncio.create_task(answers.run())
    try:
        answers.note_missing("manifest", ALPINE, tag, "no such tag " + "x" * 9999, 2)
        async with asyncio.timeout(30):
            while (said := await answers.missing("manifest", ALPINE, tag)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert said.startswith("no such tag")
        assert len(said) == MESSAGE_MOST
        assert await answers.missing("blob", ALPINE, tag) is None
        assert await answers.missing("manifest", Repository("ghcr.io", "library/alpine"), tag) is None
        await asyncio.sleep(2.05)
        assert await answers.missing("manifest", ALPINE, tag) is None
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_404s_that_nobody_takes_are_not_kept_without_bound(link: Link) -> None:
    answers = Answers(link)
    for number in range(5000):
        answers.note_missing("manifest", ALPINE, Tag(f"t{number}"), "none", 60)
    assert answers._noted.qsize() == 1000


# Hosts


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class OneHost:
    """What a process remembers of a host, with a clock that the test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.health = Health("hub", 10.0, 60.0, self.clock, Random(1))
        self.holds = Holds("hub", self.clock)
        self.quota = QuotaWatch(self.clock)
        self.heard = 0

    def learned(self) -> None:
        self.heard += 1

    def fails(self) -> None:
        self.health.failed(Unavailable("hub cannot be reached"), self.clock())

    def answers(self) -> None:
        self.health.answer(200, self.clock())


class Process:
    def __init__(self, link: Link) -> None:
        self.host = OneHost()
        self.hosts = Hosts(link, lambda: {HUB: self.host})

    async def beat(self) -> None:
        assert await self.hosts.beat()


@pytest.fixture
def three(link: Link) -> tuple[Process, Process, Process]:
    return Process(link), Process(link), Process(link)


async def test_one_finds_out_that_a_host_fails_and_all_know(three: tuple[Process, Process, Process]) -> None:
    one, two, _ = three
    one.host.fails()
    await one.beat()
    await two.beat()
    assert two.host.health.state is State.OPEN
    assert two.host.heard == 1
    assert two.host.health.quiet_left == pytest.approx(one.host.health.quiet_left, abs=0.5)
    with pytest.raises(Unavailable, match="cannot be reached"):
        two.host.health.check()


async def test_one_finds_out_that_it_is_back_and_the_others_ask_at_once(
    three: tuple[Process, Process, Process],
) -> None:
    one, two, _ = three
    one.host.fails()
    await one.beat()
    await two.beat()
    one.host.clock.now += 3
    two.host.clock.now += 3
    one.host.answers()
    await one.beat()
    await two.beat()
    assert two.host.health.state is State.HALF_OPEN
    two.host.answers()
    assert not two.host.health.failing


async def test_who_has_had_an_answer_since_believes_no_failure(three: tuple[Process, Process, Process]) -> None:
    one, two, _ = three
    one.host.fails()
    one.host.clock.now += 2
    two.host.answers()
    await one.beat()
    await two.beat()
    assert two.host.health.state is State.CLOSED


async def test_what_was_learned_is_not_told_on(
    three: tuple[Process, Process, Process], redis_server: RedisServer
) -> None:
    one, two, three_ = three
    one.host.fails()
    one.host.holds.note("manifest", TooManyRequests("slow down", retry_after=60))
    one.host.quota.note(UpstreamQuota("hub", 100, 5, 3600))
    await one.beat()
    await two.beat()
    with contextlib.closing(redis_server.client()) as client:
        client.delete("entrepot:1:eu:hosts")
    await two.beat()
    await three_.beat()
    assert three_.host.health.state is State.CLOSED
    assert three_.host.holds.remaining() == {}
    assert three_.host.quota.stretch == 1.0


async def test_what_is_told_is_told_once_and_again_where_redis_did_not_hear(
    three: tuple[Process, Process, Process], redis_server: RedisServer
) -> None:
    one, two, _ = three
    one.host.quota.note(UpstreamQuota("hub", 100, 5, 3600))
    link = one.hosts._link
    link.problem = "down"
    assert not await one.hosts.beat()
    link.problem = None
    await one.beat()
    await two.beat()
    assert two.host.quota.stretch > 5
    with contextlib.closing(redis_server.client()) as client:
        client.delete("entrepot:1:eu:hosts")
        await one.beat()
        assert not client.exists("entrepot:1:eu:hosts")


async def test_holds_of_the_mirrors_own_are_shared_and_callers_are_not(
    three: tuple[Process, Process, Process],
) -> None:
    one, two, _ = three
    one.host.holds.note("manifest", TooManyRequests("own quota", retry_after=60))
    one.host.holds.note("blob", Unavailable("maintenance", retry_after=30))
    one.host.holds.note("tags", TooManyRequests("a caller's quota", retry_after=60), b"caller")
    await one.beat()
    await two.beat()
    left = two.host.holds.remaining()
    assert left == {"manifest": pytest.approx(60, abs=1), "blob": pytest.approx(30, abs=1)}
    with pytest.raises(TooManyRequests, match="own quota"):
        two.host.holds.check("manifest")
    two.host.holds.check("manifest", b"caller")
    two.host.holds.check("tags", b"caller")
    with pytest.raises(Unavailable, match="maintenance"):
        two.host.holds.check("blob", b"caller")


async def test_a_429_that_asks_for_an_hour_is_anothers_for_a_minute(three: tuple[Process, Process, Process]) -> None:
    one, two, _ = three
    one.host.holds.note("manifest", TooManyRequests("own quota", retry_after=3600))
    one.host.holds.note("blob", Unavailable("maintenance", retry_after=3600))
    await one.beat()
    await two.beat()
    left = two.host.holds.remaining()
    assert left == {"manifest": pytest.approx(60, abs=1), "blob": pytest.approx(3600, abs=1)}


async def test_what_a_fleet_that_is_gone_kept_in_redis_ends(
    link: Link, three: tuple[Process, Process, Process], redis_server: RedisServer
) -> None:
    three[0].host.fails()
    await three[0].beat()
    await Nodes(link, info("one")).beat()
    with contextlib.closing(redis_server.client()) as client:
        assert {key: client.pttl(key) > 0 for key in client.scan_iter("entrepot:*") if "probe" not in key} == {
            "entrepot:1:eu:hosts": True,
            "entrepot:nodes:eu": True,
        }


async def test_the_newest_quota_counts(three: tuple[Process, Process, Process]) -> None:
    one, two, _ = three
    one.host.quota.note(UpstreamQuota("hub", 100, 0, 3600))
    one.host.clock.now += 10
    two.host.quota.note(UpstreamQuota("hub", 100, 90, 3600))
    await one.beat()
    await two.beat()
    assert not two.host.quota.used_up
    two.host.clock.now += 20
    one.host.quota.note(UpstreamQuota("hub", 100, 0, 3600))
    await one.beat()
    await two.beat()
    assert two.host.quota.used_up


async def test_what_nobody_can_read_harms_nobody(link: Link, redis_server: RedisServer) -> None:
    one = Process(link)
    with contextlib.closing(redis_server.client()) as client:
        now = client.time()[0] * 1000
        for field, value in (
            ("health", f"{now} p nonsense"),
            ("quota", "nonsense"),
            ("x", f'{now} p {{"type":"new"}}'),
        ):
            client.hset("entrepot:1:eu:hosts", f"{HUB} {field}", value)
        client.hset("entrepot:1:eu:hosts", "another health", f'{now} p {{"type":"answering"}}')
    await one.beat()
    assert one.host.health.state is State.CLOSED
