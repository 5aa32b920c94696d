"""The fleet as the cache sees it (`near.Fleet`): leases and answers in Redis, neighbours over HTTP, the bucket.

Any of them may be missing or out of reach; what is left is used. How one download goes is in `flight`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from proxy.cache.near import Asker, Flight, Kind, NearSource, Shelf, TagFlight, TagSaid
from proxy.fleet.flight import DigestFlight, Others
from proxy.fleet.leases import Lease, Leases, Said
from proxy.fleet.link import LinkDown
from proxy.fleet.neighbours import Neighbours
from proxy.fleet.protocol import decode_tag, encode_tag
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, ManifestUnknown, NotFound, RegistryError, Transient
from proxy.oci.names import Reference, Repository, Tag

TAG_SECONDS = 4.0
TAG_TURNS = 2

_log = logging.getLogger(__name__)


class TagQuestion:
    """A TagFlight: `said` is what another node heard, `told` what is to be told of ours when it ends."""

    def __init__(self) -> None:
        self.said: TagSaid | None = None
        self.told: tuple[TagSaid, float] | None = None

    def heard(self, found: Descriptor | NotFound, seconds: float) -> None:
        """See `near.TagFlight`."""
        said = TagSaid(None, found.message, 0.0) if isinstance(found, NotFound) else TagSaid(found, "", 0.0)
        self.told = (said, seconds)


class SharedFleet:
    """The `others` of a fleet (None: there is none) and the bucket that `shelf` is."""

    alone = False

    def __init__(self, others: Others | None, shelf: Shelf | None) -> None:
        self._others = others
        self._shelf = shelf

    @asynccontextmanager
    async def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AsyncIterator[Flight]:
        """See `near.Fleet`."""
        flight = DigestFlight(digest, repository, self._others, self._shelf, asker)
        try:
            yield flight
        finally:
            flight.leave()

    async def keepers(self, repository: Repository, digest: Digest) -> Sequence[NearSource]:
        """See `near.Fleet`."""
        sources: list[NearSource] = []
        if self._others is not None:
            sources += await self._others.holders.who_have(repository, digest)
        with suppress(Transient):
            if self._shelf is not None and await self._shelf.has(digest):
                sources.append(self._shelf)
        return sources

    @asynccontextmanager
    async def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AsyncIterator[TagFlight]:
        """See `near.Fleet`. Who asks for what is newer than anything (`max_age` 0) waits for nobody."""
        question, others = TagQuestion(), self._others
        if others is None or others.leases is None:
            yield question
            return
        lease = None
        with suppress(LinkDown):
            lease = await _place(others.leases, others.neighbours, question, repository, tag, max_age)
        try:
            yield question
        finally:
            if lease is not None:
                leaving = _end(others.leases, others.neighbours, lease, question)
                others.background.create_task(leaving, name=f"leave {repository}:{tag}")

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> NotFound | None:
        """See `near.Fleet`."""
        if self._others is None:
            return None
        try:
            said = await self._others.answers.missing(kind, repository, reference)
        except LinkDown:
            return None
        if said is None:
            return None
        return ManifestUnknown(said) if kind == "manifest" else BlobUnknown(said)

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        """See `near.Fleet`."""
        if self._others is not None:
            self._others.answers.note_missing(kind, repository, reference, said, seconds)

    async def has_image(self, repository: Repository, digest: Digest, asker: Asker = Asker.CLIENT) -> bool:
        """See `near.Fleet`."""
        if self._others is not None and await self._others.holders.of_image(repository, digest):
            return True
        try:
            return self._shelf is not None and await self._shelf.has(digest)
        except Transient:
            return False


async def _place(
    leases: Leases, neighbours: Neighbours, question: TagQuestion, repository: Repository, tag: Tag, max_age: float
) -> Lease | None:
    """Return the lease that is ours while we ask; None where somebody has said it, or nobody can be waited for."""
    key = f"tag:{repository}:{tag}"
    standing = await leases.acquire(key)
    for _ in range(TAG_TURNS):
        question.said = _said(neighbours, key, standing.said, max_age)
        leader = standing.theirs
        if question.said is not None or leader is None or max_age <= 0:
            break
        try:
            async with asyncio.timeout(TAG_SECONDS):
                told = await neighbours.at(leader.node, held=False, still=None).tag(repository, tag)
            if told.age <= max_age:
                question.said = told
                break
        except (RegistryError, TimeoutError, ValueError):
            pass
        dead = not await neighbours.alive(leader.node)
        standing = await leases.acquire(key, instead_of=leader if dead else None)
    return standing.ours


def _said(neighbours: Neighbours, key: str, said: Said | None, max_age: float) -> TagSaid | None:
    """Return what a node heard, if it is young enough. Redis alone is not believed: a tag proves membership (P43)."""
    if said is None or said.age > max_age:
        return None
    try:
        told = decode_tag(neighbours.unseal(key, said.data))
    except (msgspec.DecodeError, RegistryError):
        _log.warning("what Redis says of a tag is of no node of this fleet; the upstream is asked")
        return None
    return TagSaid(told.found, told.message, said.age)


async def _end(leases: Leases, neighbours: Neighbours, lease: Lease, question: TagQuestion) -> None:
    said = None
    if question.told is not None:
        told, seconds = question.told
        said = (neighbours.seal(lease.key, encode_tag(told)), seconds)
    try:
        await leases.release(lease, holds=False, said=said)
    except LinkDown:
        return
