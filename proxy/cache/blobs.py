"""Blobs of the read-through cache: stored, being filled, or to be filled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from proxy.cache import plan
from proxy.cache.fill import Admission, Fill
from proxy.cache.flights import Flights
from proxy.cache.membership import Membership
from proxy.cache.near import Asker, Fleet
from proxy.cache.negatives import Negatives
from proxy.cache.reader import FileReader, FillReader, StoredReader
from proxy.cache.relay import Oversized, relay
from proxy.cache.sources import Upstreams
from proxy.oci.descriptor import OCTET_STREAM, Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, GatewayTimeout, NotFound, RegistryError, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream
from proxy.store.catalog import BlobRecord
from proxy.store.claims import Lender
from proxy.store.store import Store

ROUNDS = 4


@dataclass(frozen=True, slots=True)
class NodeBlob:
    """What another node is given: `proven`: the repository it named contains it; `public`: it came anonymously."""

    stream: FileReader
    proven: bool
    public: bool


def _narrowed(given: NodeBlob, span: ByteRange | None) -> NodeBlob:
    try:
        given.stream.narrow(span)
    except BaseException:
        given.stream.close()
        raise
    return given


class Blobs:
    """Opens blobs for repositories that are known to contain them (P43), filling what is missing.

    Where nobody is near (`fleet.alone`) nothing can be filled without an upstream.
    """

    def __init__(
        self,
        store: Store,
        flights: Flights,
        membership: Membership,
        negatives: Negatives,
        upstreams: Upstreams,
        fleet: Fleet,
    ) -> None:
        self._sources = upstreams.of if fleet.alone else upstreams.for_fill
        self._fleet = fleet
        self._store = store
        self._flights = flights
        self._membership = membership
        self._negatives = negatives
        self._upstreams = upstreams

    async def stat(self, repository: Repository, digest: Digest) -> Descriptor:
        """Return digest and size; downloads nothing (P3). Raises BlobUnknown, Transient."""
        record = await self._present(repository, digest)
        if record is not None:
            return Descriptor(OCTET_STREAM, digest, record.size)
        fill = self._flights.running(digest)
        if fill is not None and repository in fill.supply.proven and fill.current is not None:
            size = fill.current.progress.size
            if size is not None:
                return Descriptor(OCTET_STREAM, digest, size)
        return await self._membership.stat_blob(repository, digest)

    async def open(
        self, repository: Repository, digest: Digest, span: ByteRange | None = None
    ) -> FileReader | BlobStream:
        """Open the blob, or `span` of it, from the store or a fill (begun now if there is none).

        What is larger than all that may be stored comes straight from the source. Raises BlobUnknown,
        RangeNotSatisfiable, Transient.
        """
        try:
            return await self._open(repository, digest, span)
        except Oversized:
            return await relay(self._upstreams, repository, digest, span, self._flights.doubt)

    async def _open(self, repository: Repository, digest: Digest, span: ByteRange | None) -> FileReader | BlobStream:
        continues = span is not None and span.first != 0
        if continues and self._flights.suspect(digest):
            raise Unavailable(f"bytes of {digest} were wrong a moment ago; fetch it from the start", retry_after=60)
        for number in range(ROUNDS):
            reader = await self._open_stored(repository, digest)
            if reader is None:
                if continues and (error := self._flights.recent_failure(repository, digest)):
                    raise error.again()
                reader = await self._open_fill(repository, digest, first=number == 0)
            if reader is not None:
                return await self._narrow(reader, repository, span)
        raise Unavailable(f"{digest} is evicted as fast as it is filled")

    async def for_region(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        """Open the blob for another region, if the repository contains it (P43); `held`: only if it is stored here.

        What another node or the bucket has is read along as it comes here. As `for_node`.
        """
        only_here = held and not await self._is_in_fleet(repository, digest)
        given = await self.for_node(repository, digest, span, held=only_here, asker=Asker.REGION)
        if given.proven:
            return given
        given.stream.close()
        if held:
            raise BlobUnknown(f"{digest} is not known to be in {repository}")
        await self._membership.stat_blob(repository, digest)
        return await self.for_node(repository, digest, span, held=False, asker=Asker.REGION)

    async def _is_in_fleet(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether somebody near has stored what this node has not."""
        record = await self._store.catalog.blob(digest)
        return not (record is not None and record.present) and bool(await self._fleet.keepers(repository, digest))

    async def for_node(
        self,
        repository: Repository,
        digest: Digest,
        span: ByteRange | None,
        *,
        held: bool,
        asker: Asker = Asker.NODE,
    ) -> NodeBlob:
        """Open the blob for another node, which judges itself who may read it; `held`: only if it is stored.

        A fill is joined, or begun, that waits for nobody for whom `asker` may not wait. Raises BlobUnknown,
        RangeNotSatisfiable, GatewayTimeout, BadContent where bytes before `span` may have been wrong, Transient.
        """
        for _ in range(ROUNDS):
            record = await self._store.catalog.blob(digest)
            stored = await self._store.open_blob(digest) if record is not None and record.present else None
            if record is not None and stored is not None:
                self._store.catalog.touch(digest)
                proven = await self._membership.known(repository, digest, record)
                return _narrowed(NodeBlob(StoredReader(stored), proven, record.public), span)
            if held:
                raise BlobUnknown(f"{digest} is not stored by this node")
            if span is not None and span.first != 0 and self._flights.suspect(digest):
                raise BadContent(f"bytes of {digest} were wrong a moment ago; fetch it from the start")
            fill = self._flights.running(digest)
            if fill is None:
                expected = await self._store.catalog.expected_size(digest)
                sources = self._sources(repository)
                fill = self._flights.running(digest) or self._flights.start(
                    digest, repository, sources, expected, asker
                )
            if await fill.admits_other(Lender.REGION if asker is Asker.REGION else Lender.NODE):
                self._flights.joined(fill)
                assert fill.current is not None
                proven = repository in fill.supply.proven
                return _narrowed(NodeBlob(FillReader(fill, fill.current, "joined"), proven, fill.supply.public), span)
        raise Unavailable(f"{digest} is evicted as fast as it is filled")

    async def ensure(self, repository: Repository, digest: Digest) -> int:
        """Return the blob's size once it is in the store, asking anew for what was not there. Raises as `open`."""
        self._negatives.forget_all({("blob", repository, digest)})
        for number in range(ROUNDS):
            record = await self._present(repository, digest)
            if record is not None:
                return record.size
            fill, _ = await self._fill(repository, digest, first=number == 0)
            if fill is not None and await self._admit(fill, repository) is Admission.YES:
                with suppress(GatewayTimeout), fill.interest():  # a node's fill; our own is begun then
                    return (await asyncio.shield(fill.finished)).size
        raise Unavailable(f"{digest} is evicted as fast as it is filled")

    async def take_up(self, repository: Repository, digest: Digest, asker: Asker) -> None:
        """Carry to its end what an earlier fill of the digest has left, stored by another meanwhile or not."""
        sources = self._sources(repository)
        expected = await self._store.catalog.expected_size(digest)
        fill = self._flights.running(digest) or self._flights.start(digest, repository, sources, expected, asker)
        await asyncio.shield(fill.finished)

    async def _present(self, repository: Repository, digest: Digest) -> BlobRecord | None:
        record = await self._store.catalog.blob(digest)
        if record is None or not record.present:
            return None
        await self._membership.require_blob(repository, digest, record)
        return record

    async def _open_stored(self, repository: Repository, digest: Digest) -> FileReader | None:
        if await self._present(repository, digest) is None:
            return None
        stored = await self._store.open_blob(digest)
        if stored is None:
            return None
        self._store.catalog.touch(digest)
        return StoredReader(stored)

    async def _open_fill(self, repository: Repository, digest: Digest, *, first: bool) -> FileReader | None:
        fill = self._flights.running(digest)
        if fill is not None and repository in fill.supply.proven:
            return await self._read_fill(repository, digest, first=first)  # it is there, whatever was said before
        return await self._negatives.run(
            "blob", repository, digest, lambda: self._read_fill(repository, digest, first=first)
        )

    async def _read_fill(self, repository: Repository, digest: Digest, *, first: bool) -> FileReader | None:
        fill, begun = await self._fill(repository, digest, first=first)
        if fill is None or await self._admit(fill, repository) is not Admission.YES:
            return None
        first = begun and fill.leads
        if not first:
            self._flights.joined(fill)
        assert fill.current is not None
        return FillReader(fill, fill.current, fill.supply.outcome if first else "joined")

    async def _fill(self, repository: Repository, digest: Digest, *, first: bool) -> tuple[Fill | None, bool]:
        """Return the running fill, or one begun now, and whether it was; None to look at the store once more."""
        sources = self._sources(repository)
        expected = await self._store.catalog.expected_size(digest)
        fill = self._flights.running(digest)
        if fill is not None:
            return fill, False
        if first and self._flights.just_committed(digest):
            return None, False
        marks = self._store.space.marks
        if marks is not None and expected is not None and expected > marks.high:
            raise Oversized(f"{digest} has {expected} bytes, more than the {marks.high} that may be stored")
        return self._flights.start(digest, repository, sources, expected), True

    async def _admit(self, fill: Fill, repository: Repository) -> Admission:
        """Wait for the fill's answer; where only others have proved the digest, ask the repository itself."""
        try:
            admission = await fill.admits(repository)
            if admission is Admission.UNPROVEN:
                await self._membership.stat_blob(repository, fill.digest)
                self._flights.join(fill, repository, self._sources(repository))
                admission = await fill.admits(repository)
        except RegistryError as error:
            refused = error.status in (401, 403)
            if refused or isinstance(error, NotFound):
                await self._membership.doubt(repository, fill.digest, fill.supply.unheard)
            if refused:
                raise BlobUnknown(f"{repository.upstream} refuses access to {repository.path}") from error
            if isinstance(error, GatewayTimeout):
                return await self._over(fill)
            raise
        if admission is Admission.YES:
            fill.asker = Asker.CLIENT
        return admission

    async def _over(self, fill: Fill) -> Admission:
        """A fill that a node began may wait for no other; its end is awaited, and a client's own then begins."""
        await asyncio.wait([fill.finished])
        while self._flights.running(fill.digest) is fill:
            await self._flights.ended()
        return Admission.OVER

    async def _narrow(
        self, reader: FileReader, repository: Repository, span: ByteRange | None
    ) -> FileReader | BlobStream:
        try:
            reader.narrow(span)
            if isinstance(reader, FillReader) and span is not None and (span.last is not None):
                relayed = await self._relay(reader, repository)
                if relayed is not None:
                    reader.close()
                    return relayed
        except BaseException:
            reader.close()
            raise
        return reader

    async def _relay(self, reader: FillReader, repository: Repository) -> BlobStream | None:
        """A small range far past what the fill has is given straight from the source (DESIGN: footer first)."""
        fill = reader.fill
        if fill.current is None or reader.end is None:
            return None
        if not plan.is_far_footer(reader.start, reader.end, fill.current.progress.releasable):
            return None
        span = ByteRange(reader.start, reader.end - 1)
        try:
            stream = await self._upstreams.ask(
                repository, lambda source: source.open_blob(repository, reader.digest, span), BlobUnknown
            )
        except RegistryError:
            return None
        if (stream.size, stream.start, stream.end) == (reader.size, reader.start, reader.end):
            return stream
        await stream.aclose()
        return None
