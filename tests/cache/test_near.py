"""A cache whose neighbours and bucket are played by hand: who is asked, what is believed, and who must not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metrics.events import Event, FillFinished
from proxy.cache.near import Alone, Kind, NearManifest, NearSource, NearStream, Solitary, TagSaid
from proxy.cache.reader import FileReader
from proxy.cache.readthrough import ReadThrough, open_cache
from proxy.memory import MemoryBlob, MemorySource
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    BlobUnknown,
    Denied,
    GatewayTimeout,
    ManifestUnknown,
    NotFound,
    RangeNotSatisfiable,
    RegistryError,
    Unavailable,
)
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.source import Source
from proxy.store.store import Store
from tests.cache.lab import ALPINE, HUB
from tests.support.contents import blob, make_image

MIB = 1 << 20
DATA = blob(3 * MIB)
DIGEST = Digest.of(DATA)
IMAGE = make_image([b"layer"])
DESCRIPTOR = Descriptor(IMAGE.media_type, IMAGE.digest, len(IMAGE.body))
BUSYBOX = Repository(HUB, "library/busybox")


class Stream:
    """What a Near gives; it breaks off before byte `ends`."""

    def __init__(self, near: Near, digest: Digest, data: bytes, start: int) -> None:
        self.digest, self.size, self.start, self.end = digest, len(data), start, len(data)
        self.anonymous, self.proven = near.public, near.proven
        self._near, self._data = near, data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        ends = self.end if self._near.ends is None else self._near.ends
        for at in range(self.start, min(ends, self.end), 1 << 16):
            yield self._data[at : min(at + (1 << 16), ends)]
            if at >= 2 * MIB and self._near.pause is not None:
                await self._near.pause.wait()
            await asyncio.sleep(0)
        if ends < self.end:
            self._near.ends = None
            raise Unavailable("the neighbour is gone")

    async def aclose(self) -> None:
        """Nothing is open."""


@dataclass
class Near:
    """Somebody near who has everything in `blobs` and `manifests`; `pause`: what he gives after 2 MiB waits for it."""

    name: str = "node"
    is_node: bool = True
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, NearManifest] = field(default_factory=dict)
    proven: bool = True
    public: bool = True
    ends: int | None = None
    asked: list[str] = field(default_factory=list)
    opening: asyncio.Event = field(default_factory=asyncio.Event)
    peer: ReadThrough | None = None
    pause: asyncio.Event | None = None
    withdraws: bool = False

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> NearStream:
        self.asked.append(f"{digest} {span or ''}".strip())
        self.opening.set()
        if self.peer is not None:
            given = await self.peer.node_blob(repository, digest, span, held=False)
            await given.stream.aclose()
        if digest not in self.blobs:
            raise BlobUnknown("not here")
        start = span.first or 0 if span else 0
        if start and self.withdraws:
            raise BadContent("it was wrong")
        if start >= len(self.blobs[digest]):
            raise RangeNotSatisfiable("too far", size=len(self.blobs[digest]))
        return Stream(self, digest, self.blobs[digest], start)

    async def manifest(self, repository: Repository, digest: Digest) -> NearManifest:
        self.asked.append(digest)
        if digest not in self.manifests:
            raise ManifestUnknown("not here")
        return self.manifests[digest]


class Flight(Solitary):
    def __init__(self, fleet: Fleet) -> None:
        self._left: list[Near | None] = list(fleet.near)
        self._fleet = fleet
        self.lost = False

    async def next(self) -> NearSource | None:
        self.following = bool(self._left) and self._fleet.leads
        self.lost = False
        if self._left and self._left[0] is None:
            del self._left[0]
            self.lost = self._fleet.loses
            return None
        return self._left[0] if self._left else None

    def failed(self, source: NearSource, error: RegistryError, received: int) -> None:
        self._fleet.failures.append(error)
        self._left.pop(0)

    def stored(self) -> None:
        self._fleet.stored += 1


class Question(Solitary):
    def __init__(self, fleet: Fleet, max_age: float) -> None:
        self.said = fleet.said if fleet.said is not None and fleet.said.age <= max_age else None
        self._fleet = fleet

    def heard(self, found: Descriptor | NotFound, seconds: float) -> None:
        self._fleet.heard.append(found)


class Fleet(Alone):
    """`near` are asked one after another, None: the upstream before the rest; `leads`: they lead, and may wait for
    somebody in turn. `loses`: whoever leads here has lost that as soon as he asks the upstream."""

    @property
    def alone(self) -> bool:
        return False

    def __init__(self, *near: Near | None, leads: bool = False, loses: bool = False) -> None:
        self.near = near
        self.leads = leads
        self.loses = loses
        self.noted: list[str] = []
        self.failures: list[RegistryError] = []
        self.stored = 0
        self.said: TagSaid | None = None
        self.heard: list[Descriptor | NotFound] = []
        self.told: NotFound | None = None
        self.whole: set[Digest] = set()

    @asynccontextmanager
    async def flight(self, digest: Digest, repository: Repository, *, for_node: bool = False) -> AsyncIterator[Flight]:
        yield Flight(self)

    @asynccontextmanager
    async def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AsyncIterator[Question]:
        yield Question(self, max_age)

    async def missing(self, *_: object) -> NotFound | None:
        return self.told

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        self.noted.append(said)

    async def has_image(self, repository: Repository, digest: Digest) -> bool:
        return digest in self.whole


class Unsized(MemoryBlob):
    size = end = None  # type: ignore[assignment]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        raise Unavailable("broken off")


class Upstream(MemorySource):
    """`refuses` what it is asked; `unsized`: the first answer breaks off there, and has no size."""

    refuses = False
    unsized = 0

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> MemoryBlob:
        if self.refuses:
            raise Denied("no longer")
        opened = await super().open_blob(repository, digest, span)
        if not self.unsized:
            return opened
        cut, self.unsized = self.unsized, 0
        return Unsized(digest, DATA[:cut], 0, cut, anonymous=True)

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        if self.refuses:
            raise Denied("no longer")
        return await super().resolve(repository, reference)


@dataclass
class Node:
    cache: ReadThrough
    store: Store
    upstream: Upstream
    events: list[Event]

    async def get(self, repository: Repository = ALPINE) -> bytes:
        reader = await self.cache.open_blob(repository, DIGEST)
        assert isinstance(reader, FileReader)
        try:
            return b"".join([chunk async for chunk in reader])
        finally:
            await reader.aclose()


@asynccontextmanager
async def node(
    root: Path, fleet: Fleet, *, offline: bool = False, reachable: bool = True, alternates: Sequence[Source] = ()
) -> AsyncIterator[Node]:
    upstream = Upstream("upstream", anonymous=True)
    upstream.add_blob(ALPINE, DATA)
    events: list[Event] = []
    store = await Store.open(root)
    try:
        async with open_cache(
            store,
            {HUB: [upstream, *alternates]},
            emit=events.append,
            fleet=fleet,
            offline=offline,
            reachable=lambda name: reachable,
        ) as cache:
            yield Node(cache, store, upstream, events)
    finally:
        await store.close()


async def test_a_neighbour_that_has_proved_the_repository_spares_the_upstream(tmp_path: Path) -> None:
    near = Near(blobs={DIGEST: DATA})
    async with node(tmp_path, fleet := Fleet(near)) as here:
        assert await here.get() == DATA
        await here.cache.idle()
        assert here.upstream.opened == 0
        assert fleet.stored == 1
        (finished,) = [event for event in here.events if isinstance(event, FillFinished)]
        assert (finished.outcome, finished.from_nodes, finished.from_bucket) == ("committed", len(DATA), 0)
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
        assert finished.from_nodes == 2 * MIB
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
    near = Near("bucket", False, blobs={DIGEST: DATA[: 2 * MIB]})
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
            assert watched.says().borrowed
        assert near.pause is not None
        near.pause.set()
        assert b"".join([chunk async for chunk in reader]) == DATA
        await reader.aclose()


async def test_two_nodes_that_each_follow_the_other_do_not_wait_for_each_other(tmp_path: Path) -> None:
    to_b, to_a = Near("b"), Near("a")
    fleet_a, fleet_b = Fleet(to_b, leads=True), Fleet(to_a, leads=True)
    async with node(tmp_path / "a", fleet_a) as a, node(tmp_path / "b", fleet_b) as b:
        to_b.peer, to_a.peer = b.cache, a.cache
        async with asyncio.timeout(2):
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
