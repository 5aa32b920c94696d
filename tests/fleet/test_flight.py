"""One download's place in the fleet: nodes in this process, leases in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from metrics.events import ignore
from proxy.cache import near
from proxy.cache.near import Flight
from proxy.cache.once import Background
from proxy.cache.readthrough import ANSWER_SECONDS
from proxy.cache.turns import NODE_SECONDS
from proxy.fleet import flight as module
from proxy.fleet.address import parse
from proxy.fleet.fleet import TAG_TURNS
from proxy.fleet.leases import Lease, Leases
from proxy.fleet.link import Link, open_link, prefix_of
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, RegistryError, Unavailable
from tests.fleet.nodes import ALPINE, Node, a_node, an_asker, sharing

pytestmark = pytest.mark.needs("redis-server")

DATA = bytes(range(256)) * 1024
DIGEST = Digest.of(DATA)
KEY = str(DIGEST)
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided is looked at, not how soon: others may keep the machine busy."""
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 10.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 10.0)
    monkeypatch.setattr("proxy.fleet.neighbours.ALIVE_SECONDS", 5.0)


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    async with open_link(parse(redis_url), ignore, prefix=prefix_of("eu")) as link:
        yield link


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node() as node:
        yield node


@asynccontextmanager
async def flying(
    link: Link,
    url: str,
    *,
    others: Sequence[str] = (),
    coming: Sequence[str] = (),
    secret: bytes | None = None,
    waits: near.Asker = near.Asker.CLIENT,
) -> AsyncIterator[Flight]:
    """Be a node at `url` that downloads, and knows of `others`; when it looks it finds `coming` too."""
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(Background())
        asker = await stack.enter_async_context(
            an_asker(own_url=url) if secret is None else an_asker(own_url=url, secret=secret)
        )
        known = [*others]

        async def look() -> None:
            known.extend(url for url in coming if url not in known)

        fleet = sharing(link, Leases(link, url), asker, background, lambda: known, look)
        async with fleet.flight(DIGEST, ALPINE, waits) as flight:
            yield flight
        await asyncio.sleep(0)


async def led_by(link: Link, url: str) -> Lease:
    lease = (await Leases(link, url).acquire(KEY)).ours
    assert lease is not None
    return lease


async def given(flight: Flight) -> tuple[str | None, RegistryError | None]:
    """Ask whoever is to be asked now, to the end; return who that was, and how he failed."""
    source = await flight.next()
    if source is None:
        return None, None
    try:
        stream = await source.open_blob(ALPINE, DIGEST)
        assert b"".join([chunk async for chunk in stream]) == DATA
        await stream.aclose()
    except RegistryError as error:
        flight.failed(source, error, 0)
        return source.name, error
    return source.name, None


async def test_the_first_leads_and_the_next_follows_it(link: Link, node: Node) -> None:
    node.cache.store(DATA)
    async with flying(link, node.url) as first, flying(link, DEAD) as second:
        assert await first.next() is None
        assert await given(second) == (node.url.partition("://")[2], None)
        assert (first.following, second.following) == (False, True)


async def test_a_leader_that_is_gone_has_its_lease_taken_and_hears_of_it(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    one, two = "http://127.0.0.1:2", "http://127.0.0.1:3"
    async with flying(link, DEAD) as leader, flying(link, one) as follower:
        assert await leader.next() is None
        name, error = await given(follower)
        assert name == "127.0.0.1:9"
        assert isinstance(error, Unavailable)
        assert await follower.next() is None
        async with asyncio.timeout(30), flying(link, two) as late:
            assert [source.name for source in [await late.next()] if source] == ["127.0.0.1:2"]
            while not leader.lost:  # noqa: ASYNC110 - it is a flag
                await asyncio.sleep(0.02)
            assert [source.name for source in [await leader.next()] if source] == ["127.0.0.1:2"]


async def test_a_leader_that_fails_and_is_alive_is_not_robbed_and_not_asked_for_ever(link: Link, node: Node) -> None:
    lease = await led_by(link, node.url)
    node.cache.error = GatewayTimeout("it follows another one")
    async with flying(link, DEAD) as flight:
        for _ in range(module.FRUITLESS):
            assert isinstance((await given(flight))[1], GatewayTimeout)
        assert await flight.next() is None
        assert await Leases(link, DEAD).look(KEY) == lease


def test_a_leader_that_stands_still_over_a_manifest_leaves_time_to_ask_the_upstream() -> None:  # P26
    assert module.FRUITLESS * NODE_SECONDS <= ANSWER_SECONDS - 2
    assert TAG_TURNS * NODE_SECONDS <= ANSWER_SECONDS - 2


async def test_a_leader_that_does_not_believe_this_node_keeps_its_lease(link: Link, node: Node) -> None:
    lease = await led_by(link, node.url)
    async with flying(link, DEAD, secret=b"the secret of quite another fleet") as flight:
        assert isinstance((await given(flight))[1], Unavailable)
        assert await flight.next() is None
        assert await Leases(link, DEAD).look(KEY) == lease


async def test_what_a_node_waits_for_waits_for_no_node(link: Link, node: Node) -> None:
    await led_by(link, node.url)
    async with flying(link, DEAD, others=[node.url], waits=near.Asker.NODE) as flight:
        with pytest.raises(GatewayTimeout):
            await flight.next()
    assert node.cache.asked == []


async def test_only_who_is_there_is_asked_for_what_he_is_said_to_have(link: Link, node: Node) -> None:
    node.cache.store(DATA)
    own = "http://127.0.0.1:2"
    for url in (node.url, DEAD):
        await Leases(link, url).hold(KEY)
    async with flying(link, own, others=[node.url]) as flight:
        assert await given(flight) == (node.url.partition("://")[2], None)
        assert await flight.next() is None


async def test_who_came_a_moment_ago_is_asked_too(link: Link, node: Node) -> None:
    node.cache.store(DATA)
    await Leases(link, node.url).hold(KEY)
    async with flying(link, DEAD, others=["http://127.0.0.1:5"], coming=[node.url]) as flight:
        assert await given(flight) == (node.url.partition("://")[2], None)


async def test_a_late_beat_brings_no_lease_back_that_was_given_up(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    beating, goes_on = asyncio.Event(), asyncio.Event()
    twice, count = asyncio.Event(), 0

    class Slow(Leases):
        async def beat(self, lease: Lease) -> bool:
            beating.set()
            await goes_on.wait()
            return await super().beat(lease)

        async def release(self, lease: Lease, *, holds: bool, said: tuple[bytes, float] | None = None) -> None:
            await super().release(lease, holds=holds, said=said)
            nonlocal count
            count += 1
            goes_on.set()
            if count == 2:
                twice.set()

    leases = Slow(link, DEAD)
    async with Background() as background, an_asker(own_url=DEAD) as asker:
        async with sharing(link, leases, asker, background).flight(DIGEST, ALPINE) as flight:
            assert await flight.next() is None
            await beating.wait()
        async with asyncio.timeout(30):
            await twice.wait()
    assert await leases.look(KEY) is None
