"""What a crash or a failure in the middle of an eviction leaves is put right."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from metrics.events import ignore
from proxy.oci.digest import Digest
from proxy.store import sweep
from proxy.store.eviction import Order
from proxy.store.store import Store
from proxy.store.sweep import sweeping
from tests.store.contents import digest
from tests.store.evicting import blob, image, present


async def test_a_crash_between_the_move_and_the_transaction_brings_the_file_back(store: Store, root: Path) -> None:
    await blob(store, "kept", 10)
    await store.close()
    os.rename(store._files.layout.blob(digest("kept")), store._files.layout.trashed(digest("kept"), 7))
    again = await Store.open(root)
    assert await present(again, "kept") == {"kept"}
    assert os.listdir(root / "trash") == []
    await again.close()


async def test_a_crash_after_the_transaction_removes_the_file_wherever_it_is(store: Store, root: Path) -> None:
    await blob(store, "moved", 10)
    await blob(store, "back", 10)
    order = Order("quota")
    thrown: list[tuple[Digest, int]] = []
    await store.catalog.evict(order, lambda digest, number: thrown.append((digest, number)))
    await store.close()
    number = dict(thrown)[digest("moved")]
    os.rename(store._files.layout.blob(digest("moved")), store._files.layout.trashed(digest("moved"), number))
    again = await Store.open(root)  # a power loss had put `back` into its place again
    assert await present(again, "moved", "back") == set()
    assert os.listdir(root / "trash") == []
    assert (await again.verify()).unknown == []
    await again.close()


async def test_what_a_killed_process_had_moved_without_a_transaction_is_served_at_once(store: Store) -> None:
    await blob(store, "kept", 10)
    os.rename(store._files.layout.blob(digest("kept")), store._files.layout.trashed(digest("kept"), 7))
    assert await store.open_blob(digest("kept")) is None
    assert await present(store, "kept") == {"kept"}
    stored = await store.open_blob(digest("kept"))
    assert stored is not None
    stored.close()


async def test_what_a_killed_process_had_still_to_remove_goes_without_a_restart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blob(store, "kept", 10)
    os.rename(store._files.layout.blob(digest("kept")), store._files.layout.trashed(digest("kept"), 7))
    store._files.layout.trashed(digest("gone"), 8).write_bytes(b"x")
    monkeypatch.setattr(sweep, "TRASH_SECONDS", -1.0)
    emptied, empty = asyncio.Event(), store.empty_trash

    async def noted(moment: float) -> int:
        count = await empty(moment)
        emptied.set()
        return count

    monkeypatch.setattr(store, "empty_trash", noted)
    async with sweeping(store, 1000, ignore), asyncio.timeout(30):
        await emptied.wait()
    assert os.listdir(store._files.layout.trash) == []
    assert await present(store, "kept") == {"kept"}


async def test_what_came_after_an_eviction_that_a_backup_tells_of_is_not_removed(store: Store, root: Path) -> None:
    await blob(store, "again", 10)
    await store.catalog.evict(Order("quota"), lambda digest, number: None)
    await store.back_up()
    os.unlink(store._files.layout.blob(digest("again")))
    await blob(store, "again", 10)
    await store.close()
    (root / "catalog.sqlite").write_bytes(b"\xa5" * 5000)
    again = await Store.open(root)
    assert store._files.layout.blob(digest("again")).exists()
    await again.close()


async def test_a_transaction_that_fails_leaves_every_file_in_its_place(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await image(store, "one", "a")
    throw = store._trash.throw

    def broken(what: Digest, number: int) -> None:
        throw(what, number)
        if what == digest("a"):
            raise OSError(5, "the disk failed")

    monkeypatch.setattr(store._trash, "throw", broken)
    with pytest.raises(OSError, match="the disk failed"):
        await store.evict(Order("quota"))
    assert await present(store, "one", "a") == {"one", "a"}
