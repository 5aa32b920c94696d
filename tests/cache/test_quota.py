"""A mirror that is short of room: what is larger than the quota passes through, what finds no room is refused."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metrics.events import ClosureEvicted, FillFinished, RequestFinished
from proxy.oci.names import Tag
from proxy.store import space
from proxy.store.disk import Disk
from proxy.store.eviction import Order
from proxy.store.sweep import sweeping
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
QUOTA = 3 << 20


@pytest.fixture
async def tight(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab, sweeping(lab.store, QUOTA, lab.events.append):
        yield lab


async def used(lab: Lab) -> int:
    return (await lab.store.catalog.usage()).used


async def test_a_blob_larger_than_the_quota_is_relayed_and_not_stored(tight: Lab, upstream: FakeUpstream) -> None:
    data = blob(QUOTA + 1)
    digest = upstream.add_blob(REPO, data)
    for _ in range(2):
        assert (await tight.get(tight.blob_url(digest)))[2] == data
    status, headers, part = await tight.get(tight.blob_url(digest), {"Range": f"bytes={QUOTA - 9}-"})
    assert (status, part) == (206, data[-10:])  # P4
    assert headers["Content-Range"] == f"bytes {QUOTA - 9}-{QUOTA}/{QUOTA + 1}"
    assert [event.outcome for event in tight.of(RequestFinished)] == ["relayed"] * 3
    assert await used(tight) == 0
    assert await tight.store.catalog.blob(digest) is None


async def test_wrong_bytes_of_what_is_relayed_never_arrive_whole(tight: Lab, upstream: FakeUpstream) -> None:  # P38
    data = blob(QUOTA + 1)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt = {1000: 1}
    status, got, whole = await tight.get_short(tight.blob_url(digest))
    assert (status, whole) == (200, False)
    assert len(got) < len(data)
    upstream.corrupt = {}
    status, _, _ = await tight.get(tight.blob_url(digest), {"Range": f"bytes={len(got)}-"})
    assert status == 503  # nobody puts a good tail to a bad head


async def test_an_answer_without_a_size_is_held_to_the_quota(
    tight: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "PATIENCE_SECONDS", 0.2)
    upstream.chunked = True
    digest = upstream.add_blob(REPO, blob(2 * QUOTA))
    _, _, whole = await tight.get_short(tight.blob_url(digest))
    assert not whole
    await tight.until(lambda: any(event.outcome == "failed" for event in tight.of(FillFinished)))
    assert await used(tight) == 0


async def test_ten_times_the_quota_is_pulled_through_and_what_is_pinned_is_served_offline(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    images = [make_image([blob(700_000, seed), blob(500_000, 1000 + seed)]) for seed in range(25)]
    most = 0
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab, sweeping(lab.store, QUOTA, lab.events.append):
        for number, image in enumerate(images):
            image.publish(upstream, REPO, f"v{number}")
            assert (await lab.get(lab.manifest_url(f"v{number}")))[2] == image.body
            for data in image.blobs:
                digest = upstream.add_blob(REPO, data)
                assert (await lab.get(lab.blob_url(digest)))[2] == data
            if number == 0:
                await lab.store.catalog.pin(ALPINE, Tag("v0"))
            most = max(most, await used(lab))
        assert most <= QUOTA
        assert len(lab.of(ClosureEvicted)) >= 20
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, offline=True) as lab:
        served = 0
        for image in images:
            record = await lab.store.catalog.blob(image.digest)
            assert record is not None
            if not record.servable:
                continue
            served += 1
            assert (await lab.get(lab.manifest_url(image.digest)))[2] == image.body
            for data in image.blobs:
                assert (await lab.get(lab.blob_url(upstream.add_blob(REPO, data))))[2] == data
        first = await lab.store.catalog.blob(images[0].digest)
        assert first is not None
        assert first.servable
        assert served >= 2


async def test_an_answer_that_is_given_again_counts_as_a_use(tight: Lab, upstream: FakeUpstream) -> None:
    image = make_image([blob(1000)])
    image.publish(upstream, REPO, "hot")
    catalog = tight.store.catalog
    for data in image.blobs:
        await tight.get(tight.blob_url(upstream.add_blob(REPO, data)))
    for _ in range(3):
        await tight.get(tight.manifest_url("hot"))
    await catalog._touches.flush()
    await catalog._writer.write(lambda transaction: transaction.connection.execute("UPDATE blob SET last_use = 1"))
    await tight.get(tight.manifest_url("hot"))
    await catalog._touches.flush()
    assert await catalog.read(
        lambda connection: connection.execute("SELECT digest FROM blob WHERE last_use > 1").fetchall()
    ) == [(image.digest,)]


async def test_an_evicted_manifest_is_not_given_again_from_memory(tight: Lab, upstream: FakeUpstream) -> None:  # P27
    image = make_image([blob(1000)])
    image.publish(upstream, REPO, "hot")
    for data in image.blobs:
        await tight.get(tight.blob_url(upstream.add_blob(REPO, data)))
    for _ in range(3):
        assert (await tight.get(tight.manifest_url("hot")))[0] == 200
    await upstream.stop_listening()
    assert (await tight.get(tight.manifest_url("hot")))[0] == 200
    await tight.store.evict(Order("gc"))
    assert (await tight.get(tight.manifest_url("hot")))[0] == 503


async def test_what_a_manifest_says_is_too_large_is_asked_for_once(tight: Lab, upstream: FakeUpstream) -> None:
    image = make_image([blob(QUOTA + 1)])
    image.publish(upstream, REPO, "large")
    await tight.get(tight.manifest_url("large"))
    digest = upstream.add_blob(REPO, image.blobs[1])
    assert (await tight.get(tight.blob_url(digest)))[2] == image.blobs[1]
    assert upstream.count(method="GET", contains=digest) == 1


async def test_a_full_disk_fails_new_fills_and_hits_go_on(
    tight: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, wanted = upstream.add_blob(REPO, blob(200_000)), upstream.add_blob(REPO, blob(2 << 20, 1))
    await tight.get(tight.blob_url(kept))
    await tight.committed()

    def full(self: Disk, fd: int, data: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Disk, "pwrite", full)
        status, _, _ = await tight.get_short(tight.blob_url(wanted))
        assert status in (200, 503)
        await tight.until(lambda: any(event.outcome == "failed" for event in tight.of(FillFinished)))
        assert (await tight.get(tight.blob_url(kept)))[0] == 200
    assert list((tight.store._files.layout.ingest).glob("*.state")) == []
    assert (await tight.get(tight.blob_url(wanted)))[0] == 200


async def test_no_room_beside_what_is_pinned_is_a_503_that_says_what_to_do(tight: Lab, upstream: FakeUpstream) -> None:
    kept, wanted = upstream.add_blob(REPO, blob(2 << 20)), upstream.add_blob(REPO, blob(2 << 20, 1))
    await tight.get(tight.blob_url(kept))
    await tight.committed()
    await tight.store.catalog.pin(ALPINE, kept)
    async with asyncio.timeout(8):
        status, _, body = await tight.get(tight.blob_url(wanted))
    assert status == 503
    assert b"raise the quota" in body
    assert (await tight.get(tight.blob_url(kept)))[0] == 200
