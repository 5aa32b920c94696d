"""Whatever is written, by whichever process: the rows that regions compare are those of the records."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from proxy.oci.names import Reference, Repository, Tag
from proxy.store import roots
from proxy.store.backup import back_up
from proxy.store.catalog import Catalog, Proof
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.errors import Pinned
from proxy.store.exchanged import MembershipChange, Page, Past, TagChange
from proxy.store.layout import Layout
from proxy.store.schema import connect_reader
from tests.store.contents import ALPINE, BUSYBOX, TYPES, child, digest, lose, parsed, put
from tests.store.killing import killed
from tests.store.rooted import agree
from tests.store.test_feed import image

MANIFESTS = {
    "index": parsed("index", child("image", "manifest")),
    "image": parsed("image", child("layer")),
    "signature": parsed("artifact", subject="index"),
    "layer": None,
}
NAMES = sorted(MANIFESTS)
TAGS = [Tag("latest"), Tag("v1")]


@asynccontextmanager
async def opened(path: Path, region: str = "local") -> AsyncIterator[Catalog]:
    catalog = await Catalog.open(path, Disk(), region=region)
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def happen(catalog: Catalog, chance: random.Random) -> None:
    """Let one thing happen that writes records."""
    repository, name, tag = chance.choice([ALPINE, BUSYBOX]), chance.choice(NAMES), chance.choice(TAGS)
    what: Reference = tag if chance.random() < 0.5 else digest(name)
    version = int((time.time() + chance.uniform(-50, 50)) * 1000) << 16
    match chance.randrange(9):
        case 0 | 1:
            await put(catalog, name, MANIFESTS[name], repository=chance.choice([repository, None]))
        case 2:
            await catalog.prove(repository, digest(name), Proof.HEAD)
        case 3:
            await catalog.put_tag(repository, tag, image(name), time.time())
        case 4:
            await catalog.remove(repository, what)
        case 5:
            await (catalog.pin if chance.random() < 0.4 else catalog.unpin)(repository, what)
        case 6:
            await lose(catalog, name)
        case 7:
            with suppress(Pinned):
                await catalog.apply(repository, [heard(chance, name, tag, version)])
        case 8:
            page = Page("e" * 32, 9, 9, records=[heard(chance, name, tag, version)])
            await catalog.merge(page, [repository], 0, "node")


def heard(chance: random.Random, name: str, tag: Tag, version: int) -> TagChange | MembershipChange:
    """Return a record of somebody else."""
    if chance.random() < 0.5:
        root = chance.choice([None, "", str(digest("index"))])
        return MembershipChange(1, 0, digest(name), version, chance.random() < 0.4, Proof.HEAD, 1.0, root)
    was = Past(str(digest("before")), 0, version - 1, 0, "eu", TYPES["image"], 3, 1.0)
    what, kind, size = (None, None, None) if chance.random() < 0.3 else (str(digest(name)), TYPES["image"], 3)
    return TagChange(1, 0, tag, version, what, kind, size, "eu", 1.0, 1.0, chance.randrange(2), version - 1, (was,))


@pytest.mark.parametrize("seed", range(3))
async def test_rows_are_those_of_the_records_whoever_wrote_them(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "catalog.sqlite"
    async with opened(path, "east") as first:
        second = await Catalog.attach(path, Coherence(), "east")
        try:
            for number in range(60):
                await happen(chance.choice([first, second]), chance)
                if number == 30:
                    await first.rekey(b"k" * 32)
            assert await first.read(agree) > 0
        finally:
            await second.aclose()
    async with opened(path, "elsewhere") as renamed:
        for _ in range(30):
            await happen(renamed, chance)
        assert await renamed.read(agree) > 0


async def test_what_is_written_together_with_another_mesh_key_is_under_that_key(catalog: Catalog) -> None:
    await put(catalog, "image", MANIFESTS["image"])
    other = catalog.put_tag(ALPINE, TAGS[0], image("image"), 10.0)
    await asyncio.gather(
        *(catalog.put_tag(ALPINE, Tag(f"v{number}"), image("image"), 9.0) for number in range(20)),
        catalog.rekey(b"k" * 32),
        other,
        *(catalog.put_tag(ALPINE, Tag(f"w{number}"), image("image"), 9.0) for number in range(20)),
    )
    assert await catalog.read(agree) == 42


async def test_an_index_that_comes_late_leaves_its_child_a_root_and_takes_it_along_when_it_goes(
    catalog: Catalog,
) -> None:
    await put(catalog, "signature", MANIFESTS["signature"])
    await put(catalog, "image", MANIFESTS["image"])
    await put(catalog, "index", MANIFESTS["index"])
    assert await catalog.read(agree) == 3
    await catalog.remove(ALPINE, digest("index"))
    assert await catalog.read(agree) == 3
    gone = "SELECT digest FROM membership WHERE removed ORDER BY digest"
    assert await catalog.read(lambda connection: connection.execute(gone).fetchall()) == sorted(
        [(digest("index"),), (digest("image"),)]
    )
    await put(catalog, "index", MANIFESTS["index"])
    assert await catalog.read(agree) == 3


async def test_a_copy_of_the_catalog_keeps_its_mesh_key_and_roots(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    async with opened(layout.catalog) as catalog:
        for name in NAMES:
            await put(catalog, name, MANIFESTS[name])
        mesh, epoch = catalog.mesh, catalog.epoch
        await back_up(layout.catalog, layout.backup, Disk())
    layout.catalog.write_bytes(b"this is no catalog" * 100)
    async with opened(layout.catalog) as restored:
        assert restored.epoch != epoch
        assert restored.mesh == mesh
        assert await restored.read(agree) == 3


async def work(path: Path, seed: int) -> None:
    """Take one mesh key after another, writing all the while, until killed."""
    catalog = await Catalog.open(path, Disk())
    chance = random.Random(seed)
    print("open", flush=True)
    while True:
        await asyncio.gather(catalog.rekey(chance.randbytes(32)), *(happen(catalog, chance) for _ in range(3)))


async def kill_and_open(path: Path, seed: int) -> bool:
    """Return whether it was killed within a change of keys; after the next start all rows are right."""
    await killed("tests.store.test_roots_follow", path, seed, 0.05, 0.4)
    with closing(connect_reader(path)) as connection:
        cut = connection.execute("SELECT 1 FROM meta WHERE key = ?", (roots.REKEYING,)).fetchone()
    async with opened(path) as catalog:
        assert await catalog.read(agree) > 0
        assert await catalog.read(lambda one: one.execute("SELECT 1 FROM meta WHERE key = 'rekeying'").fetchall()) == []
    return cut is not None


async def fill(path: Path, tags: int) -> None:
    async with opened(path) as catalog:
        await put(catalog, "image", MANIFESTS["image"])
        for repository in (ALPINE, Repository("ghcr.io", "a/b")):
            await asyncio.gather(
                *(catalog.put_tag(repository, Tag(f"v{number}"), image("image"), 9.0) for number in range(tags))
            )


async def test_a_change_of_keys_that_was_cut_short_is_carried_on_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    await fill(path, 20)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'mesh'", (b"k" * 32,))
        connection.execute("INSERT INTO meta VALUES ('rekeying', 'clear')")
    async with opened(path) as catalog:
        assert catalog.mesh == b"k" * 32
        assert await catalog.read(agree) == 41


@pytest.mark.slow
async def test_killed_changes_of_keys_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    await fill(path, 1000)
    cut = [await kill_and_open(path, seed) for seed in range(12)]
    assert any(cut)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
