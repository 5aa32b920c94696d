"""What regions compare: the rows that triggers keep, and what a record of another region changes here."""

from __future__ import annotations

import pytest

from proxy.oci.names import Tag
from proxy.store import feed, roots
from proxy.store.catalog import Catalog, Proof
from proxy.store.errors import Pinned
from proxy.store.exchanged import MembershipChange, Past, TagChange
from proxy.store.roots import Marks
from tests.store.contents import ALPINE, child, digest, parsed, put
from tests.store.test_feed import LATEST, image, tag

Rooted = set[tuple[str, int, int]]


async def records(catalog: Catalog) -> list[TagChange | MembershipChange]:
    page = await catalog.read(lambda connection: feed.read_page(connection, catalog.epoch, 0, 1000))
    told = (record for record in page.records if isinstance(record, TagChange | MembershipChange))
    return [record for record in told if isinstance(record, TagChange) or record.root is not None]


async def kept(catalog: Catalog) -> Rooted:
    statement = "SELECT key, place, mark FROM root WHERE peer = 0"
    return set(await catalog.read(lambda connection: connection.execute(statement).fetchall()))


async def agree(catalog: Catalog) -> Rooted:
    """Return the rows of own roots, which are those of the records, and add up to the fingerprint."""
    marks = Marks(catalog.mesh)
    told = {marks.of(ALPINE, record) for record in await records(catalog)}
    assert await kept(catalog) == told
    low, high = (sum((mark >> shift) & 0xFFFFFFFF for _, _, mark in told) for shift in (0, 32))
    statement = "SELECT low, high, records FROM fingerprint WHERE peer = 0 AND repository = 0"
    assert await catalog.read(lambda connection: connection.execute(statement).fetchall()) == [(low, high, len(told))]
    return told


async def test_tags_and_what_nothing_names_are_roots_and_their_marks_follow_every_change(catalog: Catalog) -> None:
    await put(catalog, "index", parsed("index", child("image", "manifest")))
    await put(catalog, "image", parsed("image", child("layer")))
    await put(catalog, "layer")
    await put(catalog, "signature", parsed("artifact", subject="index"))
    await catalog.put_tag(ALPINE, LATEST, image("index"), 10.0)
    before = await agree(catalog)
    assert {key for key, _, _ in before} == {f"t:{LATEST}", f"m:{digest('index')}", f"m:{digest('signature')}"}
    assert {record.root for record in await records(catalog) if isinstance(record, MembershipChange)} == {
        "",
        digest("index"),
    }
    await catalog.put_tag(ALPINE, LATEST, image("other"), 11.0)
    assert len(before & await agree(catalog)) == 2
    await catalog.put_tag(ALPINE, LATEST, image("other"), 12.0)
    await catalog.remove(ALPINE, digest("index"))
    assert len(before & await agree(catalog)) == 1


async def test_what_was_proven_before_it_was_known_becomes_a_root(catalog: Catalog) -> None:
    await catalog.prove(ALPINE, digest("image"), Proof.HEAD)
    assert await kept(catalog) == set()
    await put(catalog, "image", parsed("image", child("layer")), repository=None)
    assert {key for key, _, _ in await agree(catalog)} == {f"m:{digest('image')}"}


async def test_another_mesh_key_makes_all_rows_anew_step_by_step(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "STEP_ROWS", 2)
    for number in range(5):
        await put(catalog, f"image {number}", parsed("image", child("layer")))
        await catalog.put_tag(ALPINE, Tag(f"v{number}"), image(f"image {number}"), 10.0)
    before = await agree(catalog)
    await catalog.rekey(b"k" * 32)
    assert catalog.mesh == b"k" * 32
    after = await agree(catalog)
    assert len(after) == len(before) == 10
    assert not after & before


async def test_a_removal_of_another_region_takes_what_it_named_and_stops_before_a_pin(catalog: Catalog) -> None:
    await put(catalog, "image", parsed("image", child("layer")))
    await put(catalog, "layer")
    version = max(record.version for record in await records(catalog)) + 10
    gone = MembershipChange(0, 0, digest("image"), version, True, Proof.FETCHED, 5.0, "")
    await catalog.pin(ALPINE, digest("image"))
    with pytest.raises(Pinned, match="unpin it"):
        await catalog.apply(ALPINE, [tag(0, 7, "one"), gone])
    assert await catalog.tag(ALPINE, LATEST) is None
    await catalog.unpin(ALPINE, digest("image"))
    done: list[bool] = []
    merged = await catalog.apply(ALPINE, [gone], lambda transaction: done.append(True))
    assert (merged.memberships, done) == (1, [True])
    assert not await catalog.has_membership(ALPINE, digest("layer"))
    assert await catalog.read(lambda connection: not feed.is_news(connection, 1, gone))


async def test_a_removal_that_is_heard_late_takes_nothing_that_was_proven_since(catalog: Catalog) -> None:
    for name in ("old", "young"):
        await put(catalog, name, parsed("image"))
    await put(catalog, "index", parsed("index", child("old", "manifest"), child("young", "manifest")))
    version = max(record.version for record in await records(catalog)) + 10
    gone = MembershipChange(0, 0, digest("index"), version, True, Proof.FETCHED, 5.0, "")
    again = MembershipChange(0, 0, digest("young"), version + 1, False, Proof.FETCHED, 5.0, "")
    await catalog.apply(ALPINE, [again])
    await catalog.apply(ALPINE, [gone])
    said = {record.digest: record.rank for record in await records(catalog) if isinstance(record, MembershipChange)}
    assert said == {
        digest("index"): (version, False),
        digest("old"): (version, False),  # as wherever else this removal is carried out
        digest("young"): (version + 1, True),
    }
    await agree(catalog)


async def test_an_older_removal_of_what_is_a_root_elsewhere_only_makes_it_one_here(catalog: Catalog) -> None:
    await put(catalog, "index", parsed("index", child("image", "manifest")))
    await put(catalog, "image", parsed("image"))
    await catalog.apply(ALPINE, [MembershipChange(0, 0, digest("image"), 5, True, Proof.FETCHED, 5.0, "")])
    assert await catalog.has_membership(ALPINE, digest("image"))
    assert {key for key, _, _ in await agree(catalog)} == {f"m:{digest('index')}", f"m:{digest('image')}"}


async def test_a_move_that_lost_is_listed_and_a_tag_tells_what_it_was(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    await catalog.put_tag(ALPINE, LATEST, image("two"), 11.0)
    mine = await catalog.tag_change(ALPINE, LATEST)
    assert mine is not None
    await catalog.apply(ALPINE, [tag(0, mine.version + 1, "three")])
    (conflict,) = await catalog.conflicts(10)
    assert (conflict.digest, conflict.origin, conflict.winner) == (digest("two"), "local", digest("three"))
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert (record.digest, record.past) == (digest("three"), (digest("two"), digest("one")))


async def test_who_hears_of_both_moves_at_once_lists_what_lost_and_not_what_that_followed(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    known = await catalog.tag_change(ALPINE, LATEST)
    assert known is not None
    base = known.version

    def was(name: str, version: int, before: int) -> Past:
        return Past(str(digest(name)), 0, version, before, "b", image(name).media_type, image(name).size, 11.0)

    others = (was("lost", base + 2, base + 1), was("before", base + 1, base), was("one", base, 0))
    won = image("won")
    told = TagChange(0, 0, "latest", base + 3, won.digest, won.media_type, won.size, "c", 12.0, 12.0, 0, base, others)
    await catalog.apply(ALPINE, [told])
    assert [conflict.digest for conflict in await catalog.conflicts(10)] == [digest("lost")]
