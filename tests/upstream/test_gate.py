"""Bounds on what is asked of one host: who waits, who is told to come back, who is never kept waiting by whom."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from proxy.oci.errors import Unavailable
from proxy.oci.names import Tag
from proxy.upstream.gate import STREAMS, Gate, Places, Rate
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.upstream.support import REPO, REPOSITORY, quick, read, source_of

LATEST = Tag("latest")
IMAGE = make_image([blob(100)])


async def test_places_are_given_in_the_order_of_asking() -> None:
    places = Places("places", 1, 1)
    await places.take()
    order: list[int] = []

    async def one(number: int) -> None:
        await places.take()
        order.append(number)
        places.give()

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(one(number))
        await asyncio.sleep(0)
        places.give()
    assert order == [0, 1, 2, 3, 4]


async def test_whoever_waits_too_long_is_told_when_to_come_back_and_loses_no_place() -> None:  # P26, P30
    places = Places("3 requests to r.test", 1, 0.01)
    await places.take()
    with pytest.raises(Unavailable, match=r"r\.test.*within 0\.01 s") as caught:
        await places.take()
    assert caught.value.retry_after
    places.give()
    await places.take()


async def test_place_of_a_caller_that_left_goes_to_the_next() -> None:
    places = Places("places", 1, 1)
    await places.take()
    first, second = (asyncio.create_task(places.take()) for _ in range(2))
    await asyncio.sleep(0)
    places.give()
    first.cancel()  # it was given the place and has not run since
    await second
    assert first.cancelled() or await asyncio.wait([first])


def test_rate_lets_a_second_s_worth_go_at_once_and_then_spreads() -> None:
    now = 100.0
    rate = Rate("r.test", 10, 0.25, lambda: now)
    waits = [rate.reserve() for _ in range(12)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:] == pytest.approx([0.1, 0.2])
    with pytest.raises(Unavailable, match=r"requests_per_second = 10") as caught:
        rate.reserve()
    assert caught.value.retry_after == pytest.approx(0.3)
    now = 100.3
    assert rate.reserve() == 0.0


def test_rate_below_one_a_second_lets_one_go_at_a_time() -> None:
    now = 100.0
    rate = Rate("r.test", 0.1, 60, lambda: now)
    assert [rate.reserve(), rate.reserve()] == pytest.approx([0.0, 10.0])


async def test_downloads_never_take_the_last_places_from_manifests() -> None:
    gate = Gate("r.test", 4, 0, 0.01, asyncio.get_running_loop().time)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(gate.request("blob"))
        with pytest.raises(Unavailable):
            await stack.enter_async_context(gate.request("blob"))
        await stack.enter_async_context(gate.request("manifest"))
        with pytest.raises(Unavailable):
            await stack.enter_async_context(gate.request("manifest"))
    async with gate.request("blob"), gate.request("manifest"):
        pass  # every place was given back


async def test_host_is_never_asked_more_at_once_than_concurrency_says() -> None:
    most = running = 0
    async with FakeUpstream() as up, source_of(up.url, concurrency=2, limits=quick(turn=5)) as source:
        IMAGE.publish(up, REPO, "latest")
        exchange = source._transport.exchange

        async def counted(*args: object) -> object:
            nonlocal most, running
            running += 1
            most = max(most, running)
            try:
                return await exchange(*args)  # type: ignore[arg-type]
            finally:
                running -= 1

        source._transport.exchange = counted  # type: ignore[assignment, method-assign]
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(source.manifest(REPOSITORY, LATEST))
    assert most == 2


async def test_open_downloads_have_a_bound_of_their_own_and_keep_no_manifest_waiting() -> None:
    async with FakeUpstream() as up, source_of(up.url, concurrency=1, limits=quick(turn=0.05)) as source:
        IMAGE.publish(up, REPO, "latest")
        digest = up.add_blob(REPO, blob(2 << 20))
        up.stall_at = 1 << 20
        streams = [await source.open_blob(REPOSITORY, digest) for _ in range(STREAMS)]
        with pytest.raises(Unavailable, match="downloads from"):
            await source.open_blob(REPOSITORY, digest)
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
        await streams.pop().aclose()
        streams.append(await source.open_blob(REPOSITORY, digest))
        assert not source.health.failing
        up.go_on()
        for stream in streams:
            await stream.aclose()
        assert await read(await source.open_blob(REPOSITORY, digest)) == blob(2 << 20)


async def test_rate_of_requests_holds_for_the_whole_host() -> None:
    limits, now = quick(turn=0.05), 100.0
    async with (
        FakeUpstream() as up,
        source_of(up.url, requests_per_second=2, limits=limits, clock=lambda: now) as source,
    ):
        IMAGE.publish(up, REPO, "latest")
        for _ in range(2):
            await source.manifest(REPOSITORY, LATEST)
        with pytest.raises(Unavailable, match="requests_per_second"):
            await source.manifest(REPOSITORY, LATEST)
        assert len(up.requests) == 2
        assert not source.health.failing


async def test_waiting_for_our_own_bound_never_counts_as_a_failure_of_the_host() -> None:  # P26
    async with (
        FakeUpstream() as up,
        source_of(up.url, limits=quick(answer=2, turn=20), requests_per_second=0.1) as source,
    ):
        IMAGE.publish(up, REPO, "1")
        await source.resolve(REPOSITORY, Tag("1"))
        with pytest.raises(Unavailable, match="requests_per_second"):
            await source.resolve(REPOSITORY, Tag("1"))
        assert not source.health.failing
