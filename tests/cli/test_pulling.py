"""What a pull asks the cache for, and how it goes on when some of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from entrepot.pulling import AT_ONCE, BlobProgress, Failure, PullEvent, PullResult, Resolved, pull
from proxy.memory import MemorySource
from proxy.oci.descriptor import Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import BadRequest, ManifestUnknown, Unavailable
from proxy.oci.names import Reference, Repository, Tag
from tests.support.contents import OCI_MANIFEST, Image, blob, make_image, make_index

REPOSITORY = Repository("docker.io", "library/alpine")
TAG = Tag("3")


class Cache:
    """A cache over a memory source: it counts, and fails at the digests of `broken`."""

    def __init__(self, image: Image) -> None:
        self.memory = MemorySource("memory")
        image.publish(self, REPOSITORY.path, TAG)
        self.broken: dict[Digest, Exception] = {}
        self.ensured: list[Digest] = []
        self.busy = 0
        self.busiest = 0

    def add_blob(self, repo: str, data: bytes) -> Digest:
        return self.memory.add_blob(REPOSITORY, data).digest

    def add_manifest(self, repo: str, body: bytes, media_type: str, tag: str | None = None) -> Digest:
        return self.memory.add_manifest(REPOSITORY, body, media_type, tag).digest

    async def manifest(self, repository: Repository, reference: Reference) -> Manifest:
        if isinstance(reference, Digest) and reference in self.broken:
            raise self.broken[reference]
        return await self.memory.manifest(repository, reference)

    def forget_missing(self, repository: Repository, reference: Reference) -> None:
        """Nothing is remembered."""

    async def ensure_blob(self, repository: Repository, digest: Digest) -> object:
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        for _ in range(5):
            await asyncio.sleep(0)
        self.busy -= 1
        if digest in self.broken:
            raise self.broken[digest]
        self.ensured.append(digest)
        return (await self.memory.stat_blob(repository, digest)).size

    def running(self) -> Sequence[Fill]:
        return ()


class Fill:
    def __init__(self, digest: Digest, received: int) -> None:
        self.digest = digest
        self.received = received


AMD = make_image([blob(100), blob(200, seed=1)])
ARM = make_image([blob(100), blob(300, seed=2)], platform="linux/arm64")
INDEX = make_index({"linux/amd64": AMD, "linux/arm64": ARM, "unknown/unknown": make_image([blob(7, seed=3)])})


async def pulled(cache: Cache, *platforms: str) -> tuple[PullResult, list[PullEvent]]:
    events: list[PullEvent] = []
    return await pull(cache, REPOSITORY, TAG, platforms or None, events.append), events


def digests(image: Image) -> set[Digest]:
    return {Digest.of(data) for data in image.blobs}


async def test_all_platforms_bring_every_manifest_and_every_blob_once() -> None:
    cache = Cache(INDEX)
    result, events = await pulled(cache, "all")
    every = set().union(*(digests(child) for child in INDEX.children))
    assert set(cache.ensured) == every
    assert len(cache.ensured) == len(every)
    assert (result.manifests, result.blobs, result.failures) == (4, len(every), ())
    assert result.bytes == sum({Digest.of(d): len(d) for child in INDEX.children for d in child.blobs}.values())
    assert result.digest == INDEX.digest
    assert events[0] == Resolved("docker.io/library/alpine", INDEX.digest, INDEX.media_type)
    assert {event.digest for event in events if isinstance(event, BlobProgress) and event.done == event.size} == every


async def test_one_platform_brings_its_image_alone() -> None:
    cache = Cache(INDEX)
    result, _ = await pulled(cache, "linux/arm64")
    assert set(cache.ensured) == digests(ARM)
    assert result.manifests == 2


async def test_without_a_platform_the_hosts_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    cache = Cache(INDEX)
    await pulled(cache)
    assert set(cache.ensured) == digests(ARM)


async def test_an_image_that_is_no_index_is_taken_whatever_its_platform() -> None:
    cache = Cache(ARM)
    result, _ = await pulled(cache, "linux/s390x")
    assert set(cache.ensured) == digests(ARM)
    assert result.media_type == OCI_MANIFEST


async def test_a_platform_that_the_index_lacks_is_told_with_those_it_has() -> None:
    with pytest.raises(ManifestUnknown, match=r"no image for linux/s390x; it has linux/amd64, linux/arm64"):
        await pulled(Cache(INDEX), "linux/s390x")


async def test_one_platform_that_the_index_lacks_does_not_stop_the_others() -> None:
    cache = Cache(INDEX)
    result, _ = await pulled(cache, "linux/amd64", "linux/s390x")
    assert set(cache.ensured) == digests(AMD)
    assert [failure.what for failure in result.failures] == ["linux/s390x"]


async def test_a_malformed_platform_is_refused_before_anything_is_asked() -> None:
    cache = Cache(INDEX)
    with pytest.raises(BadRequest, match="malformed"):
        await pulled(cache, "linux")
    assert cache.ensured == []


@pytest.mark.parametrize("error", [Unavailable("the upstream is gone"), OSError(28, "No space left on device")])
async def test_a_blob_that_fails_is_named_and_the_others_are_stored(error: Exception) -> None:
    cache = Cache(INDEX)
    lost = Digest.of(blob(200, seed=1))
    cache.broken[lost] = error
    result, events = await pulled(cache, "linux/amd64")
    assert set(cache.ensured) == digests(AMD) - {lost}
    assert result.failures == (Failure(lost, str(error)),)
    assert Failure(lost, str(error)) in events
    assert result.blobs == 2


async def test_a_child_manifest_that_fails_is_named_and_the_others_are_stored() -> None:
    cache = Cache(INDEX)
    cache.broken[ARM.digest] = Unavailable("the upstream is gone")
    result, _ = await pulled(cache, "linux/amd64", "linux/arm64")
    assert set(cache.ensured) == digests(AMD)
    assert [failure.what for failure in result.failures] == [ARM.digest]


async def test_a_reference_that_is_nowhere_raises() -> None:
    with pytest.raises(ManifestUnknown):
        await pull(Cache(INDEX), REPOSITORY, Tag("4"), ["all"], lambda event: None)


async def test_only_a_few_blobs_are_fetched_at_once() -> None:
    cache = Cache(make_image([blob(10, seed=seed) for seed in range(30)]))
    await pulled(cache)
    assert cache.busiest == AT_ONCE


async def test_nested_and_repeated_indexes_are_walked_once_and_to_a_depth() -> None:
    nested = AMD
    for _ in range(20):
        nested = make_index({"linux/amd64": nested})
    result, _ = await pulled(Cache(nested), "all")
    assert "nested" in result.failures[0].error
    cache = Cache(make_index({"linux/amd64": AMD, "linux/amd64/v2": AMD}))
    await pulled(cache, "all")
    assert len(cache.ensured) == len(AMD.blobs)


async def test_a_foreign_layer_is_not_fetched() -> None:  # P40
    image = make_image([blob(10)], layer_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    cache = Cache(image)
    result, _ = await pulled(cache)
    assert cache.ensured == [Digest.of(image.blobs[0])]
    assert result.failures == ()


async def test_a_download_under_way_is_reported_and_never_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrepot.pulling.SAMPLE_SECONDS", 0)
    slow, cache = Digest.of(blob(200, seed=1)), Cache(AMD)
    seen: asyncio.Queue[PullEvent] = asyncio.Queue()

    async def ensure_blob(repository: Repository, digest: Digest) -> object:
        if digest == slow:
            while await seen.get() != BlobProgress(slow, 200, 199):
                pass
        return 0

    monkeypatch.setattr(cache, "ensure_blob", ensure_blob)
    monkeypatch.setattr(cache, "running", lambda: [Fill(slow, 200), Fill(Digest.of(b"another's"), 5)])
    async with asyncio.timeout(30):
        await pull(cache, REPOSITORY, TAG, None, seen.put_nowait)
