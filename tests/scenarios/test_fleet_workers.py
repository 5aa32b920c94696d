"""Two nodes of two workers each: what one worker leads is followed by its siblings and by the other node's workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.scenarios.fleets import MIB, Scale, Stage, assert_whole, image_of, path, repository
from tests.support.balanced import herding
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Fleet, Node, ask, eventually, fleet_of
from tests.support.owners import leading
from tests.support.redis import RedisServer

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("redis-server"),
    pytest.mark.slow,
    pytest.mark.timeout(240),
]
SCALE = Scale(24 * MIB, 6 * MIB, 40)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crews(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("crews")
    with RedisServer(folder / "redis") as redis:
        async with (
            FakeUpstream() as upstream,
            fleet_of(Fleet(redis.url, upstream.url, folder, count=2, workers=2)) as fleet,
        ):
            yield Stage(upstream, redis, fleet)


async def workers_of(node: Node) -> list[int]:
    status = await asyncio.to_thread(node.status)
    return [worker["pid"] for worker in status["workers"]]


async def test_all_workers_of_all_nodes_share_one_download(crews: Stage) -> None:
    digest, data = crews.offer(SCALE.size, SCALE.rate)
    async with herding(crews.herd(digest, SCALE)) as clients:
        got = await clients
    assert_whole(got, data)
    assert not [one for one in got if one.cuts]
    assert (crews.gets(digest), crews.sent(digest)) == (1, len(data))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_leading_worker_that_is_lost_costs_the_other_node_nothing(crews: Stage, number: signal.Signals) -> None:
    digest, data = crews.offer(SCALE.size, SCALE.rate)
    first, second = crews.nodes
    opening = asyncio.create_task(ask(first.url + path(digest)))
    await crews.upstream.wait_for(1, method="GET", contains=digest)
    pids = await workers_of(first)
    leader = await asyncio.to_thread(leading, first.data, digest, pids)
    try:
        async with herding(crews.herd(digest, SCALE, [second])) as clients:
            await crews.upstream.wait_sent(0.3 * SCALE.size, contains=digest)
            os.kill(leader, number)
            got = await clients
    finally:
        if number is signal.SIGSTOP:
            os.kill(leader, signal.SIGCONT)
        opening.cancel()
        await asyncio.wait([opening])
    assert_whole(got, data)
    assert not [one for one in got if one.cuts]
    if number is signal.SIGKILL:
        assert crews.sent(digest) <= 1.1 * SCALE.size
    await eventually("both workers answer", lambda: first.readiness() == "ready", 30)


async def test_a_tag_and_its_manifest_are_asked_for_once_by_four_workers(crews: Stage) -> None:
    repo = repository("crewed")
    digest = image_of(900).publish(crews.upstream, repo, "1")
    urls = [f"{node.url}/v2/{repo}/manifests/1" for node in crews.nodes for _ in range(8)]
    answers = await asyncio.gather(*(ask(url) for url in urls))
    assert {(answer.status, answer.headers["Docker-Content-Digest"]) for answer in answers} == {(200, digest)}
    assert crews.upstream.count(method="HEAD", contains=f"{repo}/manifests/1") == 1
    assert crews.upstream.count(method="GET", contains=f"{repo}/manifests/") == 1
