"""A small volume of its own: ten times what it holds is pulled through, and somebody else fills it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.oci.names import Tag
from proxy.store.sweep import sweeping
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.volumes import tmpfs

REPO = "library/alpine"
MIB = 1 << 20
VOLUME = 32 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "mount")]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "volume", VOLUME) as folder:
        yield folder


async def pull(lab: Lab, upstream: FakeUpstream, image: Image, tag: str) -> bool:
    """Pull an image as a client does, trying once more what was refused for want of room; say whether it came whole."""
    image.publish(upstream, REPO, tag)
    status, _, _ = await lab.get(lab.manifest_url(tag))
    for data in image.blobs:
        for _ in range(3):
            status, got, whole = await lab.get_short(lab.blob_url(upstream.add_blob(REPO, data)))
            if status == 200 and whole and got == data:
                break
        else:
            return False
    return status == 200


def taken(folder: Path) -> int:
    stats = os.statvfs(folder)
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


def fill_up(folder: Path) -> None:
    with suppress(OSError), (folder / "somebody").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


async def test_ten_times_a_volume_is_pulled_through_by_many_at_once(volume: Path, upstream: FakeUpstream) -> None:
    images = [make_image([blob(MIB, seed), blob(2 * MIB, 1000 + seed)]) for seed in range(110)]
    most = 0
    async with (
        laboratory(volume / "data", {HUB: [upstream]}) as lab,
        sweeping(lab.store, None, lab.events.append) as sweeper,
    ):
        assert await pull(lab, upstream, images[0], "v0")
        await lab.store.catalog.pin(ALPINE, Tag("v0"))
        for start in range(1, len(images), 4):
            some = range(start, min(start + 4, len(images)))
            assert all(await asyncio.gather(*(pull(lab, upstream, images[at], f"v{at}") for at in some)))
            most = max(most, taken(volume))
        high = (await sweeper.measure()).high
        assert high <= VOLUME * 4 // 5
        assert most <= VOLUME * 95 // 100
    async with laboratory(volume / "data", {HUB: [upstream]}, offline=True) as lab:
        served = 0
        for at, image in enumerate(images):
            record = await lab.store.catalog.blob(image.digest)
            assert record is not None
            assert at or record.servable
            if record.servable:
                served += 1
                assert (await lab.get(lab.manifest_url(image.digest)))[2] == image.body
                for data in image.blobs:
                    assert (await lab.get(lab.blob_url(upstream.add_blob(REPO, data))))[2] == data
        assert served >= 4


async def test_a_volume_that_others_fill_evicts_then_refuses_and_recovers(volume: Path, upstream: FakeUpstream) -> None:
    first, second, third = (make_image([blob(2 * MIB, seed)]) for seed in range(3))
    async with (
        laboratory(volume / "data", {HUB: [upstream]}) as lab,
        sweeping(lab.store, None, lab.events.append) as sweeper,
    ):
        assert await pull(lab, upstream, first, "v0")
        await lab.store.catalog.pin(ALPINE, Tag("v0"))
        with (volume / "somebody").open("wb") as file:
            stats = os.statvfs(volume)
            os.posix_fallocate(file.fileno(), 0, stats.f_bavail * stats.f_frsize - 64_000)
        await sweeper.measure()
        assert not await pull(lab, upstream, second, "v1")
        assert (await lab.get(lab.blob_url(upstream.add_blob(REPO, first.blobs[0]))))[2] == first.blobs[0]
        (volume / "somebody").unlink()
        await sweeper.measure()
        assert await pull(lab, upstream, third, "v2")


async def test_a_volume_without_a_free_byte_is_evicted_from(volume: Path, upstream: FakeUpstream) -> None:
    images = [make_image([blob(2 * MIB, seed)]) for seed in range(9)]
    async with laboratory(volume / "data", {HUB: [upstream]}) as lab:
        async with sweeping(lab.store, None, lab.events.append):
            for at in range(8):
                assert await pull(lab, upstream, images[at], f"v{at}")
        fill_up(volume)
        async with sweeping(lab.store, None, lab.events.append) as sweeper, asyncio.timeout(60):
            images[8].publish(upstream, REPO, "v8")
            for _ in range(50):  # as a client that comes again
                if (await lab.get(lab.manifest_url("v8")))[0] == 200:
                    break
                await asyncio.sleep(0.1)
            assert await pull(lab, upstream, images[8], "v8")
            assert (await sweeper.measure()).free >= VOLUME // 20
            assert (await lab.get(lab.blob_url(upstream.add_blob(REPO, images[7].blobs[0]))))[2] == images[7].blobs[0]
