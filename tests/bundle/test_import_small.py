"""Small blobs of a bundle, stored many at once: what syncs they cost, what others left of them, one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.disk import Disk
from proxy.store.store import Store
from proxy.store.together import MOST
from sync.bundle.errors import Damaged
from sync.bundle.layout import BlobPart, DocumentPart, Entry
from sync.bundle.small import MOST_BYTES, SMALL, is_small, turns
from tests.bundle.site import Site
from tests.bundle.writing import make_bundle
from tests.support.contents import blob, make_image

ALPINE = Repository("docker.io", "library/alpine")
MANY = [(f"{ALPINE}:{number}", make_image([blob(300, seed=number), blob(60)])) for number in range(40)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@given(st.lists(st.tuples(st.sampled_from(["whole", "slice", "document"]), st.integers(0, 2 * SMALL)), max_size=200))
def test_every_entry_has_its_turn_in_order_and_only_small_whole_blobs_share_one(told: list[tuple[str, int]]) -> None:
    entries = []
    for at, (kind, size) in enumerate(told):
        part = DocumentPart(0) if kind == "document" else BlobPart(at, 0, whole=kind == "whole")
        entries.append(Entry(f"entry {at}", size, at, part))
    cut = list(turns(entries))
    assert [entry for turn in cut for entry in turn] == entries
    for turn in cut:
        assert len(turn) == 1 or all(is_small(entry) for entry in turn)
        assert 1 <= len(turn) <= MOST
        assert sum(entry.size for entry in turn) <= max(MOST_BYTES, turn[0].size)


async def test_many_small_blobs_cost_few_syncs(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle,) = make_bundle(tmp_path, MANY)
    synced: list[Path] = []
    whole = Disk.fsync_folder

    def counted(disk: Disk, path: Path) -> None:
        synced.append(path)
        whole(disk, path)

    monkeypatch.setattr(Disk, "fsync_folder", counted)
    await site.take(bundle)
    assert len(site.stored()) > 80
    assert len(site.tags()) == 40
    assert synced.count(site.data / "ingest") < 12
    assert not site.leftovers()


@pytest.mark.parametrize("which", ["manifest", "layer"])
async def test_what_another_attempt_has_left_of_a_small_blob_is_gone(site: Site, tmp_path: Path, which: str) -> None:
    (bundle,) = make_bundle(tmp_path, MANY)
    image = MANY[7][1]
    body = image.body if which == "manifest" else image.blobs[0]
    store = await Store.open(site.data)
    spool = await store.begin(Digest.of(body), len(body), ALPINE)
    spool.write(0, body[:20])
    await store.park(spool)
    await store.close()
    assert site.leftovers()
    await site.take(bundle)
    assert not site.leftovers()
    assert len(site.tags()) == 40


async def test_a_small_blob_that_is_wrong_is_named_and_nothing_is_shown(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, MANY)
    wrong = MANY[30][1].blobs[1]
    body = bundle.read_bytes()
    bundle.write_bytes(body.replace(wrong, bytes([wrong[0] ^ 1]) + wrong[1:]))
    with pytest.raises(Damaged, match=str(Digest.of(wrong))):
        await site.take(bundle)
    assert not site.tags()
    bundle.write_bytes(body)
    await site.take(bundle)
    assert len(site.tags()) == 40
    assert not site.leftovers()
