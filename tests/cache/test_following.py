"""A fill that another process leads, played here by hand; the mirror under test follows it and answers its clients."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.cache import following
from proxy.cache.near import Alone, Asker, Fleet, Solitary
from proxy.cache.reader import FileReader
from proxy.cache.readthrough import ReadThrough, open_cache
from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, GatewayTimeout, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.store import claims
from proxy.store.claims import Claim, Lender
from proxy.store.inotify import Inotify
from proxy.store.spool import Spool
from proxy.store.store import Store
from tests.cache.lab import ALPINE, HUB
from tests.support.contents import blob

MIB = 1 << 20
DATA = blob(4 * MIB)
DIGEST = Digest.of(DATA)
BUSYBOX = Repository(HUB, "library/busybox")


@asynccontextmanager
async def follower(root: Path, fleet: Fleet | None = None) -> AsyncIterator[ReadThrough]:
    """A cache of another process; only what `ALPINE` asks for is upstream."""
    source = MemorySource("memory")
    source.add_blob(ALPINE, DATA)
    store = await Store.attach(root)
    try:
        async with open_cache(store, {HUB: [source]}, emit=lambda event: None, fleet=fleet) as cache:
            yield cache
    finally:
        await store.close()


class Leader:
    """Fills by hand."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self.store = store
        self.claim = claim

    async def begin(self, data: bytes) -> Spool:
        """Show a new generation that has `data`, and let all of it be read."""
        spool = await self.store.begin(DIGEST, len(DATA), ALPINE)
        self.show(spool, data)
        return spool

    def show(self, spool: Spool, data: bytes) -> None:
        spool.write(0, data)
        spool.publish(len(data), "running")
        self.claim.fills(spool.generation, spool.copied)


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Leader]:
    store = await Store.open(tmp_path)
    claim = await store.claim(DIGEST)
    assert claim is not None
    yield Leader(store, claim)
    await store.release(claim)
    await store.close()


async def opened(cache: ReadThrough, span: ByteRange | None = None, repository: Repository = ALPINE) -> FileReader:
    reader = await cache.open_blob(repository, DIGEST, span)
    assert isinstance(reader, FileReader)
    return reader


async def test_nobody_goes_on_with_a_generation_that_did_not_take_over_the_bytes(
    tmp_path: Path, leader: Leader
) -> None:  # P38
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        spool = await leader.begin(b"x" * MIB)
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        await leader.store.abandon(spool)
        await leader.begin(DATA[: 2 * MIB])
        with pytest.raises(Unavailable, match="begun anew"):
            await reader.limit(MIB)
        reader.close()
        late = await opened(cache)
        assert await late.limit(0) == 2 * MIB
        late.close()


async def test_readers_go_on_in_a_copy_of_what_they_read(tmp_path: Path, leader: Leader) -> None:
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        left = await leader.begin(DATA[:MIB])
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        third = await Store.attach(tmp_path)
        copy = await third.resume(DIGEST)
        assert copy is not None
        assert copy.copied == left.generation
        leader.show(copy, DATA[: 3 * MIB])
        assert await reader.limit(MIB) == 3 * MIB
        reader.close()
        await third.close()


async def test_wrong_bytes_of_one_worker_are_stitched_to_no_tail_by_another(tmp_path: Path, leader: Leader) -> None:
    async with asyncio.timeout(30), follower(tmp_path) as cache, follower(tmp_path) as unconcerned:
        spool = await leader.begin(b"x" * MIB)
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        spool.publish(0, "corrupt")
        leader.claim.tick()
        with pytest.raises(BadContent):
            await reader.limit(MIB)
        reader.close()
        for each in (cache, unconcerned):
            with pytest.raises(Unavailable, match="from the start"):
                await each.open_blob(ALPINE, DIGEST, ByteRange(MIB, None))


async def test_whose_repository_is_not_proven_reads_nothing_of_it(tmp_path: Path, leader: Leader) -> None:  # P43
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        await leader.begin(DATA[:MIB])
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        for span in (None, ByteRange(0, 99), ByteRange(3 * MIB, 3 * MIB + 99)):
            with pytest.raises(BlobUnknown):
                await cache.open_blob(BUSYBOX, DIGEST, span)
        with pytest.raises(BlobUnknown):
            await cache.stat_blob(BUSYBOX, DIGEST)
        reader.close()


async def test_a_leader_that_ends_without_the_blob_leaves_it_to_who_follows(tmp_path: Path, leader: Leader) -> None:
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        spool = await leader.begin(DATA[:MIB])
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        await leader.store.park(spool)
        await leader.store.release(leader.claim)
        assert await reader.limit(MIB) > MIB
        assert b"".join([chunk async for chunk in reader]) == DATA
        reader.close()


async def test_without_inotify_too_a_leader_that_stands_still_is_put_out(
    tmp_path: Path, leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files (inotify)")

    monkeypatch.setattr(Inotify, "watching", used_up)
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        await leader.begin(DATA[:MIB])
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        leader.claim.stop()
        for module in (claims, following):
            monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
        assert b"".join([chunk async for chunk in reader]) == DATA
        reader.close()


class Led(Alone):
    """A fleet in which another node always leads, for whom no node may wait here."""

    @asynccontextmanager
    async def flight(
        self, digest: Digest, repository: Repository, asker: Asker = Asker.CLIENT
    ) -> AsyncIterator[Solitary]:
        yield Refusing() if asker is Asker.NODE else Solitary()


class Refusing(Solitary):
    async def next(self) -> None:
        raise GatewayTimeout("another node leads")


async def test_a_client_that_joined_what_a_node_began_is_served_to_the_end_when_the_leading_worker_dies(
    tmp_path: Path, leader: Leader
) -> None:
    spool = await leader.begin(DATA[:MIB])
    async with follower(tmp_path, Led()) as cache:
        given = await cache.node_blob(ALPINE, DIGEST, None, held=False)
        reader = await opened(cache)
        assert await reader.limit(0) == MIB
        await leader.store.park(spool)
        await leader.store.release(leader.claim)
        assert b"".join([chunk async for chunk in reader]) == DATA
        await given.stream.aclose()
        await reader.aclose()


async def test_no_node_waits_for_what_another_worker_gets_from_a_node(tmp_path: Path, leader: Leader) -> None:
    spool = await leader.begin(DATA[:MIB])
    leader.claim.borrows(Lender.NODE)
    async with asyncio.timeout(30), follower(tmp_path) as cache:
        reader = await opened(cache)
        with pytest.raises(GatewayTimeout):
            await cache.node_blob(ALPINE, DIGEST, None, held=False)
        leader.claim.borrows(Lender.NOBODY)
        leader.show(spool, DATA[: 2 * MIB])
        assert await reader.limit(MIB) == 2 * MIB
        given = await cache.node_blob(ALPINE, DIGEST, None, held=False)
        assert await given.stream.limit(0) == 2 * MIB
        await given.stream.aclose()
        reader.close()
