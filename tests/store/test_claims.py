"""Several processes in one data folder: who fills a digest, and what of each other's attempts they touch."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metrics.events import ignore
from proxy.oci.digest import Digest
from proxy.store import attempts, claims
from proxy.store.catalog import Proof
from proxy.store.files import CommitNote
from proxy.store.inotify import Change
from proxy.store.layout import Layout
from proxy.store.record import StateRecord
from proxy.store.spool import Spool
from proxy.store.store import Store
from proxy.store.sweep import sweeping
from tests.store.contents import ALPINE
from tests.support.contents import blob

DATA = blob(100_000)
HALF = len(DATA) // 2
DIGEST = Digest.of(DATA)


@pytest.fixture
async def other(root: Path, store: Store) -> AsyncIterator[Store]:
    other = await Store.attach(root)
    yield other
    await other.close()


async def half_filled(store: Store) -> Spool:
    spool = await store.begin(DIGEST, len(DATA), ALPINE)
    spool.write(0, DATA[:HALF])
    return spool


async def finish(store: Store, spool: Spool) -> None:
    spool.write(HALF, DATA[HALF:])
    await store.commit(spool, size=len(DATA), repository=ALPINE, proof=Proof.FETCHED, public=False)


async def content(store: Store) -> bytes | None:
    return await store.read_blob(DIGEST, len(DATA))


async def test_of_an_attempt_that_runs_elsewhere_a_copy_is_taken_up(store: Store, other: Store) -> None:
    theirs = await half_filled(store)
    ours = await other.resume(DIGEST)
    assert ours is not None
    assert (ours.contiguous, ours.copied) == (HALF, theirs.generation)
    ours.write(0, b"wrong" * 1000)  # no byte of ours is theirs
    await finish(store, theirs)
    assert await content(other) == DATA
    await other.abandon(ours)
    assert not await store.catalog.intents()


async def test_an_attempt_that_cannot_be_followed_leaves_nothing_open(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await half_filled(store)

    def opened() -> int:
        here = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(path) and os.path.samefile(path, spool.path) for path in here)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = opened()
    monkeypatch.setattr(StateRecord, "open", refuse)
    with pytest.raises(OSError, match="open files"):
        await other.follow(DIGEST, spool.generation)
    assert opened() == before == 1
    await store.abandon(spool)


async def test_older_attempts_are_removed_but_for_those_that_run(store: Store, other: Store) -> None:
    running, left = await half_filled(store), await half_filled(other)
    await other.park(left)
    resumed = await other.resume(DIGEST)
    assert resumed is not None
    assert resumed.generation == left.generation
    assert [intent.generation for intent in await store.catalog.intents()] == [running.generation, left.generation]
    await finish(store, running)
    assert await content(store) == DATA
    await other.abandon(resumed)


async def test_what_another_process_goes_on_with_is_not_given_up_for_its_room(root: Path) -> None:
    async with asyncio.timeout(30):
        first = await Store.open(root)
        await first.park(await half_filled(first))
        await first.close()
        owner = await Store.open(root)
        worker = await Store.attach(root)
        resumed = await worker.resume(DIGEST)
        assert resumed is not None
        assert not await owner.forget_oldest()
        assert await owner.interrupted() == []
        await finish(worker, resumed)
        assert await content(worker) == DATA
        await worker.close()
        await owner.close()


async def test_room_kept_for_a_download_of_a_killed_process_is_had_again(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (await half_filled(other)).close()  # as the kernel does
    monkeypatch.setattr(attempts, "NEW", 0)
    async with sweeping(store, len(DATA) * 3 // 2, ignore):
        spool = await store.begin(Digest.of(b"another"), len(DATA), ALPINE)
    assert [intent.digest for intent in await store.catalog.intents()] == [spool.digest]
    await store.abandon(spool)


async def test_a_commit_that_a_killed_process_had_begun_is_finished_for_its_room(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = await half_filled(other)
    spool.write(HALF, DATA[HALF:])
    note = CommitNote(len(DATA), (ALPINE.upstream, ALPINE.path), Proof.FETCHED, public=False, media_type=None)
    other._files.seal(spool, note)
    other._files.install((DIGEST, spool.generation))
    spool.close()
    monkeypatch.setattr(attempts, "NEW", 0)
    assert await store.forget_oldest()
    assert await content(store) == DATA
    assert await store.catalog.intents() == []


async def test_a_commit_whose_file_is_gone_fails_instead_of_telling_of_a_blob(store: Store) -> None:
    spool = await half_filled(store)
    os.unlink(spool.path)
    with pytest.raises(FileNotFoundError):
        await finish(store, spool)
    assert await store.catalog.blob(DIGEST) is None
    await store.abandon(spool)


async def test_a_holder_that_stopped_before_its_first_word_is_put_out(
    root: Path, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await store.claim(DIGEST)
    assert claim is not None
    claim.stop()
    os.truncate(Layout(root).claim(DIGEST), 0)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)
    with other.watching(DIGEST) as watched:
        assert watched is not None
        assert not await other.put_out(watched)
        await asyncio.sleep(1.1)
        assert await other.put_out(watched)
        assert await other.claim(DIGEST) is not None
    await store.release(claim)


async def test_two_who_watch_one_claim_both_hear_of_it(store: Store, other: Store) -> None:
    claim = await store.claim(DIGEST)
    assert claim is not None
    with other.watching(DIGEST) as one, other.watching(DIGEST) as two:
        assert one is not None
        assert two is not None
        claim.tick()
        for watched in (one, two):
            assert await watched.wait(2) & Change.MODIFY
    with other.watching(DIGEST) as left:
        assert left is not None
        await store.release(claim)
        assert await left.wait(2) & ~Change.MODIFY


async def test_when_one_of_two_stops_watching_the_other_still_hears(store: Store, other: Store) -> None:
    claim = await store.claim(DIGEST)
    assert claim is not None
    with other.watching(DIGEST) as stays:
        with other.watching(DIGEST):
            pass
        assert stays is not None
        claim.tick()
        assert await stays.wait(2) & Change.MODIFY
    await store.release(claim)


async def test_a_guard_that_a_stopped_process_holds_holds_nobody_up(
    root: Path, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await store.claim(DIGEST)
    assert claim is not None
    monkeypatch.setattr(claims, "GUARD_SECONDS", 0.05)
    with other._claims._guard() as held:
        assert held
        async with asyncio.timeout(30):
            await store.release(claim)
    taken = await other.claim(DIGEST)
    assert taken is not None
    await other.release(taken)
    assert not Layout(root).claim(DIGEST).exists()


async def test_what_is_suspected_in_one_process_is_suspected_in_all(store: Store, other: Store) -> None:
    assert not other.suspected(DIGEST)
    store.suspect(DIGEST, 60)
    assert other.suspected(DIGEST)
    assert not other.suspected(Digest.of(b"another"))
    store.suspect(DIGEST, 0)
    assert not other.suspected(DIGEST)


async def test_after_a_death_nothing_that_was_kept_is_believed(store: Store, other: Store) -> None:
    spool = await half_filled(store)
    await finish(store, spool)
    record = await other.catalog.blob(DIGEST)
    assert record is not None
    assert record.present
    # A process that is killed between its commit and the word of it: the row changes, nobody hears.
    await store.catalog._writer.write(
        lambda transaction: transaction.connection.execute("UPDATE blob SET present = 0").rowcount
    )
    assert await other.catalog.blob(DIGEST) == record
    moves = other.catalog.moves
    store.distrust()
    record = await other.catalog.blob(DIGEST)
    assert record is not None
    assert not record.present
    assert other.catalog.moves != moves


async def test_spools_of_all_processes_are_counted(store: Store, other: Store) -> None:
    spool = await half_filled(other)
    assert (await store.stats()).spools == 1
    await other.abandon(spool)
    assert (await store.stats()).spools == 0


async def test_on_a_full_disk_nobody_gets_a_claim_that_says_nothing(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    opened = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            await store.claim(DIGEST)
    assert len(os.listdir("/proc/self/fd")) == opened
    claim = await other.claim(DIGEST)
    assert claim is not None
    await other.release(claim)
