"""What the cache asks of those who are near, before any upstream: the nodes of its fleet, and the bucket they share.

Protocols and plain values, no I/O. `proxy.fleet` and `proxy.bucket` give the real ones. Redis may be slow or gone:
nothing here raises because of it, and nothing waits for it longer than a moment.

A near source gives content by its digest to whoever runs this node, and proves nothing about repositories: what it
knows of that it says (`proven`, `anonymous`), and the cache judges (P43).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.oci.descriptor import Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import NotFound, RegistryError
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream
from proxy.store.exchanged import TagChange
from proxy.store.records import TagRecord

Kind = Literal["manifest", "blob"]


class Asker(enum.Enum):
    """For whom something is fetched. A node waits for no node; a region for no node and no region: who waits in a
    circle waits for ever. Whoever has it stored may be asked for a region, and for a client anybody."""

    CLIENT = "client"
    NODE = "node"
    REGION = "region"


class NearStream(BlobStream, Protocol):
    """An open blob; `anonymous`: it was once fetched anonymously."""

    @property
    def proven(self) -> bool:
        """Whoever gives it knows that the repository that was asked for contains it."""
        ...


@dataclass(frozen=True, slots=True)
class NearManifest(Manifest):
    """A manifest; `anonymous`: it was once fetched anonymously. `proven` as of a NearStream.

    servable: whoever gives it has its blobs too, or is a region that may fetch them.
    """

    proven: bool = False
    servable: bool = False


class NearSource(Protocol):
    """A node, or a bucket."""

    @property
    def name(self) -> str:
        """A short stable name for logs, metrics and blame."""
        ...

    @property
    def kind(self) -> Literal["neighbour", "bucket", "region"]:
        """Another node of this fleet, the bucket, or another region."""
        ...

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> NearStream:
        """Raises BlobUnknown, RangeNotSatisfiable, Transient (GatewayTimeout: it would have to ask a node itself)."""
        ...

    async def manifest(self, repository: Repository, digest: Digest) -> NearManifest:
        """Return the verified manifest. Raises ManifestUnknown, Transient."""
        ...


class Shelf(NearSource, Protocol):
    """A bucket. No manifest is in it without the blobs that were complete with it."""

    async def has(self, digest: Digest) -> bool:
        """Tell whether it is there. Raises Transient."""
        ...


@dataclass(frozen=True, slots=True)
class TagSaid:
    """What a node was told about a tag `age` seconds ago: what it is, or, where that is None, that there is none."""

    found: Descriptor | None
    message: str
    age: float


class Flight(Protocol):
    """The place of one download in the fleet, while its context lasts: who leads it, and who has it already."""

    @property
    def following(self) -> bool:
        """Who `next` gave last leads, and may wait for others in turn: whoever waits for us must not be sent there."""
        ...

    @property
    def shared(self) -> bool:
        """Who `next` gave last is of this fleet, or its bucket: what it gives need not be uploaded."""
        ...

    @property
    def lost(self) -> bool:
        """We led, and another node does now: `next` says whom to follow."""
        ...

    @property
    def more(self) -> bool:
        """`last_resort` would have somebody asked."""
        ...

    @property
    def unheard(self) -> str:
        """The name of a region that may have it and did not say, "" where there is none: who knows whether it is?"""
        ...

    async def next(self) -> NearSource | None:
        """Return who is to be asked now: the node that leads, else (as we lead) who has it; None: nobody is left.

        Raises GatewayTimeout where this download may wait for no node, and one leads.
        """
        ...

    def last_resort(self) -> bool:
        """Have `next` give those who are asked when nobody else is left; False where there are none, or they were."""
        ...

    def failed(self, source: NearSource, error: RegistryError, received: int) -> None:
        """Note that `source` failed after `received` bytes; `next` then looks after what became of it."""
        ...

    def stored(self) -> None:
        """Tell the fleet, as the flight ends, that this node has it."""
        ...


class TagFlight(Protocol):
    """The place of one question about a tag in the fleet."""

    @property
    def said(self) -> TagSaid | None:
        """What another node heard a moment ago, so that the upstream need not be asked."""
        ...

    def heard(self, found: Descriptor | NotFound, seconds: float) -> None:
        """Tell the fleet, as the flight ends, what the upstream said; that is good for so many seconds."""
        ...


class Fleet(Protocol):
    """The fleet as the cache sees it. With no Redis and no bucket: `Alone`."""

    @property
    def alone(self) -> bool:
        """Nobody is ever near: without an upstream nothing can be filled."""
        ...

    def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AbstractAsyncContextManager[Flight]:
        """Enter the download of a digest; one at a time in this node. `asker`: who waits for it (see `next`)."""
        ...

    async def keepers(self, repository: Repository, digest: Digest) -> Sequence[NearSource]:
        """Return who of this fleet has it stored, its bucket last: none of them waits for anybody."""
        ...

    def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AbstractAsyncContextManager[TagFlight]:
        """Enter the question where a tag points. Returns when another node's question has ended, or it is ours to ask.

        What others were told more than `max_age` seconds ago is not given.
        """
        ...

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> NotFound | None:
        """Return the 404 that another node heard of it lately."""
        ...

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        """Tell the fleet of a 404, for so many seconds. Never of a 401 or 403."""
        ...

    async def has_image(self, repository: Repository, digest: Digest, asker: Asker = Asker.CLIENT) -> bool:
        """Tell whether somebody near has the manifest and its blobs: it may be served though no upstream answers."""
        ...


@dataclass(frozen=True, slots=True)
class TagAtHome:
    """What the region that watches a tag says it is, `age` seconds after it asked the upstream."""

    record: TagChange
    age: float
    region: str


class Regions(Protocol):
    """The other regions as the cache sees them. None of them may ask another in turn (Via)."""

    def sources(self, repository: Repository, *, start: bool) -> Sequence[NearSource]:
        """Return the regions that may have something of the repository, the nearest first.

        start: they may fetch it from their upstream for us; else only what they have is asked for.
        """
        ...

    def silent(self, repository: Repository) -> str:
        """Return the name of a region that may have something of the repository and is left alone now, else ""."""
        ...

    async def tag(self, repository: Repository, tag: Tag, known: TagRecord | None, max_age: float) -> TagAtHome | None:
        """Return what the tag is at its home; None where that is this region, or it cannot be asked or be sure.

        max_age: what it heard longer ago, in seconds, is not wanted: it may ask its upstream now.
        """
        ...


class Apart:
    """Regions where there are none."""

    def sources(self, repository: Repository, *, start: bool) -> Sequence[NearSource]:
        return ()

    def silent(self, repository: Repository) -> str:
        return ""

    async def tag(self, repository: Repository, tag: Tag, known: TagRecord | None, max_age: float) -> TagAtHome | None:
        return None


class Solitary:
    """A Flight and a TagFlight of a mirror that has nobody near."""

    following = lost = shared = more = False
    unheard = ""
    said: TagSaid | None = None

    async def next(self) -> NearSource | None:
        return None

    def last_resort(self) -> bool:
        return False

    def failed(self, source: NearSource, error: RegistryError, received: int) -> None:
        """Nobody was given."""

    def stored(self) -> None:
        """Nobody listens."""

    def heard(self, found: Descriptor | NotFound, seconds: float) -> None:
        """Nobody listens."""


class Alone:
    """A Fleet of one node without a bucket."""

    @property
    def alone(self) -> bool:
        return True

    @asynccontextmanager
    async def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AsyncIterator[Solitary]:
        yield Solitary()

    async def keepers(self, repository: Repository, digest: Digest) -> Sequence[NearSource]:
        return ()

    @asynccontextmanager
    async def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AsyncIterator[Solitary]:
        yield Solitary()

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> NotFound | None:
        return None

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        """Nobody listens."""

    async def has_image(self, repository: Repository, digest: Digest, asker: Asker = Asker.CLIENT) -> bool:
        return False
