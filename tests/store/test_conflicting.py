"""The list of conflicts is bounded, and tells each once."""

from __future__ import annotations

import time

import pytest

from proxy.oci.names import Tag
from proxy.store import conflicting
from proxy.store.catalog import Catalog
from proxy.store.exchanged import TagChange
from tests.store.contents import ALPINE, TYPES, digest
from tests.store.test_feed import image

NOW = 1_700_000_000.0


async def lose(catalog: Catalog, tag: str, at: float) -> TagChange:
    """See a tag here, and hear that another region moved it later without knowing; return what that said."""
    await catalog.put_tag(ALPINE, Tag(tag), image("here"), at)
    mine = await catalog.tag_change(ALPINE, Tag(tag))
    assert mine is not None
    said = TagChange(0, 0, tag, mine.version + 1, str(digest("there")), TYPES["image"], 5, "eu", at, at)
    await catalog.apply(ALPINE, [said])
    return said


async def found(catalog: Catalog) -> list[str]:
    return [str(conflict.tag) for conflict in await catalog.conflicts(100)]


async def test_the_newest_are_kept(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicting, "MOST", 3)
    clock = iter(range(100))
    monkeypatch.setattr(time, "time", lambda: NOW + next(clock))
    for number in range(6):
        await lose(catalog, f"v{number}", NOW)
    assert await found(catalog) == ["v5", "v4", "v3"]


async def test_many_of_one_moment_are_bounded_too(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicting, "MOST", 3)
    monkeypatch.setattr(time, "time", lambda: NOW)
    for number in range(6):
        await lose(catalog, f"v{number}", NOW)
    assert len(await found(catalog)) == 3


async def test_old_ones_go(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    await lose(catalog, "old", NOW)
    monkeypatch.setattr(time, "time", lambda: NOW + conflicting.KEPT_SECONDS + 1)
    await lose(catalog, "new", NOW)
    assert await found(catalog) == ["new"]


async def test_what_is_heard_again_is_told_once(catalog: Catalog) -> None:
    said = await lose(catalog, "latest", NOW)
    await catalog.apply(ALPINE, [said])
    assert await found(catalog) == ["latest"]
