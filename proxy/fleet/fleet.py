"""The fleet as the cache sees it (`near.Fleet`): leases and answers in Redis, neighbours over HTTP, the bucket.

Any of them may be missing or out of reach; what is left is used. How one download goes is in `flight`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from proxy.cache.near import Flight, Kind, Shelf, TagFlight, TagSaid
from proxy.cache.once import Background
from proxy.fleet.answers import Answers
from proxy.fleet.flight import DigestFlight
from proxy.fleet.holders import Holders
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
    """Make it in the event loop that uses it; what it tells Redis is `background`'s."""

    alone = False

    def __init__(
        self,
        leases: Leases | None,
        answers: Answers | None,
        neighbours: Neighbours | None,
        holders: Holders | None,
        shelf: Shelf | None,
        background: Background,
    ) -> None:
        self._leases = leases
        self._answers = answers
        self._neighbours = neighbours
        self._holders = holders
        self._shelf = shelf
        self._background = background

    @asynccontextmanager
    async def flight(self, digest: Digest, repository: Repository, *, for_node: bool = False) -> AsyncIterator[Flight]:
        """See `near.Fleet`."""
        flight = DigestFlight(
            digest,
            repository,
            self._leases,
            self._neighbours,
            self._holders,
            self._shelf,
            self._background,
            for_node=for_node,
        )
        try:
            yield flight
        finally:
            flight.leave()

    @asynccontextmanager
    async def tag_flight(self, repository: Repository, tag: Tag, max_age: float) -> AsyncIterator[TagFlight]:
        """See `near.Fleet`. Who asks for what is newer than anything (`max_age` 0) waits for nobody."""
        question, lease = TagQuestion(), None
        if self._leases is not None and self._neighbours is not None:
            key = f"tag:{repository}:{tag}"
            try:
                lease = await self._place(self._leases, self._neighbours, question, key, repository, tag, max_age)
            except LinkDown:
                lease = None
        try:
            yield question
        finally:
            if lease is not None and self._leases is not None and self._neighbours is not None:
                leaving = _end(self._leases, self._neighbours, lease, question)
                self._background.create_task(leaving, name=f"leave {repository}:{tag}")

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> NotFound | None:
        """See `near.Fleet`."""
        if self._answers is None:
            return None
        try:
            said = await self._answers.missing(kind, repository, reference)
        except LinkDown:
            return None
        if said is None:
            return None
        return ManifestUnknown(said) if kind == "manifest" else BlobUnknown(said)

    def note_missing(self, kind: Kind, repository: Repository, reference: Reference, said: str, seconds: float) -> None:
        """See `near.Fleet`."""
        if self._answers is not None:
            self._answers.note_missing(kind, repository, reference, said, seconds)

    async def has_image(self, repository: Repository, digest: Digest) -> bool:
        """See `near.Fleet`."""
        if self._holders is not None and await self._holders.of_image(repository, digest):
            return True
        try:
            return self._shelf is not None and await self._shelf.has(digest)
        except Transient:
            return False

    async def _place(
        self,
        leases: Leases,
        neighbours: Neighbours,
        question: TagQuestion,
        key: str,
        repository: Repository,
        tag: Tag,
        max_age: float,
    ) -> Lease | None:
        """Return the lease that is ours while we ask; None where somebody has said it, or nobody can be waited for."""
        standing = await leases.acquire(key, mine_is_dead=True)
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
            standing = await leases.acquire(key, instead_of=leader if dead else None, mine_is_dead=True)
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
