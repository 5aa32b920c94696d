"""Three nodes and one upstream: each byte once, whoever is asked, and whichever node or Redis goes away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from tests.scenarios.fleets import EVERYDAY, FULL, MIB, Scale, Stage, assert_whole, path
from tests.support.balanced import Plan, herding
from tests.support.fleet import ask, eventually
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.needs("redis-server")]
TRIES = 4
"""How often a claim about nodes that hear of each other is tried on a machine too busy for Redis."""
SCALES = [
    pytest.param(EVERYDAY, id="everyday"),
    pytest.param(FULL, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
]


async def abandon(url: str) -> None:
    """Be a client whose node may go away."""
    with contextlib.suppress(aiohttp.ClientError, OSError):
        await ask(url)


@contextlib.asynccontextmanager
async def led_by_the_first(stage: Stage, url: str, digest: str) -> AsyncIterator[None]:
    """Have one client at the first node, so that it leads the download, whoever comes next."""
    first = asyncio.create_task(abandon(url))
    try:
        await stage.upstream.wait_for(1, method="GET", contains=digest)
        yield
    finally:
        first.cancel()
        await asyncio.wait([first])


@pytest.mark.parametrize("scale", SCALES)
async def test_a_blob_that_clients_of_all_nodes_want_is_downloaded_once(stage: Stage, scale: Scale) -> None:
    for _ in range(TRIES):
        digest, data = stage.offer(scale.size, scale.rate)
        before = await stage.without_redis()
        async with herding(stage.herd(digest, scale)) as clients:
            got = await clients
        assert_whole(got, data)
        assert not [one for one in got if one.refused or one.cuts]
        if await stage.without_redis() == before:
            break
        await stage.mend()
    assert (stage.gets(digest), stage.sent(digest)) == (1, len(data))
    started = min(one.began for one in got)
    brisk = [one.ended for one in got if one.client % 10]
    assert max(brisk) - started < 1.5 * scale.seconds + 5  # less than a node is waited for that says nothing


@pytest.mark.parametrize("scale", SCALES)
async def test_killing_the_node_that_leads_costs_no_client_of_another_node_anything(stage: Stage, scale: Scale) -> None:
    digest, data = stage.offer(scale.size, scale.rate)
    leader, *others = stage.nodes
    async with herding(Plan((leader.url, others[0].url), path(digest), 1, resume=True)) as first:
        await stage.upstream.wait_for(1, method="GET", contains=digest)
        async with asyncio.TaskGroup() as group, herding(stage.herd(digest, scale, resume=True)) as clients:
            followers = [group.create_task(ask(node.url + path(digest))) for node in others]
            await stage.upstream.wait_sent(0.3 * scale.size, contains=digest)
            await asyncio.to_thread(leader.kill)
            got, (own,) = await clients, await first
            assert [(await follower).body == data for follower in followers] == [True, True]
    assert_whole([own, *got], data)
    assert (own.nodes, len(own.cuts)) == ([0, 1], 1)  # by Range elsewhere
    assert not [one for one in got if one.nodes[0] != 0 and one.cuts]
    assert stage.gets(digest) == 2
    assert stage.sent(digest) <= max(1.1 * scale.size, scale.size + MIB)


@pytest.mark.parametrize(
    ("scale", "away"),
    [
        pytest.param(EVERYDAY, RedisServer.kill, id="everyday"),
        pytest.param(FULL, RedisServer.kill, id="full-killed", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param(FULL, RedisServer.pause, id="full-paused", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
async def test_redis_gone_in_the_middle_fails_no_client_and_ends_no_download(
    stage: Stage, scale: Scale, away: Callable[[RedisServer], None]
) -> None:
    digest, data = stage.offer(scale.size, scale.rate)
    async with led_by_the_first(stage, stage.nodes[0].url + path(digest), digest), asyncio.TaskGroup() as group:
        followers = [group.create_task(ask(node.url + path(digest))) for node in stage.nodes[1:]]
        await stage.upstream.wait_sent(0.3 * scale.size, contains=digest)
        await asyncio.to_thread(away, stage.redis)
        async with herding(stage.herd(digest, scale)) as clients:
            got = await clients
        assert [(await follower).body == data for follower in followers] == [True, True]
    assert_whole(got, data)
    assert not [one for one in got if one.refused or one.cuts]
    assert stage.sent(digest) == scale.size


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_redis_restarted_empty_in_the_middle_starts_no_second_download(stage: Stage) -> None:
    scale = Scale(32 * MIB, 4 * MIB, 60)
    digest, data = stage.offer(scale.size, scale.rate)
    async with led_by_the_first(stage, stage.nodes[0].url + path(digest), digest):
        await stage.upstream.wait_sent(0.3 * scale.size, contains=digest)
        await asyncio.to_thread(stage.redis.restart_empty)
        await asyncio.sleep(2)  # what nobody asks for meanwhile is whose beat comes first
        async with herding(stage.herd(digest, scale)) as clients:
            got = await clients
    assert_whole(got, data)
    assert stage.sent(digest) == scale.size


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_leading_node_that_stands_still_is_passed_over_and_wakes_without_harm(stage: Stage) -> None:
    scale = Scale(32 * MIB, 8 * MIB, 60)
    digest, data = stage.offer(scale.size, scale.rate)
    leader, *others = stage.nodes
    own = asyncio.create_task(ask(leader.url + path(digest)))
    await stage.upstream.wait_for(1, method="GET", contains=digest)
    async with herding(stage.herd(digest, scale, others)) as clients:
        await stage.upstream.wait_sent(0.3 * scale.size, contains=digest)
        leader.pause()
        got = await clients
    assert_whole(got, data)
    assert not [one for one in got if one.refused or one.cuts]
    took_over = stage.upstream.select(method="GET", contains=digest)[1:]
    assert len(took_over) == 1
    assert took_over[0].sent <= 0.8 * scale.size  # from where it was
    started = min(one.began for one in got)
    assert max(one.ended for one in got if one.client % 10) - started < scale.seconds + 8
    leader.resume()
    assert (await own).body == data
    async with herding(Plan(stage.fleet.urls, path(digest), 6)) as clients:
        assert_whole(await clients, data)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_rolling_restart_under_load_fails_no_client(stage: Stage) -> None:
    scale = Scale(32 * MIB, 8 * MIB, 90)
    digests = [stage.offer(scale.size, scale.rate) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        herds = []
        for number, (digest, _) in enumerate(digests):
            herds.append(await stack.enter_async_context(herding(stage.herd(digest, scale))))
            await stage.upstream.wait_for(1, method="GET", contains=digest)
            await asyncio.to_thread(stage.nodes[number].stop)
            await asyncio.to_thread(stage.nodes[number].start)
        gots = [await herd for herd in herds]
    for (digest, data), got in zip(digests, gots, strict=True):
        assert_whole(got, data)
        assert not [one for one in got if one.cuts]
        assert stage.gets(digest) <= 2  # a leader that drains refuses those who have not yet begun to follow


async def test_two_nodes_that_miss_the_same_digests_at_once_do_not_wait_for_each_other(stage: Stage) -> None:
    for _ in range(TRIES):
        offered = [stage.offer(size) for size in (1000, 70_000, 2 * MIB, 3 * MIB) * 3]
        answers = await asyncio.gather(
            *(ask(node.url + path(digest)) for digest, _ in offered for node in stage.nodes for _ in range(2))
        )
        bodies: dict[str, bytes] = dict(offered)
        for answer in answers:
            assert answer.status == 200
            assert answer.body == bodies[answer.headers["Docker-Content-Digest"]]
            assert answer.seconds < 7  # a node is waited for longer
        gets = sum(stage.gets(digest) for digest, _ in offered)
        if gets <= len(offered) + 2:
            break  # else the machine held nodes up for longer than Redis is waited for: each goes on alone
        await stage.mend()
    assert gets <= len(offered) + 2


@pytest.mark.slow
async def test_nodes_that_each_take_the_other_for_who_has_it_and_have_lost_it_ask_upstream(stage: Stage) -> None:
    offered = [stage.offer(size) for size in (70_000, 3 * MIB)]
    one, other, _ = stage.nodes
    for digest, data in offered:
        for node in (one, other):
            assert (await ask(node.url + path(digest))).body == data
    for node in (one, other):
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(shutil.rmtree, node.data)
    await stage.fleet.start()
    for digest, data in offered:
        answers = await asyncio.gather(*(ask(node.url + path(digest)) for node in (one, other)))
        assert [answer.body == data for answer in answers] == [True, True]
        assert max(answer.seconds for answer in answers) < 2
        assert stage.gets(digest) <= 2  # at first, and again: once for both


async def test_no_pull_waits_for_a_redis_that_stands_still(stage: Stage) -> None:
    cached, data = stage.offer(70_000)
    for node in stage.nodes:
        assert (await ask(node.url + path(cached))).body == data
    new = [stage.offer(70_000) for _ in range(12)]
    stage.redis.pause()
    slowest = 0.0
    for number, (digest, body) in enumerate(new):
        node = stage.nodes[number % 3]
        miss, hit = await asyncio.gather(ask(node.url + path(digest)), ask(node.url + path(cached)))
        assert (miss.body, hit.body) == (body, data)
        slowest = max(slowest, miss.seconds, hit.seconds)
    assert slowest < 4  # a question that waits for it would have no end
    await eventually("each node says degraded", lambda: {node.readiness() for node in stage.nodes} == {"degraded"})
    stage.redis.resume()
    await eventually("each node has healed", lambda: {node.readiness() for node in stage.nodes} == {"ready"})
    digest, body = stage.offer(3 * MIB)
    answers = await asyncio.gather(*(ask(node.url + path(digest)) for node in stage.nodes))
    assert [answer.body for answer in answers] == [body] * 3
    assert stage.gets(digest) == 1
