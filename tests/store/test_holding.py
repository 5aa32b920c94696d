"""Holds keep what an export, an import or the next bundle needs from eviction, until they end."""

from __future__ import annotations

import time

from proxy.store import holding
from proxy.store.eviction import Order
from proxy.store.inventory import Inventory
from proxy.store.store import Store
from tests.store.contents import digest
from tests.store.evicting import evict, image, present


async def hold(store: Store, holder: str, *names: str, until: float = holding.FOR_EVER) -> None:
    held = [digest(name) for name in names]
    await store.catalog.write(lambda transaction: holding.hold(transaction, holder, held, until))


async def test_what_is_held_stays_until_it_is_released_and_all_else_goes(store: Store) -> None:
    await image(store, "held", "a")
    await image(store, "other", "b")
    await hold(store, "base:weekly", "held", "a")
    await evict(store, Order("quota"))
    assert await present(store, "held", "a", "other", "b") == {"held", "a"}
    assert await store.catalog.write(lambda transaction: holding.release(transaction, "base:weekly")) == 2
    await evict(store, Order("quota"))
    assert await present(store, "held", "a") == set()


async def test_a_layer_alone_is_held_though_its_image_goes(store: Store) -> None:
    await image(store, "image", "a", "b")
    await hold(store, "export:1", "a")
    await evict(store, Order("quota"))
    assert await present(store, "image", "a", "b") == {"a"}


async def test_a_hold_ends_with_its_time_and_is_longer_when_renewed(store: Store) -> None:
    await image(store, "late", "a")
    await image(store, "renewed", "b")
    await hold(store, "export:1", "late", "a", until=time.time() - 1)
    await hold(store, "export:2", "renewed", "b", until=time.time() - 1)
    await store.catalog.write(lambda transaction: holding.renew(transaction, "export:2", time.time() + 100))
    await evict(store, Order("quota"))
    assert await present(store, "late", "a", "renewed", "b") == {"renewed", "b"}
    assert [one.name for one in await store.catalog.read(holding.holders)] == ["export:2"]


async def test_a_new_base_supersedes_the_one_before_and_leaves_other_series(store: Store) -> None:
    for name in ("old", "new", "monthly"):
        await image(store, name, f"{name}-layer")
    await hold(store, "base:weekly", "old", "old-layer")
    await hold(store, "base:monthly", "monthly", "monthly-layer")
    await hold(store, "import:7", "new", "new-layer", until=time.time() + 100)
    await store.catalog.write(lambda transaction: holding.turn(transaction, "import:7", "base:weekly"))
    await evict(store, Order("quota"))
    left = await present(store, "old", "old-layer", "new", "new-layer", "monthly", "monthly-layer")
    assert left == {"new", "new-layer", "monthly", "monthly-layer"}
    found = await store.catalog.read(holding.holders)
    assert [(one.name, one.digests, one.bytes, one.until) for one in found] == [
        ("base:monthly", 2, 1007, holding.FOR_EVER),
        ("base:weekly", 2, 1003, holding.FOR_EVER),
    ]
    assert [series for series, _ in holding.bases(found)] == ["monthly", "weekly"]


async def test_a_digest_tells_who_holds_it_now(store: Store) -> None:
    await image(store, "image", "a")
    await hold(store, "base:weekly", "a", "never here")
    await hold(store, "import:7", "a", until=time.time() + 100)
    await hold(store, "export:8", "a", until=time.time() - 100)
    facts = await Inventory(store.catalog).facts(digest("a"))
    assert [holder for holder, _ in facts.held] == ["base:weekly", "import:7"]
    assert [holder for holder, _ in (await Inventory(store.catalog).facts(digest("never here"))).held] == [
        "base:weekly"
    ]
