"""A cache with other regions: who is asked when, who must not wait, and whose word on a tag counts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from metrics.events import FillFinished
from proxy.cache import readthrough, tags
from proxy.cache.near import Asker, NearManifest, TagAtHome
from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BlobUnknown,
    GatewayTimeout,
    ManifestUnknown,
    NotFound,
    RegistryError,
    Unavailable,
)
from proxy.oci.names import Tag
from proxy.oci.ranges import ByteRange
from proxy.store.exchanged import TagChange
from proxy.store.records import Proof
from tests.cache.lab import ALPINE
from tests.cache.nearby import BUSYBOX, DATA, DESCRIPTOR, DIGEST, IMAGE, MIB, Near, Node, Regions, node
from tests.support.contents import Image, make_image

OTHER = Digest.of(b"other")
NEWER = make_image([b"newer"])
LATEST = Tag("latest")


def region(*, has: bool = True, ends: int | None = None) -> Near:
    return Near("eu", "region", blobs={DIGEST: DATA} if has else {}, ends=ends)


async def test_a_region_that_has_it_spares_the_upstream_and_is_no_upload_spared(tmp_path: Path) -> None:
    async with node(tmp_path, None, regions=Regions(region())) as here:
        assert await here.get() == DATA
        await here.cache.idle()
        assert here.upstream.opened == 0
        (finished,) = [event for event in here.events if isinstance(event, FillFinished)]
        assert finished.from_near == {"region": len(DATA)}


async def test_a_region_may_fetch_for_us_only_after_the_upstream_has_failed(tmp_path: Path) -> None:
    fetches = region()
    async with node(tmp_path, None, regions=Regions(region(has=False), fetches=[fetches])) as here:
        assert await here.get() == DATA
        assert here.upstream.opened == 1
        assert fetches.asked == []
    async with node(tmp_path / "offline", None, offline=True, regions=Regions(fetches=[fetches])) as here:
        assert await here.get() == DATA
        assert fetches.asked == [DIGEST]


async def test_a_region_that_breaks_off_is_taken_up_by_range_where_it_was(tmp_path: Path) -> None:  # P28
    far = region(ends=2 * MIB)
    async with node(tmp_path, None, regions=Regions(far)) as here:
        assert await here.get() == DATA
        assert len(far.asked) == 2
        assert here.upstream.opened == 0


async def test_what_was_interrupted_is_not_taken_up_from_a_region_that_may_not_be_asked_now(tmp_path: Path) -> None:
    far = region()
    far.pause = asyncio.Event()
    async with node(tmp_path, None, regions=Regions(far)) as here:
        reading = await here.cache.open_blob(ALPINE, DIGEST)
        await anext(aiter(reading))
        await reading.aclose()
    far.pause.set()
    async with node(tmp_path, None, regions=Regions(far)) as here:
        here.upstream.refuses = True
        (intent,) = await here.store.catalog.intents()
        assert intent.digest == DIGEST
        with pytest.raises(RegistryError):
            await here.cache._blobs.take_up(ALPINE, DIGEST, Asker.REGION)
        assert len(far.asked) == 1
        await here.cache._blobs.take_up(ALPINE, DIGEST, Asker.CLIENT)
        assert len(far.asked) == 2


async def test_what_comes_from_a_region_keeps_no_region_waiting(tmp_path: Path) -> None:
    """Two regions that miss the same digest must not wait for each other."""
    far = region()
    far.pause = asyncio.Event()
    async with node(tmp_path, None, regions=Regions(far)) as here:
        reading = asyncio.create_task(here.get())
        await far.opening.wait()
        with pytest.raises(GatewayTimeout):
            await here.cache.region_blob(ALPINE, DIGEST, None, held=False)
        joined = await here.cache.node_blob(ALPINE, DIGEST, None, held=False)  # a node of this fleet may wait for it
        await joined.stream.aclose()
        far.pause.set()
        assert await reading == DATA


async def test_a_region_is_given_what_the_repository_contains_and_nothing_else(tmp_path: Path) -> None:  # P43
    async with node(tmp_path, None) as here:
        with pytest.raises(BlobUnknown):
            await here.cache.region_blob(ALPINE, DIGEST, None, held=True)
        given = await here.cache.region_blob(ALPINE, DIGEST, ByteRange(MIB, None), held=False)
        assert b"".join([chunk async for chunk in given.stream]) == DATA[MIB:]
        await given.stream.aclose()
        await here.cache.idle()
        for held in (True, False):
            with pytest.raises(BlobUnknown):
                await here.cache.region_blob(BUSYBOX, DIGEST, None, held=held)


async def test_a_region_is_given_a_manifest_and_only_on_request_one_that_is_not_here(tmp_path: Path) -> None:
    async with node(tmp_path, None) as here:
        here.upstream.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type)
        with pytest.raises(ManifestUnknown):
            await here.cache.region_manifest(ALPINE, IMAGE.digest, held=True)
        assert (await here.cache.region_manifest(ALPINE, IMAGE.digest, held=False)).body == IMAGE.body
        assert (await here.cache.region_manifest(ALPINE, IMAGE.digest, held=True)).proven
        with pytest.raises(NotFound):
            await here.cache.region_manifest(BUSYBOX, IMAGE.digest, held=False)


@pytest.mark.parametrize("reachable", [True, False])
async def test_a_region_says_of_a_manifest_whether_its_blobs_can_be_had_there(tmp_path: Path, reachable: bool) -> None:
    """Who asks while a client of ours still pulls the image need not wait until all of it is stored here."""  # P27
    async with node(tmp_path, None, reachable=reachable) as here:
        here.upstream.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type)
        assert (await here.cache.region_manifest(ALPINE, IMAGE.digest, held=False)).servable == reachable
        assert (await here.cache.region_manifest(ALPINE, IMAGE.digest, held=True)).servable == reachable


async def test_a_manifest_that_the_upstream_does_not_give_comes_from_a_region_that_can_fetch_it(tmp_path: Path) -> None:
    far = Near("eu", "region", manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, True, True)})
    async with node(tmp_path, None, regions=Regions(fetches=[far])) as here:
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).body == IMAGE.body


async def test_a_manifest_whose_blobs_a_region_has_is_served_without_the_upstream(tmp_path: Path) -> None:  # P27
    far = Near("eu", "region", manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, True, True)})
    regions = Regions(far)
    async with node(tmp_path, None, offline=True, reachable=False, regions=regions) as here:
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).body == IMAGE.body
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).body == IMAGE.body
        regions.has = ()
        with pytest.raises(RegistryError):
            await here.cache.manifest(ALPINE, IMAGE.digest)


async def test_a_manifest_to_be_kept_comes_though_its_blobs_are_not_to_be_had_and_is_not_served_so(
    tmp_path: Path,
) -> None:  # P27
    far = Near("eu", "region", manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, True, False)})
    async with node(tmp_path, None, offline=True, reachable=False, regions=Regions(far)) as here:
        with pytest.raises(RegistryError):
            await here.cache.manifest(ALPINE, IMAGE.digest)
        assert (await here.cache.ensure_manifest(ALPINE, IMAGE.digest)).body == IMAGE.body
        with pytest.raises(RegistryError):
            await here.cache.manifest(ALPINE, IMAGE.digest)


async def test_a_manifest_to_be_kept_takes_longer_than_a_client_would_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readthrough, "ANSWER_SECONDS", 0.01)
    far = Near("eu", "region", manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, True, True)})
    far.slow = asyncio.Event()
    async with node(tmp_path, None, offline=True, regions=Regions(far)) as here:
        keeping = asyncio.create_task(here.cache.ensure_manifest(ALPINE, IMAGE.digest))
        with pytest.raises(Unavailable, match="ask again"):
            await here.cache.manifest(ALPINE, IMAGE.digest)
        far.slow.set()
        assert (await keeping).body == IMAGE.body


async def test_what_the_upstream_denies_and_a_region_can_fetch_is_given(tmp_path: Path) -> None:
    async with node(tmp_path, None, regions=Regions(fetches=[region()])) as here:
        here.upstream.refuses = True
        assert await here.get() == DATA


async def test_what_is_known_and_denied_upstream_is_not_missing_while_a_region_is_not_heard(tmp_path: Path) -> None:
    """Neither said nor remembered: as soon as the region is heard, it is the content, or that nobody has it."""
    given = NearManifest(DESCRIPTOR, IMAGE.body, True, True, True)
    for number, refuses in enumerate((False, True)):
        regions = Regions()
        async with node(tmp_path / str(number), None, regions=regions) as here:
            here.upstream.refuses = refuses
            await here.store.catalog.prove(ALPINE, IMAGE.digest, Proof.SYNCED)
            await here.store.catalog.prove(ALPINE, OTHER, Proof.SYNCED)
            regions.left = "eu"
            with pytest.raises(Unavailable, match="region eu"):
                await here.cache.manifest(ALPINE, IMAGE.digest)
            with pytest.raises(Unavailable, match="region eu"):
                await here.cache.open_blob(ALPINE, OTHER)
            with pytest.raises(ManifestUnknown):
                await here.cache.manifest(BUSYBOX, IMAGE.digest)  # of which nobody ever said so
            regions.left = ""
            regions.has = (Near("eu", "region", {OTHER: b"other"}, {IMAGE.digest: given}),)
            assert (await here.cache.manifest(ALPINE, IMAGE.digest)).body == IMAGE.body
            assert (await here.cache.open_blob(ALPINE, OTHER)).digest == OTHER
            await here.cache.idle()


async def test_a_tag_that_has_moved_is_served_though_a_region_is_not_heard_about_what_it_was(tmp_path: Path) -> None:
    regions = Regions()
    regions.left = "eu"
    async with node(tmp_path, None, regions=regions) as here:
        await here.store.catalog.prove(ALPINE, IMAGE.digest, Proof.SYNCED)
        await here.store.catalog.put_tag(ALPINE, LATEST, DESCRIPTOR, time.time())
        await tagged(here, NEWER)
        assert (await here.cache.manifest(ALPINE, LATEST)).body == NEWER.body


async def test_what_is_known_and_that_every_region_and_the_upstream_deny_is_missing(tmp_path: Path) -> None:
    async with node(tmp_path, None, regions=Regions(region(has=False))) as here:
        for digest in (IMAGE.digest, OTHER):
            await here.store.catalog.prove(ALPINE, digest, Proof.SYNCED)
        with pytest.raises(ManifestUnknown):
            await here.cache.manifest(ALPINE, IMAGE.digest)
        with pytest.raises(BlobUnknown):
            await here.cache.open_blob(ALPINE, OTHER)


def change(image: Image, version: int, origin: str = "eu") -> TagChange:
    now = time.time()
    return TagChange(0, 0, "latest", version, image.digest, image.media_type, len(image.body), origin, now, now)


async def tagged(here: Node, image: Image) -> None:
    here.upstream.add_manifest(ALPINE, image.body, image.media_type, "latest")


async def test_a_tag_is_what_its_home_says_and_the_upstream_is_not_asked(tmp_path: Path) -> None:
    regions = Regions()
    async with node(tmp_path, None, regions=regions) as here:
        await tagged(here, IMAGE)
        await here.cache.refresh(ALPINE, LATEST)
        version = int(time.time() * 1000 + 1000) << 16
        here.upstream.add_manifest(ALPINE, NEWER.body, NEWER.media_type)
        regions.home = TagAtHome(change(NEWER, version), 1.0, "eu")
        moved = await here.cache.refresh(ALPINE, LATEST)
        assert (moved.outcome, moved.now) == ("moved", NEWER.digest)
        record = await here.store.catalog.tag(ALPINE, LATEST)
        assert record is not None
        assert (record.version, record.origin) == (version, "eu")  # the home's own record: nothing is stamped


async def test_a_refresh_is_not_answered_with_what_the_home_heard_long_ago(tmp_path: Path) -> None:
    regions = Regions()
    async with node(tmp_path, None, regions=regions) as here:
        await tagged(here, IMAGE)
        await here.cache.refresh(ALPINE, LATEST)
        await tagged(here, NEWER)
        record = await here.store.catalog.tag(ALPINE, LATEST)
        assert record is not None
        regions.home = TagAtHome(change(IMAGE, record.version), 300.0, "eu")
        here.upstream.fails = True
        assert (await here.cache.refresh(ALPINE, LATEST)).now == IMAGE.digest  # nobody here knows better
        here.upstream.fails = False
        assert (await here.cache.refresh(ALPINE, LATEST)).now == NEWER.digest


async def test_a_home_asks_its_upstream_again_for_a_region_that_wants_to_know_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "AGAIN_SECONDS", 0.0)
    async with node(tmp_path, None, regions=Regions()) as here:
        await tagged(here, IMAGE)
        await here.cache.refresh(ALPINE, LATEST)
        await tagged(here, NEWER)
        assert (await here.cache.region_tag(ALPINE, LATEST, 60.0))[0].digest == IMAGE.digest
        assert (await here.cache.region_tag(ALPINE, LATEST, 0.0))[0].digest == NEWER.digest


async def test_an_older_digest_that_a_lagging_host_shows_does_not_come_back(tmp_path: Path) -> None:
    lagging = MemorySource("lagging")
    lagging.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type, "latest")
    async with node(tmp_path, None, alternates=[lagging], regions=Regions()) as here:
        await tagged(here, IMAGE)
        await here.cache.refresh(ALPINE, LATEST)
        await tagged(here, NEWER)
        assert (await here.cache.refresh(ALPINE, LATEST)).now == NEWER.digest
        here.upstream.fails = True
        held = await here.cache.refresh(ALPINE, LATEST)
        assert (held.outcome, held.now, held.pending) == ("held", NEWER.digest, IMAGE.digest)
        with pytest.raises(Unavailable):
            await here.cache.region_tag(ALPINE, LATEST)  # nor does another region hear of it from here


async def test_a_digest_that_the_main_host_brings_back_is_believed_at_home(tmp_path: Path) -> None:
    async with node(tmp_path, None, regions=Regions()) as here:
        for image in (IMAGE, NEWER, IMAGE):
            await tagged(here, image)
            assert (await here.cache.refresh(ALPINE, LATEST)).now == image.digest
        record, age = await here.cache.region_tag(ALPINE, LATEST)
        assert (record.digest, record.generation) == (IMAGE.digest, 1)
        assert 0 <= age < 60


async def test_a_region_that_is_asked_for_a_tag_asks_its_own_upstream_alone(tmp_path: Path) -> None:
    regions = Regions()
    async with node(tmp_path, None, regions=regions) as here:
        await tagged(here, IMAGE)
        with pytest.raises(Unavailable):
            await here.cache.region_tag(ALPINE, LATEST)
        await here.cache.refresh(ALPINE, LATEST)
        regions.questions.clear()
        record, _ = await here.cache.region_tag(ALPINE, LATEST)
        assert record.digest == IMAGE.digest
        assert regions.questions == []
