"""What a site holds, as an inventory that others export by, and the bases that it keeps for bundles to come."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from entrepot.beside import opened_store
from entrepot.config import Config
from proxy.oci.digest import Digest
from proxy.store import holding
from sync.bundle.digestfile import InventoryHeader, write_digests
from sync.bundle.errors import BundleError
from sync.bundle.publishing import release
from sync.bundle.staging import discard
from sync.bundle.waiting import Waiting, waiting_imports

PAGE = 10_000
IMPORTS = Path("bundles/imports")
PRESENT = "SELECT digest, size FROM blob WHERE digest > ? AND present ORDER BY digest LIMIT ?"
IMAGES = """
    SELECT count(*) FROM hold CROSS JOIN blob ON blob.digest = hold.digest
    WHERE hold.holder = ? AND blob.present AND blob.media_type IS NOT NULL AND blob.holders = 0
"""


class InventoryReport(msgspec.Struct, frozen=True):
    """What was written to `file`, of `size` bytes: that `region` has so many `digests`, of `bytes` together."""

    file: str
    region: str
    created: float
    digests: int
    bytes: int
    size: int


class HeldBase(msgspec.Struct, frozen=True):
    """What is kept of the last bundle of a series: `digests`, and the `images` and `bytes` of them that are stored."""

    series: str
    digests: int
    images: int
    bytes: int


class Released(msgspec.Struct, frozen=True):
    """The base of a series that is kept no longer."""

    series: str
    digests: int


class GivenUp(msgspec.Struct, frozen=True):
    """The imports of a series, by their plans, that go on no more, and how many digests were kept for them."""

    series: str
    plans: tuple[str, ...]
    digests: int


async def write_inventory(config: Config, path: Path) -> InventoryReport:
    """Write what is stored here, read in pages, beside a mirror that runs. Raises OSError."""
    async with opened_store(config) as (store, _):
        created = time.time()
        pages = _Pages()
        header = InventoryHeader(config.region, created)

        def write(connection: sqlite3.Connection) -> tuple[int, int]:
            return write_digests(path, header, pages.read(connection)), path.stat().st_size

        digests, size = await store.catalog.read(write)
    return InventoryReport(str(path), config.region, created, digests, pages.bytes, size)


async def list_bases(config: Config) -> tuple[HeldBase, ...]:
    """Return what is kept as bases of bundles. Raises OSError."""

    def read(connection: sqlite3.Connection) -> tuple[HeldBase, ...]:
        return tuple(
            HeldBase(series, one.digests, connection.execute(IMAGES, (one.name,)).fetchone()[0], one.bytes)
            for series, one in holding.bases(holding.holders(connection))
        )

    async with opened_store(config) as (store, _):
        return await store.catalog.read(read)


async def release_base(config: Config, series: str) -> Released:
    """Let eviction have what is kept as the base of a series. Raises BundleError where nothing is, OSError."""
    async with opened_store(config) as (store, _):
        let_go = await store.catalog.write(lambda transaction: holding.release(transaction, f"{holding.BASE}{series}"))
        if not let_go:
            kept = [name for name, _ in holding.bases(await store.catalog.read(holding.holders))]
            others = f"kept are those of {', '.join(kept)}" if kept else "no base is kept here"
            raise BundleError(f"nothing is kept as the base of the series {series}: {others}")
    return Released(series, let_go)


async def list_unfinished(config: Config) -> tuple[Waiting, ...]:
    """Return the imports that have begun and not ended."""
    return await asyncio.to_thread(waiting_imports, config.data / IMPORTS)


async def give_up(config: Config, series: str) -> GivenUp:
    """Forget the imports of a series that have begun and not ended, and let eviction have what they brought.

    Raises BundleError where there is none, or one is running; OSError.
    """
    waiting = [one for one in await list_unfinished(config) if one.series == series]
    if not waiting:
        raise BundleError(f"no import of the series {series} is under way: entrepot bundle release shows which are")
    digests = 0
    async with opened_store(config) as (store, _):
        for one in waiting:
            name = Digest(one.plan).hex
            if not await asyncio.to_thread(discard, config.data / IMPORTS, name):
                raise BundleError(f"an import of {series} is running: end it first, or let it come to its end")
            digests += await release(store.catalog, name)
    return GivenUp(series, tuple(one.plan for one in waiting), digests)


class _Pages:
    """State: the bytes of the blobs that were read so far."""

    def __init__(self) -> None:
        self.bytes = 0

    def read(self, connection: sqlite3.Connection) -> Iterator[str]:
        """Give the digests of all stored blobs in order; between two pages nothing is held in the catalog."""
        after = ""
        while rows := connection.execute(PRESENT, (after, PAGE)).fetchall():
            for digest, size in rows:
                self.bytes += size
                yield digest
            after = rows[-1][0]
