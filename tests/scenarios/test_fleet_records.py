"""What one node of a fleet learns, the others know: images, tags, pins and removals; and who is no part of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from time import time

import pytest

from tests.bundle.writing import make_bundle
from tests.scenarios.fleets import MIB, Stage, image_of, pull, repository
from tests.support.clients import Skopeo
from tests.support.contents import blob, make_image
from tests.support.fleet import SECRET, Node, ask, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.needs("redis-server")]


def listed(node: Node, reference: str) -> list[dict[str, object]]:
    """Return what `entrepot ls` tells of it on that node."""
    return list(json.loads(node.command("ls", reference, "--format", "json")))


async def test_an_image_pulled_through_one_node_is_served_by_the_others_without_upstream(stage: Stage) -> None:
    first, *others = stage.nodes
    repo = repository("offline")
    image_of(100, 3 * MIB).publish(stage.upstream, repo, "1")
    assert await pull(first, repo, "1") == [200] * 4
    await eventually("all of it is stored", lambda: first.settled)
    await stage.upstream.stop_listening()
    assert [await pull(node, repo, "1") for node in others] == [[200] * 4] * 2


async def test_an_image_imported_on_one_node_is_served_by_the_others_without_upstream(
    stage: Stage, tmp_path: Path
) -> None:
    """The import works beside the first node, whose neighbours hear of the records and fetch the bytes from it."""
    first, *others = stage.nodes
    repo = repository("imported")
    (bundle,) = make_bundle(tmp_path, [(f"docker.io/{repo}:1", make_image([blob(200_000, 5), blob(3_000, 6)]))])
    await stage.upstream.stop_listening()
    await asyncio.to_thread(first.command, "import", str(bundle))
    assert await pull(first, repo, "1") == [200] * 4
    for node in others:
        await eventually("the tag is known", lambda node=node: len(listed(node, f"{repo}:1")) == 1)  # type: ignore[misc]
    assert [await pull(node, repo, "1") for node in others] == [[200] * 4] * 2


@pytest.mark.slow
async def test_what_no_node_has_is_refused_by_all_soon_with_the_upstream_gone(stage: Stage) -> None:
    digest, _ = stage.offer(70_000)
    await stage.upstream.stop_listening()
    answers = await asyncio.gather(*(ask(f"{node.url}/v2/library/fleet/blobs/{digest}") for node in stage.nodes))
    assert {answer.status for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < 5


async def test_a_tag_that_is_removed_or_pinned_on_one_node_is_so_on_the_others(stage: Stage) -> None:
    first, _, last = stage.nodes
    repo = repository("removed")
    digest = image_of(200).publish(stage.upstream, repo, "1")
    assert await pull(first, repo, "1") == [200] * 4
    first.command("pin", f"{repo}:1")
    await eventually(
        "the tag and its pin are known elsewhere",
        lambda: [(one["digest"], one["pinned"]) for one in listed(last, f"{repo}:1")] == [(digest, True)],
    )
    last.command("unpin", f"{repo}:1")
    await eventually("it is unpinned", lambda: [one["pinned"] for one in listed(first, f"{repo}:1")] == [False])
    first.command("rm", f"{repo}:1")
    await eventually("it is removed", lambda: not listed(last, f"{repo}:1"))
    assert await pull(last, repo, "1") == [200] * 4  # who asks for it again has it again


async def test_a_node_that_joins_knows_the_tags_and_pins_within_seconds(stage: Stage) -> None:
    repo = repository("joined")
    digest = image_of(300).publish(stage.upstream, repo, "1")
    assert await pull(stage.nodes[0], repo, "1") == [200] * 4
    stage.nodes[0].command("pin", f"{repo}:1")
    joiner = stage.fleet.another()
    await asyncio.to_thread(joiner.start)
    try:
        await eventually(
            "the new node knows the tag and its pin",
            lambda: [(one["digest"], one["pinned"]) for one in listed(joiner, f"{repo}:1")] == [(digest, True)],
            seconds=15,
        )
        await eventually("all of it is stored", lambda: stage.nodes[0].settled)
        await stage.upstream.stop_listening()
        assert await pull(joiner, repo, "1") == [200] * 4
    finally:
        await asyncio.to_thread(joiner.stop)


async def test_a_tag_is_asked_for_upstream_once_for_all_nodes(stage: Stage) -> None:
    repo = repository("asked")
    image_of(400).publish(stage.upstream, repo, "1")
    image_of(402).publish(stage.upstream, repo, "before")
    for node in stage.nodes:
        assert await pull(node, repo, "before") == [200] * 4  # now each knows that the upstream answers
    asked = stage.upstream.count(contains=f"{repo}/manifests/")
    answers = await asyncio.gather(
        *(
            ask(f"{node.url}/v2/{repo}/manifests/1", method, {"Accept": "*/*"})
            for node in stage.nodes
            for method in ("HEAD", "GET")
        )
    )
    assert {answer.status for answer in answers} == {200}
    new = stage.upstream.select(contains=f"{repo}/manifests/")[asked:]
    assert sorted(request.method for request in new) == ["GET", "HEAD"]


@pytest.mark.slow
async def test_a_node_with_another_secret_serves_alone_and_is_refused_by_name(stage: Stage) -> None:
    repo = repository("stranger")
    image_of(500).publish(stage.upstream, repo, "1")
    stranger = stage.fleet.another(secret="another secret than theirs")
    await asyncio.to_thread(stranger.start)
    try:
        assert await pull(stage.nodes[0], repo, "1") == [200] * 4
        assert await pull(stranger, repo, "1") == [200] * 4
        assert stage.upstream.count(method="GET", contains=f"{repo}/manifests/") == 2
        log = stranger.folder / "mirror.log"
        await eventually("the log says why", lambda: "its fleet secret is another one" in log.read_text())
    finally:
        await asyncio.to_thread(stranger.stop)


@pytest.mark.slow
async def test_a_newer_node_is_passed_by_and_the_older_says_what_to_upgrade(stage: Stage) -> None:
    newer = "http://127.0.0.1:1"
    said = json.dumps({"url": newer, "protocol": 99, "version": "9.9", "epoch": "e", "state": "serving"})
    logs = [node.folder / "mirror.log" for node in stage.nodes]
    with contextlib.closing(stage.redis.client()) as redis:
        redis.hset("entrepot:nodes:local", newer, f"{int(time() * 1000)} {said}")
        await eventually(
            "each node's log says so",
            lambda: all(f"node {newer} speaks fleet protocol 99" in log.read_text() for log in logs),
        )
        redis.hdel("entrepot:nodes:local", newer)
    assert all("upgrade this node" in log.read_text() for log in logs)


@pytest.mark.real
@pytest.mark.needs("skopeo")
async def test_skopeo_pulls_through_one_node_what_another_downloads(stage: Stage, tmp_path: Path) -> None:
    leader, asked, _ = stage.nodes
    repo = repository("skopeo")
    image = image_of(600, 3 * MIB)
    digest = image.publish(stage.upstream, repo, "1")
    stage.upstream.rate = 4 * MIB
    layer = next(name for name, data in stage.upstream.blobs[repo].items() if len(data) == 3 * MIB)
    leads = asyncio.create_task(ask(f"{leader.url}/v2/{repo}/blobs/{layer}"))
    await stage.upstream.wait_for(1, method="GET", contains=layer)
    pulled = await asyncio.to_thread(Skopeo(tmp_path / "skopeo").pull, asked.url, f"{repo}:1")
    assert pulled == {digest, *stage.upstream.blobs[repo]}
    assert (await leads).status == 200
    assert stage.upstream.count(method="GET", contains=layer) == 1


@pytest.mark.slow
async def test_two_fleets_in_one_redis_keep_to_their_regions(stage: Stage, tmp_path: Path) -> None:
    digest, data = stage.offer(70_000)
    stranger = Node(
        tmp_path,
        {"docker.io": stage.upstream.url},
        flags=("--redis", stage.redis.url, "--region", "elsewhere"),
        env={"ENTREPOT_FLEET_SECRET": SECRET},
    )
    assert (await ask(f"{stage.nodes[0].url}/v2/library/fleet/blobs/{digest}")).body == data
    await asyncio.to_thread(stranger.start)
    try:
        assert (await ask(f"{stranger.url}/v2/library/fleet/blobs/{digest}")).body == data
    finally:
        await asyncio.to_thread(stranger.stop)
    assert stage.gets(digest) == 2
