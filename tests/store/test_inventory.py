"""What people see of the catalog, and what they decide about it: lists, trees, pins, removal."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from proxy.oci.descriptor import Descriptor
from proxy.oci.names import Repository, Tag
from proxy.oci.platforms import Platform
from proxy.store import inventory, keeping
from proxy.store.catalog import Catalog, Proof
from proxy.store.inventory import ImageRecord, Inventory
from proxy.store.schema import connect
from tests.store.contents import ALPINE, BUSYBOX, TYPES, child, digest, lose, parsed, put

AMD64 = Platform("linux", "amd64")


async def point(catalog: Catalog, tag: str, name: str, repository: Repository = ALPINE) -> None:
    await catalog.put_tag(repository, Tag(tag), Descriptor(TYPES["image"], digest(name), len(name)), 1000.0)


async def put_image(catalog: Catalog, name: str, *layers: str, repository: Repository = ALPINE) -> None:
    for layer in layers:
        await put(catalog, layer, repository=repository)
    await put(catalog, name, parsed("image", *(child(layer) for layer in layers)), repository=repository)


async def listed(catalog: Catalog) -> dict[tuple[str, str], ImageRecord]:
    pages = Inventory(catalog).images(lambda repository: True, lambda tag, digest: True)
    return {(image.repository.path, image.tag or image.digest): image async for page in pages for image in page}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    connection = connect(tmp_path_factory.mktemp("catalog") / "catalog.sqlite")
    yield connection
    connection.close()


@pytest.mark.parametrize("statement", [*inventory.STATEMENTS, *keeping.STATEMENTS])
def test_no_statement_scans_a_table(empty: sqlite3.Connection, statement: str) -> None:
    named = dict.fromkeys(re.findall(r":(\w+)", statement), 1)
    values = named or ["x"] * statement.count("?")
    plan = [row[3] for row in empty.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert any(step.startswith("SEARCH") for step in plan), plan
    tables = r"SCAN (blob|edge|other|membership|namer|tag|repository|pin)\b"
    assert [step for step in plan if re.match(tables, step)] == []


async def test_tags_and_untagged_images_are_listed_but_not_what_an_index_names(catalog: Catalog) -> None:
    await put_image(catalog, "amd64 image", "layer")
    await put(catalog, "index", parsed("index", child("amd64 image", "manifest", platform=AMD64)))
    await put_image(catalog, "untagged", "other layer", repository=BUSYBOX)
    await point(catalog, "3", "index")
    assert set(await listed(catalog)) == {("library/alpine", "3"), ("library/busybox", digest("untagged"))}


async def test_an_image_has_the_size_of_its_closure_each_blob_once_and_what_of_it_is_stored(catalog: Catalog) -> None:
    shared, own = child("shared", size=100), child("own", size=30)
    await put(catalog, "one", parsed("image", shared, own))
    await put(catalog, "two", parsed("image", shared))
    entries = (child("one", "manifest"), child("two", "manifest"))
    await put(catalog, "index", parsed("index", *entries))
    await point(catalog, "3", "index")
    (image,) = (await listed(catalog)).values()
    manifests = len("one") + len("two") + len("index")
    assert (image.size, image.stored) == (100 + 30 + manifests, manifests)


async def test_states_tell_complete_servable_partial_and_absent_apart(catalog: Catalog) -> None:
    await put_image(catalog, "whole", "layer")
    await put(catalog, "half", parsed("index", child("whole", "manifest"), child("elsewhere", "manifest")))
    await put(catalog, "lacking", parsed("image", child("not here")))
    await put_image(catalog, "evicted", "layer")
    await lose(catalog, "evicted")
    for tag in ("whole", "half", "lacking", "evicted"):
        await point(catalog, tag, tag)
    states = {key[1]: image.state for key, image in (await listed(catalog)).items()}
    assert states == {"whole": "complete", "half": "servable", "lacking": "partial", "evicted": "absent"}


async def test_of_a_tag_it_is_told_which_region_saw_it(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    await put_image(catalog, "untagged", "layer")
    await point(catalog, "3", "image")
    heard = await catalog.tag_change(ALPINE, Tag("3"))
    assert heard is not None
    await catalog.apply(ALPINE, [replace(heard, name=Tag("4"), origin="us-east")])
    origins = {reference: image.origin for (_, reference), image in (await listed(catalog)).items()}
    assert origins == {"3": "local", "4": "us-east", digest("untagged"): None}


async def test_a_long_list_comes_in_pages_and_whole(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    for number in range(inventory.PAGE + 5):
        await point(catalog, f"v{number}", "image")
    pages = Inventory(catalog).images(lambda repository: True, lambda tag, digest: True)
    sizes = [len(page) async for page in pages]
    assert sizes == [inventory.PAGE, 5]


async def test_a_pin_of_a_tag_holds_for_what_it_points_to_when_it_moves(catalog: Catalog) -> None:
    await put_image(catalog, "old", "layer")
    await put_image(catalog, "new", "layer")
    await point(catalog, "3", "old")
    assert await catalog.pin(ALPINE, Tag("3"))
    assert not await catalog.pin(ALPINE, Tag("3"))
    await point(catalog, "3", "new")
    images = await listed(catalog)
    assert images["library/alpine", "3"].pinned
    assert not images["library/alpine", digest("old")].pinned
    assert await catalog.unpin(ALPINE, Tag("3"))
    assert not await catalog.unpin(ALPINE, Tag("3"))


async def test_the_tree_goes_down_to_blobs_and_tells_what_is_missing(catalog: Catalog) -> None:
    await put(catalog, "layer")
    await put(catalog, "image", parsed("image", child("config", "config"), child("layer")))
    await put(catalog, "index", parsed("index", child("image", "manifest", platform=AMD64)))
    (entry,) = (await Inventory(catalog).tree(digest("index"))).children
    assert (entry.platform, entry.state) == ("linux/amd64", "partial")
    assert [(node.role, node.state) for node in entry.children] == [("config", "absent"), ("layer", "complete")]


async def test_facts_name_proofs_tags_parents_images_above_and_what_is_missing(catalog: Catalog) -> None:
    await put(catalog, "layer")
    await put(catalog, "image", parsed("image", child("config", "config", size=7), child("layer")))
    await put(catalog, "index", parsed("index", child("image", "manifest")))
    await point(catalog, "3", "index")
    await catalog.pin(ALPINE, Tag("3"))
    reads = Inventory(catalog)
    layer, top = await reads.facts(digest("layer")), await reads.facts(digest("index"))
    assert [(repository, proof) for repository, proof, _ in layer.proofs] == [(str(ALPINE), Proof.FETCHED)]
    assert layer.parents == ((digest("image"), "layer"),)
    assert layer.roots == ((f"{ALPINE}:3", True),)
    assert top.tags == (f"{ALPINE}:3",)
    assert top.missing == ((digest("config"), 7),)
    assert (await reads.facts(digest("never seen"))).state is None


async def test_a_removed_tag_is_a_tombstone_that_regions_hear_of_and_nobody_here_is_served(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    await point(catalog, "3", "image")
    before = await catalog.tag(ALPINE, Tag("3"))
    assert before is not None
    assert (await catalog.remove(ALPINE, Tag("3"))).tags == ("3",)
    assert await catalog.tag(ALPINE, Tag("3")) is None
    assert await catalog.list_tags(ALPINE, None, 10) == []
    rows = await catalog.read(lambda connection: connection.execute("SELECT digest, version, seq FROM tag").fetchall())
    ((left, version, seq),) = rows
    assert (left, version > before.version, seq > 0) == (None, True, True)
    assert (await catalog.remove(ALPINE, Tag("3"))).tags == ()


async def test_a_tag_can_be_pulled_again_after_it_was_removed(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    await point(catalog, "3", "image")
    await catalog.remove(ALPINE, Tag("3"))
    await point(catalog, "3", "image")
    again = await catalog.tag(ALPINE, Tag("3"))
    assert again is not None
    assert (again.digest, again.gone) == (digest("image"), False)
    assert (await catalog.totals())[4] == 1


async def test_a_removed_digest_takes_its_tags_and_what_belonged_to_it_alone(catalog: Catalog) -> None:  # P43
    await put_image(catalog, "doomed", "own", "shared")
    await put_image(catalog, "kept", "shared")
    await put_image(catalog, "elsewhere", "own", repository=BUSYBOX)
    await point(catalog, "1", "doomed")
    await point(catalog, "2", "kept")
    assert await catalog.has_membership(ALPINE, digest("own"))
    assert await catalog.named_in(ALPINE, digest("own"))
    removal = await catalog.remove(ALPINE, digest("doomed"))
    assert (removal.tags, set(removal.digests)) == (("1",), {digest("doomed"), digest("own")})
    assert not await catalog.has_membership(ALPINE, digest("own"))
    assert not await catalog.named_in(ALPINE, digest("own"))
    assert await catalog.has_membership(ALPINE, digest("shared"))
    assert await catalog.has_membership(BUSYBOX, digest("own"))
    assert set(await listed(catalog)) == {("library/alpine", "2"), ("library/busybox", digest("elsewhere"))}


async def test_what_an_image_of_its_own_tag_needs_survives_the_removal_of_an_index_above_it(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    await put(catalog, "index", parsed("index", child("image", "manifest")))
    await point(catalog, "amd64", "image")
    assert (await catalog.remove(ALPINE, digest("index"))).digests == (digest("index"),)
    assert await catalog.has_membership(ALPINE, digest("layer"))


async def test_nothing_pinned_is_removed(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    await point(catalog, "3", "image")
    await catalog.pin(ALPINE, Tag("3"))
    for reference in (Tag("3"), digest("image")):
        assert (await catalog.remove(ALPINE, reference)) == keeping.Removal(pins=("3",))
    assert await catalog.tag(ALPINE, Tag("3")) is not None
    assert await catalog.has_membership(ALPINE, digest("image"))


async def test_answers_kept_from_before_a_removal_are_void(catalog: Catalog) -> None:
    await put_image(catalog, "image", "layer")
    for reference in (Tag("3"), digest("image")):
        await point(catalog, "3", "image")
        before = catalog.moves
        await catalog.remove(ALPINE, reference)
        assert catalog.moves != before
    await put_image(catalog, "untagged", "layer")
    before = catalog.moves
    await catalog.remove(ALPINE, digest("untagged"))
    assert catalog.moves != before
