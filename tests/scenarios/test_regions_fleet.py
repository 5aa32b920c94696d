"""A region of several nodes without a bucket, behind a load balancer: whichever node another region meets, it is given
what any of them has stored, and waits for none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from proxy.oci.digest import Digest
from proxy.regions.protocol import HELD_ONLY, via
from tests.scenarios.fleets import MIB, Stage, image_of, path, pull, repository
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Answer, Fleet, Node, ask, eventually, fleet_of
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("redis-server")]
TOKEN = "token-of-eu-for-this-fleet-0123456789"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Two nodes that the region eu may ask."""
    folder: Path = tmp_path_factory.mktemp("granting")
    tokens = folder / "token"
    tokens.write_text(TOKEN)
    tokens.chmod(0o600)
    config = f'region = "us"\n[[grant]]\nname = "eu"\ntoken_file = "{tokens}"\nrepositories = ["*"]\n'
    with RedisServer(folder / "redis") as redis:
        async with (
            FakeUpstream() as upstream,
            fleet_of(Fleet(redis.url, upstream.url, folder, count=2, config=config)) as fleet,
        ):
            yield Stage(upstream, redis, fleet)


async def asked_by_region(node: Node, target: str, method: str = "GET", *, held: bool = True) -> Answer:
    headers = {"Via": via("eu"), "Authorization": f"Bearer {TOKEN}"}
    if held:
        headers["Cache-Control"] = HELD_ONLY
    return await ask(node.url + target.replace("/v2/", "/v2/docker.io/", 1), method, headers)


async def test_a_region_is_given_by_any_node_what_one_has_stored(stage: Stage) -> None:
    first, second = stage.nodes
    image, repo = image_of(900), repository("balanced")
    image.publish(stage.upstream, repo, "1")
    assert set(await pull(first, repo, "1")) == {200}
    await eventually("all of it is stored", lambda: first.settled)
    for blob in image.blobs:
        target = f"/v2/{repo}/blobs/{Digest.of(blob)}"
        given = await asked_by_region(second, target)
        assert (given.status, given.body) == (200, blob)
    manifest = await asked_by_region(second, f"/v2/{repo}/manifests/{image.digest}")
    assert (manifest.status, manifest.body) == (200, image.body)
    for held in (True, False):
        elsewhere = await asked_by_region(second, f"/v2/library/other/manifests/{image.digest}", held=held)
        assert elsewhere.status == (504 if held else 404)  # P43
    assert stage.upstream.count(method="GET", contains=f"{repo}/") == 1 + len(image.blobs)


async def test_what_one_node_downloads_is_fetched_for_a_region_by_no_other(stage: Stage) -> None:
    """Who downloads may wait for somebody who waits for the region that asks."""
    first, second = stage.nodes
    digest, data = stage.offer(3 * MIB)
    stage.upstream.stall_at = MIB
    reading = asyncio.create_task(ask(first.url + path(digest)))
    await stage.upstream.stalled.wait()
    for held in (True, False):
        assert (await asked_by_region(second, path(digest), held=held)).status == 504
    stage.upstream.go_on()
    assert (await reading).body == data
    await eventually("it is stored", lambda: first.settled)
    assert (await asked_by_region(second, path(digest))).body == data
    assert stage.gets(digest) == 1
