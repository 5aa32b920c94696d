"""Records of many repositories taken over at once, as a bundle brings them: all or none, and tags seen anew."""

from __future__ import annotations

import msgspec
import pytest

from proxy.oci.names import Repository, Tag
from proxy.store.catalog import Catalog
from proxy.store.errors import Pinned
from proxy.store.exchanged import TagChange
from proxy.store.writer import Transaction
from tests.store.contents import ALPINE, digest
from tests.store.test_feed import LATEST, image, tag as tag_of

OTHER = Repository("docker.io", "library/other")


def tag(seq: int, version: int, name: str) -> TagChange:
    said = tag_of(seq, version, name)
    return msgspec.structs.replace(said, digest=str.__str__(said.digest or ""))


async def pointed(catalog: Catalog, repository: Repository) -> str | None:
    record = await catalog.tag(repository, LATEST)
    return None if record is None else str(record.digest)


async def test_tags_of_many_repositories_move_in_one_transaction(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("old"), 1.0)
    assert await pointed(catalog, ALPINE) == digest("old")
    told = [(ALPINE, [tag(0, 1 << 40, "new")]), (OTHER, [tag(0, 1 << 40, "new")])]
    moves = catalog.moves

    def refuse(transaction: Transaction) -> None:
        raise Pinned("not now", [])

    with pytest.raises(Pinned):
        await catalog.apply_all(told, also=refuse)
    assert (await pointed(catalog, ALPINE), await pointed(catalog, OTHER)) == (digest("old"), None)
    assert catalog.moves == moves
    merged = await catalog.apply_all(told)
    assert merged.tags == 2
    assert (await pointed(catalog, ALPINE), await pointed(catalog, OTHER)) == (digest("new"), digest("new"))
    assert catalog.moves != moves


async def test_an_older_tag_stays_back_unless_it_counts_as_seen_now(catalog: Catalog) -> None:
    await catalog.apply_all([(ALPINE, [tag(0, 9 << 40, "new")])])
    await catalog.apply_all([(ALPINE, [tag(0, 8 << 40, "older")])])
    assert await pointed(catalog, ALPINE) == digest("new")
    merged = await catalog.apply_all([], [(ALPINE, Tag(LATEST), image("older"))])
    assert merged.tags == 1
    assert await pointed(catalog, ALPINE) == digest("older")
    assert (await catalog.apply_all([], [(ALPINE, Tag(LATEST), image("older"))])).tags == 0
