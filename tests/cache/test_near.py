"""A cache with neighbours and a bucket: who is asked, what is believed, and who must not wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metrics.events import FillFinished
from proxy.cache.near import NearManifest, TagSaid
from proxy.memory import MemorySource
from proxy.oci.descriptor import Descriptor
from proxy.oci.errors import BadContent, BlobUnknown, GatewayTimeout, ManifestUnknown, RegistryError, Unavailable
from proxy.oci.names import Tag
from proxy.oci.ranges import ByteRange
from proxy.store.claims import Lender
from tests.cache.lab import ALPINE
from tests.cache.nearby import BUSYBOX, DATA, DESCRIPTOR, DIGEST, IMAGE, MIB, Fleet, Near, node
from tests.support.contents import make_image


async def test_a_neighbour_that_has_proved_the_repository_spares_the_upstream(tmp_path: Path) -> None:
    near = Near(blobs={DIGEST: DATA})
    async with node(tmp_path, fleet := Fleet(near)) as here:
        assert await here.get() == DATA
        await here.cache.idle()
        assert here.upstream.opened == 0
        assert fleet.stored == 1
        (finished,) = [event for event in here.events if isinstance(event, FillFinished)]
        assert (finished.outcome, finished.from_near) == ("committed", {"neighbour": len(DATA)})
        record = await here.store.catalog.blob(DIGEST)
        assert record is not None
        assert record.public


async def test_knowing_a_digest_that_a_neighbour_has_is_no_permission(tmp_path: Path) -> None:  # P43
    near = Near(blobs={DIGEST: DATA}, proven=False)
    async with node(tmp_path, Fleet(near)) as here:
        with pytest.raises(BlobUnknown):
            await here.get(BUSYBOX)
        assert await here.get(ALPINE) == DATA
        assert here.upstream.opened == 0


async def test_nobody_can_prove_anything_while_the_upstream_is_gone(tmp_path: Path) -> None:  # P43
    near = Near(blobs={DIGEST: DATA}, proven=False)
    async with node(tmp_path, Fleet(near), offline=True) as here:
        with pytest.raises(Unavailable, match="nobody near"):
            await here.get()
        near.proven = True
        await here.cache.idle()
        assert await here.get() == DATA


async def test_a_neighbour_that_dies_is_taken_up_by_range_elsewhere(tmp_path: Path) -> None:  # P28
    near = Near(blobs={DIGEST: DATA}, ends=2 * MIB)
    async with node(tmp_path, fleet := Fleet(near)) as here:
        assert await here.get() == DATA
        await here.cache.idle()
        assert [type(error) for error in fleet.failures] == [Unavailable]
        assert here.upstream.opened == 1
        (finished,) = [event for event in here.events if isinstance(event, FillFinished)]
        assert finished.from_near == {"neighbour": 2 * MIB}
        assert finished.received == len(DATA)


async def test_wrong_bytes_of_a_neighbour_are_never_served_whole_and_not_asked_for_again(tmp_path: Path) -> None:  # P38
    near = Near(blobs={DIGEST: DATA[:-1] + b"x"})
    async with node(tmp_path, Fleet(near)) as here:
        with pytest.raises(RegistryError):
            await here.get()
        await here.cache.idle()
        assert here.upstream.opened == 1
        assert await here.get() == DATA


async def test_what_a_leader_says_was_wrong_is_fetched_from_the_start_and_stitched_to_nothing(
    tmp_path: Path,
) -> None:  # P28, P38
    near = Near(blobs={DIGEST: b"x" * len(DATA)}, ends=2 * MIB, withdraws=True)
    async with node(tmp_path, Fleet(near, near)) as here:
        with pytest.raises(BadContent):
            await here.get()
        with pytest.raises(Unavailable, match="from the start"):
            await here.cache.open_blob(ALPINE, DIGEST, ByteRange(2 * MIB, None))
        await here.cache.idle()
        assert here.upstream.opened == 1
        assert await here.get() == DATA


async def test_a_bucket_with_an_object_of_another_size_is_left_alone(tmp_path: Path) -> None:
    near = Near("bucket", "bucket", blobs={DIGEST: DATA[: 2 * MIB]})
    async with node(tmp_path, Fleet(near)) as here:
        with pytest.raises(RegistryError):
            await here.get()
        await here.cache.idle()
        assert await here.get() == DATA


async def test_an_upstream_is_not_blamed_for_an_end_that_a_neighbour_made_up(tmp_path: Path) -> None:
    near = Near(blobs={DIGEST: DATA[: 2 * MIB]})
    async with node(tmp_path, Fleet(None, near)) as here:
        here.upstream.unsized = 2 * MIB
        with pytest.raises(RegistryError):
            await here.get()
        await here.cache.idle()
        record = await here.store.catalog.blob(DIGEST)
        assert record is not None
        assert record.present  # by the same fill, from the upstream


async def test_a_node_that_loses_the_lead_can_still_ask_the_upstream_when_the_leader_is_of_no_use(
    tmp_path: Path,
) -> None:
    async with node(tmp_path, fleet := Fleet(None, Near(), loses=True)) as here:
        assert await here.get() == DATA
        assert [type(error) for error in fleet.failures] == [BlobUnknown]


async def test_a_refusal_of_the_main_source_is_no_404_for_the_fleet_whatever_an_alternate_says(tmp_path: Path) -> None:
    alternate = MemorySource("alternate")
    async with node(tmp_path, fleet := Fleet(), alternates=[alternate]) as here:
        here.upstream.refuses = True
        with pytest.raises(BlobUnknown):
            await here.get()
        assert fleet.noted == []
        await here.cache.idle()
        here.upstream.refuses = False
        assert await here.get() == DATA


async def test_the_other_workers_are_told_while_another_node_leads(tmp_path: Path) -> None:
    near = Near(blobs={DIGEST: DATA}, pause=asyncio.Event())
    async with node(tmp_path, Fleet(near, leads=True)) as here:
        reader = await here.cache.open_blob(ALPINE, DIGEST)
        with here.store.watching(DIGEST) as watched:
            assert watched is not None
            assert watched.says().lender is Lender.NODE
        assert near.pause is not None
        near.pause.set()
        assert b"".join([chunk async for chunk in reader]) == DATA
        await reader.aclose()


async def test_two_nodes_that_each_follow_the_other_do_not_wait_for_each_other(tmp_path: Path) -> None:
    to_b, to_a = Near("b"), Near("a")
    fleet_a, fleet_b = Fleet(to_b, leads=True), Fleet(to_a, leads=True)
    async with node(tmp_path / "a", fleet_a) as a, node(tmp_path / "b", fleet_b) as b:
        to_b.peer, to_a.peer = b.cache, a.cache
        async with asyncio.timeout(8):
            assert [*await asyncio.gather(a.get(), b.get())] == [DATA, DATA]
        assert {type(error) for error in (*fleet_a.failures, *fleet_b.failures)} >= {GatewayTimeout}
        assert a.upstream.opened + b.upstream.opened >= 1


async def test_another_node_joins_a_fill_from_the_upstream_and_hears_what_is_proven(tmp_path: Path) -> None:
    async with node(tmp_path, Fleet()) as here:
        given = await here.cache.node_blob(ALPINE, DIGEST, ByteRange(MIB, None), held=False)
        assert b"".join([chunk async for chunk in given.stream]) == DATA[MIB:]
        assert given.proven
        await given.stream.aclose()
        await here.cache.idle()
        other = await here.cache.node_blob(BUSYBOX, DIGEST, None, held=True)
        assert not other.proven
        await other.stream.aclose()


async def test_another_node_hears_that_what_it_was_given_is_wrong(tmp_path: Path) -> None:  # P28
    async with node(tmp_path, Fleet()) as here:
        here.store.suspect(DIGEST, 60)
        with pytest.raises(BadContent, match="from the start"):
            await here.cache.node_blob(ALPINE, DIGEST, ByteRange(MIB, None), held=False)


async def test_what_is_only_held_starts_nothing(tmp_path: Path) -> None:
    async with node(tmp_path, Fleet()) as here:
        with pytest.raises(BlobUnknown):
            await here.cache.node_blob(ALPINE, DIGEST, None, held=True)
        assert here.upstream.opened == 0


async def test_a_manifest_and_where_its_tag_points_come_from_near(tmp_path: Path) -> None:
    parsed = NearManifest(DESCRIPTOR, IMAGE.body, True, proven=True, servable=True)
    near = Near(manifests={IMAGE.digest: parsed})
    async with node(tmp_path, fleet := Fleet(near), reachable=False) as here:
        fleet.said = TagSaid(DESCRIPTOR, "", 3.0)
        fleet.whole.add(IMAGE.digest)
        served = await here.cache.manifest(ALPINE, Tag("1"))
        assert served.body == IMAGE.body
        record = await here.store.catalog.tag(ALPINE, Tag("1"))
        assert record is not None
        assert fleet.heard == []
        given = await here.cache.node_manifest(ALPINE, IMAGE.digest, held=True)
        assert given.proven


async def test_what_the_fleet_heard_of_a_tag_before_this_node_was_refused_it_does_not_bring_it_back(
    tmp_path: Path,
) -> None:  # P44
    tag = Tag("1")
    async with node(tmp_path, fleet := Fleet()) as here:
        here.upstream.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type, tag)
        await here.cache.manifest(ALPINE, tag)
        here.upstream.refuses = True
        with pytest.raises(ManifestUnknown):
            await here.cache.refresh(ALPINE, tag)
        fleet.said = TagSaid(DESCRIPTOR, "", 60.0)
        with pytest.raises(ManifestUnknown):
            await here.cache.manifest(ALPINE, tag)


async def test_a_tag_that_moved_from_what_the_fleet_heard_and_is_no_more_is_asked_for(tmp_path: Path) -> None:
    tag, newer = Tag("1"), make_image([b"newer"])
    async with node(tmp_path, fleet := Fleet()) as here:
        here.upstream.add_manifest(ALPINE, newer.body, newer.media_type, tag)
        fleet.said = TagSaid(DESCRIPTOR, "", 60.0)
        assert (await here.cache.manifest(ALPINE, tag)).descriptor.digest == newer.digest
        assert fleet.heard == [Descriptor(newer.media_type, newer.digest, len(newer.body))]


async def test_a_manifest_that_was_missing_before_its_tag_came_is_asked_for(tmp_path: Path) -> None:
    async with node(tmp_path, fleet := Fleet()) as here:
        here.upstream.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type, "1")
        fleet.told = ManifestUnknown("said elsewhere, before it was pushed")
        assert (await here.cache.manifest(ALPINE, Tag("1"))).body == IMAGE.body


async def test_what_the_upstream_says_of_a_tag_is_told_to_the_fleet(tmp_path: Path) -> None:
    async with node(tmp_path, fleet := Fleet()) as here:
        with pytest.raises(ManifestUnknown):
            await here.cache.manifest(ALPINE, Tag("1"))
        here.upstream.add_manifest(ALPINE, IMAGE.body, IMAGE.media_type, "2")
        await here.cache.manifest(ALPINE, Tag("2"))
        assert [type(told) for told in fleet.heard] == [ManifestUnknown, Descriptor]
        said = await here.cache.node_tag(ALPINE, Tag("2"))
        assert said.found == DESCRIPTOR
        with pytest.raises(GatewayTimeout):
            await here.cache.node_tag(ALPINE, Tag("3"))


async def test_a_manifest_whose_blobs_nobody_near_has_is_not_given_while_the_upstream_is_gone(
    tmp_path: Path,
) -> None:  # P27
    near = Near(manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, proven=True, servable=False)})
    async with node(tmp_path, fleet := Fleet(near), offline=True) as here:
        with pytest.raises(Unavailable):
            await here.cache.manifest(ALPINE, IMAGE.digest)
        fleet.whole.add(IMAGE.digest)
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).body == IMAGE.body
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).outcome == "hit"


async def test_a_404_that_was_heard_before_is_not_believed_while_the_blob_comes(tmp_path: Path) -> None:
    near = Near(blobs={DIGEST: DATA}, pause=asyncio.Event())
    async with node(tmp_path, fleet := Fleet(near)) as here:
        first = await here.cache.open_blob(ALPINE, DIGEST)
        fleet.told = BlobUnknown("said elsewhere, before it was pushed")
        second = await here.cache.open_blob(ALPINE, DIGEST)
        assert near.pause is not None
        near.pause.set()
        for reader in (first, second):
            assert b"".join([chunk async for chunk in reader]) == DATA
            await reader.aclose()


async def test_a_404_that_another_node_heard_is_believed(tmp_path: Path) -> None:
    async with node(tmp_path, fleet := Fleet()) as here:
        fleet.told = BlobUnknown("said elsewhere")
        with pytest.raises(BlobUnknown, match="said elsewhere"):
            await here.get()
        fleet.told = None
        assert await here.get() == DATA


async def test_a_manifest_that_the_leader_has_just_fetched_needs_no_question_about_its_blobs(tmp_path: Path) -> None:
    near = Near(manifests={IMAGE.digest: NearManifest(DESCRIPTOR, IMAGE.body, True, proven=True, servable=False)})
    async with node(tmp_path, Fleet(near, leads=True), reachable=False) as here:
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).outcome == "miss"
        assert (await here.cache.manifest(ALPINE, IMAGE.digest)).outcome == "hit"  # the upstream was heard elsewhere
