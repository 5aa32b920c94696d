"""Power is lost before each single operation on the disk: after the next start nothing false is believed.

Every stored blob verifies, what was reported as committed is there, no spool is leaked, and an interrupted one
offers only bytes that are right.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

from proxy.oci.digest import Digest
from proxy.store.catalog import Proof
from proxy.store.records import Verified
from proxy.store.store import Store
from tests.store.contents import ALPINE
from tests.store.lossy_disk import Chooser, LossyDisk
from tests.store.test_store import image

BODIES = {Digest.of(body): body for body in (os.urandom(9000 + number) for number in range(3))}
FINISHED, LATER, ABANDONED = BODIES
SMALL = [os.urandom(600 + number) for number in range(2)]
MANIFEST, PARSED = image(BODIES[FINISHED])
EVERYTHING = {**BODIES, Digest.of(MANIFEST): MANIFEST} | {Digest.of(body): body for body in SMALL}


@dataclass
class Known:
    """What the caller was told: which digests are committed, how many bytes of LATER are safe."""

    committed: list[Digest] = field(default_factory=list)
    safe: int = 0

    def copy(self) -> Known:
        return Known(list(self.committed), self.safe)


async def scenario(store: Store, known: Known) -> None:
    """Commit small blobs together, a blob and a manifest, leave one attempt half-way (twice synced), drop another."""
    small = [Verified(Digest.of(body), body, ALPINE) for body in SMALL]
    await store.put_all(small, Proof.FETCHED, public=True)
    known.committed += [one.digest for one in small]
    spool = await store.begin(FINISHED, None, ALPINE)
    for start in range(0, 9000, 4096):
        await asyncio.to_thread(spool.write, start, BODIES[FINISHED][start : start + 4096])
        await asyncio.to_thread(spool.checkpoint)
    await store.commit(spool, size=9000, repository=ALPINE, proof=Proof.FETCHED, public=True)
    known.committed.append(FINISHED)
    digest = Digest.of(MANIFEST)
    await store.put_manifest(
        MANIFEST, parsed=PARSED, repository=ALPINE, proof=Proof.FETCHED, public=True, digest=digest
    )
    known.committed.append(digest)
    later = await store.begin(LATER, len(BODIES[LATER]), ALPINE)
    abandoned = await store.begin(ABANDONED, None, ALPINE)
    await asyncio.to_thread(later.write, 0, BODIES[LATER][:3000])
    await asyncio.to_thread(later.checkpoint)
    known.safe = 3000
    await asyncio.to_thread(abandoned.write, 0, b"these bytes are wrong")
    for start in range(3000, 6000, 500):
        await asyncio.to_thread(later.write, start, BODIES[LATER][start : start + 500])
    await store.abandon(abandoned)
    await store.park(later)
    known.safe = 6000
    resumed = await store.resume(LATER)
    assert resumed is not None
    await asyncio.to_thread(resumed.write, 6000, BODIES[LATER][6000:])
    await store.commit(resumed, size=len(BODIES[LATER]), repository=ALPINE, proof=Proof.FETCHED, public=False)
    known.committed.append(LATER)


async def check(root: Path, disk: LossyDisk, known: Known) -> None:
    """Start on what the power loss left and look at everything."""
    store = await Store.open(root, disk=disk)
    try:
        report = await store.verify()
        assert (report.corrupt, report.missing) == ([], [])
        assert set(report.unknown) == set()
        for digest in known.committed:
            assert await store.read_blob(digest, 1 << 20) == EVERYTHING[digest]
            assert await store.catalog.has_membership(ALPINE, digest)
        if Digest.of(MANIFEST) in known.committed:
            assert await store.catalog.expected_size(Digest.of(b"{}")) == 2
        if known.safe and await store.catalog.blob(LATER) is None:
            assert [intent.digest for intent in await store.interrupted() if intent.contiguous >= known.safe] == [LATER]
        expected = set()
        for intent in await store.interrupted():
            spool = await store.resume(intent.digest)
            assert spool is not None
            assert spool.contiguous == intent.contiguous > 0
            held = spool.read(0, 1 << 20)
            if intent.digest != ABANDONED:
                assert held == EVERYTHING[intent.digest][: spool.contiguous]
            expected |= {spool.path.name, f"{spool.path.name}.state"}
        assert set(os.listdir(root / "ingest")) == expected
        assert len(await store.catalog.intents()) * 2 == len(expected)
    finally:
        await store.close()
        disk.release()


async def crash_everywhere(tmp_path: Path, written_back: Chooser, pick: Callable[[int], bool]) -> int:
    """Run the scenario with a crash image before each picked operation, then check them all; return how many."""
    images: list[tuple[Path, Known]] = []
    known = Known()
    calls = 0
    armed = False

    def before_call(name: str) -> None:
        nonlocal calls
        calls += armed
        if armed and pick(calls):
            target = tmp_path / f"after-{calls}-{name}"
            disk.crash(target, written_back)
            images.append((target, known.copy()))

    disk = LossyDisk(tmp_path / "data", str(uuid4()), before_call)
    store = await Store.open(tmp_path / "data", disk=disk)
    armed = True
    await scenario(store, known)
    armed = False
    disk.crash(tmp_path / "at-the-end", written_back)
    images.append((tmp_path / "at-the-end", known.copy()))
    await store.close()
    disk.release()
    for target, then in images:
        await check(target, LossyDisk(target, str(uuid4())), then)
    return len(images)


async def test_nothing_but_what_was_synced_survives(tmp_path: Path) -> None:
    assert await crash_everywhere(tmp_path, lambda: False, lambda call: call % 4 == 0) > 10


async def test_everything_was_written_back_by_chance(tmp_path: Path) -> None:
    assert await crash_everywhere(tmp_path, lambda: True, lambda call: call % 5 == 1) > 8


async def test_some_pages_and_names_were_written_back(tmp_path: Path) -> None:
    chance = random.Random(1)
    assert await crash_everywhere(tmp_path, lambda: chance.random() < 0.6, lambda call: call % 4 == 2) > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
async def test_any_mixture_at_any_operation(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    share = chance.random()
    assert await crash_everywhere(tmp_path, lambda: chance.random() < share, lambda call: True) > 40
