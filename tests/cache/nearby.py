"""A cache whose neighbours, bucket and upstream are played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from metrics.events import Event
from proxy.cache.near import Alone, Asker, Kind, NearManifest, NearSource, NearStream, Solitary, TagAtHome, TagSaid
from proxy.cache.reader import FileReader
from proxy.cache.readthrough import ReadThrough, open_cache
from proxy.memory import MemoryBlob, MemorySource
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    NotFound,
    RangeNotSatisfiable,
    RegistryError,
    Unavailable,
)
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.source import Source
from proxy.store.records import TagRecord
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
    """Somebody near who has everything in `blobs` and `manifests`.

    What he gives after 2 MiB waits for `pause`, manifests for `slow`.
    """

    name: str = "node"
    kind: Literal["neighbour", "bucket", "region"] = "neighbour"
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, NearManifest] = field(default_factory=dict)
    proven: bool = True
    public: bool = True
    ends: int | None = None
    asked: list[str] = field(default_factory=list)
    opening: asyncio.Event = field(default_factory=asyncio.Event)
    peer: ReadThrough | None = None
    pause: asyncio.Event | None = None
    slow: asyncio.Event | None = None
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
        if self.slow is not None:
            await self.slow.wait()
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
    async def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AsyncIterator[Flight]:
        yield Flight(self)

    @asynccontextmanager
    async def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AsyncIterator[Question]:
        yield Question(self, max_age)

    async def missing(self, *_: object) -> NotFound | None:
        return self.told

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        self.noted.append(said)

    async def has_image(self, repository: Repository, digest: Digest, asker: Asker = Asker.CLIENT) -> bool:
        return digest in self.whole


class Regions:
    """`has`: regions and what they have; `fetches`: those that fetch it for others. `home` says what tags are.

    left: who is left alone.
    """

    left = ""

    def __init__(self, *has: Near, fetches: Sequence[Near] = (), home: TagAtHome | None = None) -> None:
        self.has, self.fetches, self.home = has, fetches, home
        self.questions: list[Tag] = []

    def sources(self, repository: Repository, *, start: bool) -> Sequence[NearSource]:
        return list(self.fetches if start else self.has)

    def silent(self, repository: Repository) -> str:
        return self.left

    async def tag(self, repository: Repository, tag: Tag, known: TagRecord | None, max_age: float) -> TagAtHome | None:
        self.questions.append(tag)
        return self.home


class Unsized(MemoryBlob):
    size = end = None  # type: ignore[assignment]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data
        raise Unavailable("broken off")


class Upstream(MemorySource):
    """`refuses` what it is asked, or `fails`; `unsized`: the first answer breaks off there, and has no size."""

    refuses = fails = False
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
        if self.fails:
            raise Unavailable("gone")
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
    root: Path,
    fleet: Fleet | None,
    *,
    offline: bool = False,
    reachable: bool = True,
    alternates: Sequence[Source] = (),
    regions: Regions | None = None,
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
            regions=regions,
            offline=offline,
            reachable=lambda name: reachable,
        ) as cache:
            yield Node(cache, store, upstream, events)
    finally:
        await store.close()
