"""What containerd 2.x and BuildKit send, replayed: ranges on everything, layers in parts that are closed early."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metrics.events import FillFinished, RequestFinished
from proxy.oci.digest import Digest
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.containerd2 import LAYER, Containerd2, FetchFailed
from tests.support.contents import Image, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

MIB = 1 << 20
REPO = "library/alpine"
FORMS = {
    "containerd": "/v2/library/alpine",
    "containerd-override-path": "/docker.io/v2/library/alpine",
    "buildkit": "/v2/docker.io/library/alpine",
}
"""Where each has the name in its path; all of them add `?ns=docker.io`."""


def everything(image: Image) -> dict[str, bytes]:
    """Return the closure by digest."""
    found: dict[str, bytes] = {str(image.digest): image.body}
    for child in image.children:
        found |= everything(child)
    return found | {str(Digest.of(data)): data for data in image.blobs}


def two_platforms() -> Image:
    shared = blob(5 * MIB + 7)
    amd64 = make_image([shared, blob(300_000, seed=1), b""])
    arm64 = make_image([shared, blob(2 * MIB, seed=2)], platform="linux/arm64")
    return make_index({"linux/amd64": amd64, "linux/arm64": arm64})


def client_of(lab: Lab, form: str = "containerd", parallel: int = 3) -> Containerd2:
    return Containerd2(lab.http, lab.url + FORMS[form], parallel=parallel)


@pytest.mark.parametrize(("form", "parallel"), [*((form, 3) for form in FORMS), ("containerd", 1)])
async def test_a_whole_pull_is_right_cold_and_warm_and_asks_the_upstream_once_for_each_digest(
    lab: Lab, upstream: FakeUpstream, form: str, parallel: int
) -> None:  # P6, P17, P24, P29
    image = two_platforms()
    image.publish(upstream, REPO, "3")
    wanted = everything(image)
    cold = client_of(lab, form, parallel)
    assert await cold.pull("3") == wanted
    await lab.committed(len(upstream.blobs[REPO]))
    for digest in wanted:
        assert upstream.count(method="GET", contains=digest) <= 1, digest
    assert upstream.count(method="GET", contains="/blobs/") == len(upstream.blobs[REPO])
    assert set(cold.statuses) <= {200, 206}
    upstream.requests.clear()
    upstream.down = True
    assert await client_of(lab, form, parallel).pull("3") == wanted
    assert upstream.requests == []


@pytest.mark.parametrize("cached", [False, True])
async def test_a_range_from_0_is_answered_as_a_part_so_that_containerd_goes_on_in_parallel(
    lab: Lab, upstream: FakeUpstream, cached: bool
) -> None:  # P6: after a 200 it takes one request for the whole layer
    digest = upstream.add_blob(REPO, blob(4 * MIB))
    client = client_of(lab)
    for _ in range(1 + cached):
        client.statuses.clear()
        assert await client.fetch("blobs", digest, LAYER) == blob(4 * MIB)
        await lab.committed()
    assert client.statuses == [206, 206, 206, 206]
    assert upstream.count(method="GET", contains=digest) == 1


async def test_an_empty_layer_is_no_range_error(lab: Lab, upstream: FakeUpstream) -> None:  # P6
    digest = upstream.add_blob(REPO, b"")
    client = client_of(lab)
    for _ in range(2):
        assert await client.fetch("blobs", digest, LAYER) == b""
    assert client.statuses == [200, 200]


async def test_parts_that_join_a_running_fill_are_right_and_share_its_download(
    lab: Lab, upstream: FakeUpstream
) -> None:  # P29
    data = blob(8 * MIB + 11)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 3 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    client = client_of(lab, parallel=4)
    late = asyncio.create_task(client.fetch("blobs", digest, LAYER))
    await lab.until(lambda: len(lab.of(RequestFinished)) >= 2)  # two parts are read and closed early
    assert not late.done()
    upstream.go_on()
    assert (await first)[2] == await late == data
    assert [one.range for one in upstream.select(method="GET", contains=digest)] == [None]
    assert client.statuses == [206] * 9


async def test_parts_of_two_nodes_at_different_speeds_share_one_download(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(6 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.rate = 20 * MIB
    nodes = [client_of(lab, form, parallel) for form, parallel in (("containerd", 2), ("buildkit", 5))]
    assert await asyncio.gather(*(node.fetch("blobs", digest, LAYER) for node in nodes)) == [data, data]
    assert upstream.count(method="GET", contains=digest) == 1


async def test_a_pull_that_is_given_up_with_all_its_parts_ends_no_fill(lab: Lab, upstream: FakeUpstream) -> None:  # P29
    data = blob(8 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 2 * MIB
    pull = asyncio.create_task(client_of(lab, parallel=4).fetch("blobs", digest, LAYER))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    await lab.until(lambda: bool(lab.of(RequestFinished)))
    pull.cancel()
    await asyncio.wait({pull})
    await lab.until(lambda: lab.cache.running()[0].readers == 0)
    upstream.go_on()
    await lab.committed()
    assert [event.outcome for event in lab.of(FillFinished)] == ["committed"]
    assert await client_of(lab).fetch("blobs", digest, LAYER) == data
    assert upstream.count(method="GET", contains=digest) == 1


@pytest.mark.parametrize("offset", [1, MIB, 5 * MIB - 1])
@pytest.mark.parametrize("cached", [False, True])
async def test_a_layer_taken_up_again_at_an_offset_continues_exactly_there(
    lab: Lab, upstream: FakeUpstream, offset: int, cached: bool
) -> None:  # P4: containerd keeps what it has after a restart
    data = blob(5 * MIB)
    digest = upstream.add_blob(REPO, data)
    if cached:
        await lab.get(lab.blob_url(digest))
        await lab.committed()
    assert await client_of(lab).fetch("blobs", digest, LAYER, offset) == data[offset:]
    await lab.committed()
    assert [one.range for one in upstream.select(method="GET", contains=digest)] == [None]


async def test_an_upstream_that_breaks_off_under_parts_is_resumed_unseen(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(6 * MIB)  # P28
    digest = upstream.add_blob(REPO, data)
    upstream.die_at = 2 * MIB + 5
    client = client_of(lab)
    assert await client.fetch("blobs", digest, LAYER) == data
    assert client.statuses == [206] * 6
    assert upstream.count(method="GET", contains=digest) == 2


async def test_once_the_upstream_is_gone_the_retry_is_refused_so_that_the_next_host_is_asked(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P28
    digest = upstream.add_blob(REPO, blob(6 * MIB))
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=0.5) as lab:
        status, got, whole = await lab.get_short(
            f"{lab.url}{FORMS['containerd']}/blobs/{digest}?ns=docker.io", {"Range": "bytes=0-"}
        )
        assert (status, whole) == (206, False)
        with pytest.raises(FetchFailed) as failed:
            await client_of(lab).fetch("blobs", digest, LAYER, len(got))
        assert failed.value.status >= 500


@pytest.mark.parametrize("form", FORMS)
async def test_a_tag_that_is_nowhere_is_404_to_its_head(lab: Lab, form: str) -> None:  # P30
    with pytest.raises(FetchFailed) as failed:
        await client_of(lab, form).resolve("never")
    assert failed.value.status == 404
