"""Files of evicted blobs on their way out. Everything here but `settle` blocks and belongs in threads.

A file leaves its place inside the very transaction that marks its blob absent (an attempt at the same blob cannot
begin in between, so no newer file is ever taken), is removed from `trash/` afterwards, and only once its shelf is
synced the catalog forgets the row that speaks of it. So after any crash a file in `trash/` either goes, or, where the
transaction never came to be, goes back (at once if it is asked for, else with the next `settle`); and a file that a
power loss put back into its place goes by its row.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from proxy.oci.digest import Digest
from proxy.oci.errors import DigestInvalid
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.eviction import Order, Step
from proxy.store.layout import Layout
from proxy.store.writer import Transaction

Thrown = tuple[Digest, int]

_log = logging.getLogger(__name__)


class Trash:
    """The folder `trash/`. Every file in it is named by its digest and a number that never comes again."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk

    def throw(self, digest: Digest, number: int) -> None:
        """Take a blob's file out of its place. Nothing to do where there is none."""
        with suppress(FileNotFoundError):
            self._disk.rename(self._layout.blob(digest), self._layout.trashed(digest, number))

    def take_back(self, thrown: Iterable[Thrown]) -> None:
        """Put files back where nothing has taken their place."""
        for digest, number in thrown:
            place = self._layout.blob(digest)
            if not place.exists():
                with suppress(FileNotFoundError):
                    self._disk.rename(self._layout.trashed(digest, number), place)
                    self._disk.fsync_folder(place.parent)

    def restore(self, digest: Digest) -> bool:
        """Put back what was thrown by a process that was killed before its transaction came to be; True if there was.

        For the writer's thread, of a blob that counts as stored.
        """
        name = self._layout.trashed(digest, 0).stem
        thrown = [_parse(other) for other in os.listdir(self._layout.trash) if other.startswith(f"{name}.")]
        self.take_back(one for one in thrown if one is not None)
        return self._layout.blob(digest).exists()

    def remove(self, thrown: Iterable[Thrown]) -> None:
        """Remove files for good, and make sure that no power loss brings them back to their place."""
        shelves: set[Path] = set()
        for digest, number in thrown:
            self._disk.unlink(self._layout.trashed(digest, number))
            shelves.add(self._layout.blob(digest).parent)
        for shelf in shelves:
            with suppress(FileNotFoundError):
                self._disk.fsync_folder(shelf)

    def remove_in_place(self, digest: Digest) -> None:
        """Remove a file that a power loss has put back."""
        place = self._layout.blob(digest)
        if place.exists():
            self._disk.unlink(place)
            self._disk.fsync_folder(place.parent)

    def older_than(self, moment: float) -> list[Thrown]:
        """Return what was thrown before `moment`, in seconds since the epoch."""
        found: list[Thrown] = []
        for name in os.listdir(self._layout.trash):
            path = self._layout.trash / name
            with suppress(FileNotFoundError):
                if path.stat(follow_symlinks=False).st_ctime >= moment:
                    continue
                thrown = _parse(name)
                if thrown is None:
                    self._disk.unlink(path)
                else:
                    found.append(thrown)
        return found


async def evict(catalog: Catalog, trash: Trash, order: Order) -> Step:
    """Carry out a step of an eviction, files and all. Not to be cancelled half-way: an `Owned` runs it."""
    thrown: list[Thrown] = []

    def move(digest: Digest, number: int) -> None:
        thrown.append((digest, number))
        trash.throw(digest, number)

    try:
        step = await catalog.evict(order, move)
    except BaseException:
        await asyncio.to_thread(trash.take_back, thrown)
        raise
    await asyncio.to_thread(trash.remove, step.moved)
    if step.next is not None:
        step.next = replace(step.next, cleared=tuple(step.moved))
    elif step.moved:
        await catalog.write(partial(_forget, step.moved))
    return step


async def settle(trash: Trash, catalog: Catalog, moment: float) -> int:
    """Put right what was thrown before `moment` and is still there; return how many files went."""
    gone: list[Thrown] = []
    for digest, number in await asyncio.to_thread(trash.older_than, moment):
        await catalog.while_present(digest, partial(trash.take_back, [(digest, number)]))
        gone.append((digest, number))
    await asyncio.to_thread(trash.remove, gone)
    return len(gone)


async def recover_trash(trash: Trash, catalog: Catalog) -> None:
    """After a start, before anything else runs: empty the trash, and remove what a power loss has put back."""
    count = await settle(trash, catalog, float("inf"))
    rows = await catalog.read(_rows)
    for digest, _ in rows if catalog.replaced is None else ():
        # (A catalog that took another's place speaks of files that may have come since.)
        record = await catalog.blob(digest)
        if record is None or not record.present:
            await asyncio.to_thread(trash.remove_in_place, digest)
    if rows:
        await catalog.write(partial(_forget, rows))
    if count or rows:
        _log.info("%d evicted files were still there and were removed", max(count, len(rows)))


def _forget(thrown: Sequence[Thrown], transaction: Transaction) -> None:
    """Let the catalog forget files that are gone for good."""
    transaction.connection.executemany("DELETE FROM trash WHERE digest = ? AND number = ?", thrown)


def _rows(connection: sqlite3.Connection) -> list[Thrown]:
    return [(Digest(digest), number) for digest, number in connection.execute("SELECT digest, number FROM trash")]


def _parse(name: str) -> Thrown | None:
    stem, _, number = name.partition(".")
    try:
        return Digest.parse(stem.replace("-", ":", 1)), int(number)
    except (DigestInvalid, ValueError):
        return None
