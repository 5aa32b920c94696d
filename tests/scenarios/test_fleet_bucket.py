"""Three nodes and their bucket: what one has filled the others have, and a bucket that is away does no harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import obstore
import pytest
import pytest_asyncio
from obstore.store import S3Store

from tests.scenarios.fleets import MIB, Stage, image_of, path, pull, repository
from tests.scenarios.test_fleet_records import listed
from tests.support.bucket import BUCKET, KEY_ID, SECRET, BucketServer
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Fleet, ask, eventually, fleet_of
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("redis-server")]
PREFIX = "shared/images"


@dataclass
class Sharing:
    """A stage with a bucket."""

    stage: Stage
    bucket: BucketServer

    def has(self, *digests: str) -> Callable[[], bool]:
        """Return the question whether all of these are in the bucket."""
        return lambda: set(digests) <= self.stored()

    def stored(self) -> set[str]:
        """Return the digests of what is in the bucket."""
        store = S3Store(
            BUCKET,
            prefix=PREFIX,
            endpoint=self.bucket.endpoint,
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        paths = [PurePosixPath(found["path"]) for page in obstore.list(store, "v1/blobs") for found in page]
        return {f"{where.parts[-3]}:{where.name}" for where in paths}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sharing]:
    """Three nodes on one bucket."""
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "s3").mkdir()
    bucket = BucketServer(folder / "s3")
    await asyncio.to_thread(bucket.start)
    try:
        with RedisServer(folder / "redis") as redis:
            async with FakeUpstream() as upstream:
                url, environment = bucket.url(PREFIX), bucket.environment
                async with fleet_of(Fleet(redis.url, upstream.url, folder, store=url, env=environment)) as fleet:
                    yield Sharing(Stage(upstream, redis, fleet), bucket)
    finally:
        bucket.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def sharing(shared: Sharing) -> AsyncIterator[Sharing]:
    """The same, mended afterwards."""
    yield shared
    shared.bucket.resume()
    await shared.stage.mend()


async def test_what_one_node_filled_the_others_serve_from_the_bucket_without_it_and_upstream(sharing: Sharing) -> None:
    stage = sharing.stage
    first, *others = stage.nodes
    repo = repository("shared")
    digest = image_of(1100, 3 * MIB).publish(stage.upstream, repo, "1")
    assert await pull(first, repo, "1") == [200] * 4
    names = {digest, *stage.upstream.blobs[repo]}
    await eventually("all of it is in the bucket", sharing.has(*names), seconds=60)
    for node in others:
        await eventually("the tag is known elsewhere", lambda node=node: bool(listed(node, f"{repo}:1")), seconds=60)  # type: ignore[misc]
    await asyncio.to_thread(first.kill)
    await stage.upstream.stop_listening()
    assert [await pull(node, repo, "1") for node in others] == [[200] * 4] * 2


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_pulls_go_on_while_the_bucket_stands_still_for_a_minute_and_the_backlog_is_uploaded(
    sharing: Sharing,
) -> None:
    stage = sharing.stage
    sharing.bucket.pause()
    digests = []
    for number in range(30):
        digest, data = stage.offer(2 * MIB if number % 3 == 0 else 70_000)
        answer = await ask(stage.nodes[number % 3].url + path(digest))
        assert answer.body == data
        assert answer.seconds < 5
        digests.append(digest)
        await asyncio.sleep(2)
    assert {node.readiness() for node in stage.nodes} <= {"ready", "degraded"}
    sharing.bucket.resume()
    await eventually("the backlog is in the bucket", sharing.has(*digests), seconds=120)


@pytest.mark.slow
async def test_a_backlog_outlives_the_death_of_its_node_and_of_the_bucket(sharing: Sharing) -> None:
    stage = sharing.stage
    await asyncio.to_thread(sharing.bucket.stop)
    digest, data = stage.offer(3 * MIB)
    assert (await ask(stage.nodes[0].url + path(digest))).body == data
    await asyncio.to_thread(stage.nodes[0].kill)
    await asyncio.to_thread(sharing.bucket.start)
    await asyncio.to_thread(stage.nodes[0].start)
    await eventually("it is in the bucket", sharing.has(digest), seconds=60)


@pytest.mark.slow
async def test_one_blob_that_all_nodes_want_is_read_from_the_bucket_and_not_from_upstream(sharing: Sharing) -> None:
    stage = sharing.stage
    digest, data = stage.offer(6 * MIB)
    assert (await ask(stage.nodes[0].url + path(digest))).body == data
    await eventually("it is in the bucket", sharing.has(digest), seconds=60)
    await asyncio.to_thread(stage.nodes[0].stop)
    answers = await asyncio.gather(*(ask(node.url + path(digest)) for node in stage.nodes[1:] for _ in range(4)))
    assert [answer.body == data for answer in answers] == [True] * 8
    assert stage.gets(digest) == 1
