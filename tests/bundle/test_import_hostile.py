"""Bundles that are damaged, altered, of strangers, or ask for what they may not have: refused, and nothing is shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from entrepot.beside import opened_store
from entrepot.config import BundlesConfig, TrustedKeyConfig
from entrepot.control import open_control
from entrepot.mirror import mirror
from proxy.cache.readthrough import open_cache
from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store.store import Store
from sync.bundle.errors import BundleError, Damaged, Interrupted, Refused, Untrusted
from sync.bundle.keys import PrivateKey
from tests.bundle.site import Site, flipped, without
from tests.bundle.writing import make_bundle, plan_of, write_bundle
from tests.support.contents import blob, make_image
from tests.support.volumes import tmpfs

ALPINE = Repository("docker.io", "library/alpine")
SECRET = Repository("docker.io", "team/secret")
IMAGE = make_image([blob(60_000), blob(70, seed=1)])
IMAGES = [(f"{ALPINE}:3", IMAGE)]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def key(tmp_path: Path) -> PrivateKey:
    made = PrivateKey.new()
    made.public.save(tmp_path / "ours.pub")
    return made


async def test_a_registry_or_repository_that_is_not_mirrored_here_is_refused(tmp_path: Path) -> None:
    images = [(f"{ALPINE}:3", IMAGE), ("registry.example/a/b:1", IMAGE)]
    (bundle,) = make_bundle(tmp_path, images)
    site = Site(tmp_path)
    hub, *others = site.config.upstreams
    site.configure(upstreams=(msgspec.structs.replace(hub, deny=("library/*",)), *others))
    with pytest.raises(Refused, match=r"the operator denies library/\*") as refused:
        await site.take(bundle)
    assert "add registry.example as an [[upstream]]" in str(refused.value)
    assert not site.stored()


async def test_a_key_brings_only_its_own_repositories(site: Site, tmp_path: Path, key: PrivateKey) -> None:
    bundle = make_bundle(tmp_path, IMAGES, key=key)
    trusted = TrustedKeyConfig(name="ours", file=tmp_path / "ours.pub", repositories=("docker.io/team/*",))
    site.configure(trusted_keys=(trusted,))
    with pytest.raises(Refused, match="not among the repositories that the key ours may bring"):
        await site.take(*bundle)
    site.configure(trusted_keys=(msgspec.structs.replace(trusted, repositories=("docker.io/library/*",)),))
    (done,) = (await site.take(*bundle)).bundles
    assert done.signature == "ours"


async def test_a_trusted_key_implies_that_a_signature_is_required(site: Site, tmp_path: Path, key: PrivateKey) -> None:
    bare = make_bundle(tmp_path, IMAGES)
    await site.take(*bare, dry_run=True)
    for asked in ({"verify_keys": (tmp_path / "ours.pub",)}, {"require_signature": True}):
        with pytest.raises(Untrusted, match="not signed"):
            await site.take(*bare, **asked)
    site.configure(bundles=BundlesConfig(require_signature=False))
    (done,) = (await site.take(*bare, verify_keys=(tmp_path / "ours.pub",))).bundles
    assert done.published
    assert done.note is not None


async def test_a_blob_that_is_neither_brought_nor_required_is_refused_beforehand(site: Site, tmp_path: Path) -> None:
    plan, bodies, documents = plan_of(IMAGES)
    lost = str(Digest.of(IMAGE.blobs[1]))
    plan = msgspec.structs.replace(plan, blobs=tuple(one for one in plan.blobs if one.digest != lost))
    with pytest.raises(Refused, match=f"{lost} \\(named by {IMAGE.digest}\\)"):
        await site.take(*write_bundle(tmp_path, plan, bodies, documents))
    assert not site.stored()
    assert not site.leftovers()


@pytest.mark.parametrize("claimed", [ALPINE, SECRET])
async def test_a_private_blob_of_another_repository_is_given_only_to_whom_we_trust(
    site: Site, tmp_path: Path, key: PrivateKey, claimed: Repository
) -> None:
    """A bundle may say that the blob is required in its own repository, or in the one that has it (P43)."""
    await site.take(*make_bundle(tmp_path, [(f"{SECRET}:1", IMAGE)], stem="secret"))
    stolen = {str(Digest.of(IMAGE.blobs[1]))}
    plan, bodies, documents = plan_of([(f"{ALPINE}:3", IMAGE), (f"{SECRET}:2", make_image([blob(40, seed=3)]))])
    plan = without(plan, stolen)
    place = plan.repositories.index(str(claimed))
    required = tuple(msgspec.structs.replace(one, repository=place) for one in plan.requires)
    plan = msgspec.structs.replace(plan, requires=required)
    before = site.stored()
    with pytest.raises(Refused, match="not signed by a trusted key"):
        await site.take(*write_bundle(tmp_path, plan, bodies, documents, stem="thief"))
    assert site.stored() == before
    assert f"{ALPINE}:3" not in site.tags()
    assert not {(repository, digest) for repository, digest in site.members() if digest in stolen} - {
        (str(SECRET), digest) for digest in stolen
    }
    signed = write_bundle(tmp_path, plan, bodies, documents, stem="signed", key=key)
    (done,) = (await site.take(*signed, verify_keys=(tmp_path / "ours.pub",))).bundles
    assert done.published
    assert stolen <= {digest for repository, digest in site.members() if repository == str(ALPINE)}


async def test_a_flipped_bit_of_a_layer_names_volume_and_blob(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    wrong = flipped(bundle, bundle.read_bytes().index(IMAGE.blobs[1]) + 7, tmp_path / "wrong.tar")
    with pytest.raises(Damaged, match=rf"volume 1 \(wrong.tar\).*{Digest.of(IMAGE.blobs[1])}"):
        await site.take(wrong)
    assert not site.tags()
    assert (await site.take(bundle)).bundles[0].published  # it goes on with a good copy
    assert not site.leftovers()


async def test_a_flipped_bit_is_found_though_the_blob_is_stored_already(site: Site, tmp_path: Path) -> None:
    await site.take(*make_bundle(tmp_path, [(f"{SECRET}:1", IMAGE)], stem="before"))
    (bundle,) = make_bundle(tmp_path, IMAGES)
    wrong = flipped(bundle, bundle.read_bytes().index(IMAGE.blobs[1]) + 7, tmp_path / "wrong.tar")
    with pytest.raises(Damaged, match=str(Digest.of(IMAGE.blobs[1]))):
        await site.take(wrong)
    assert f"{ALPINE}:3" not in site.tags()


async def test_a_slice_that_is_wrong_is_named_and_not_set_aside(site: Site, tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=50_000)
    body = volumes[1].read_bytes()
    at = body.index(IMAGE.blobs[1][-1000:])
    wrong = flipped(volumes[1], at, tmp_path / "wrong.tar")
    for paths in ([wrong], [volumes[0], wrong]):
        with pytest.raises(Damaged, match=rf"volume 2 \(wrong.tar\).*{Digest.of(IMAGE.blobs[1])}"):
            await site.take(*paths)
        assert not site.tags()
    assert (await site.take(*volumes)).bundles[0].published


@settings(max_examples=8)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_shows_nothing(tmp_path_factory: pytest.TempPathFactory, at: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    (bundle,) = make_bundle(folder, [(f"{ALPINE}:3", make_image([blob(2000)]))])
    body = bytearray(bundle.read_bytes())
    body[int(at * len(body))] ^= 1 << bit
    bundle.write_bytes(body)
    site = Site(folder)
    with pytest.raises(BundleError):
        asyncio.run(site.take(bundle))
    assert not site.tags()
    assert not site.members() or not site.half()


async def test_a_volume_that_is_cut_off_shows_nothing(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    (tmp_path / "short.tar").write_bytes(bundle.read_bytes()[:30_000])
    with pytest.raises(Damaged, match=r"short\.tar"):
        await site.take(tmp_path / "short.tar")
    assert not site.tags()


async def test_there_must_be_room_for_all_of_it(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    site.configure(quota=20_000)
    with pytest.raises(Refused, match=f"needs {plan_of(IMAGES)[0].size} bytes and may have 20000"):
        await site.take(bundle)
    assert not site.stored()
    site.configure(quota=100_000)
    await site.take(bundle)
    (other,) = make_bundle(tmp_path, [(f"{SECRET}:1", make_image([blob(80_000, seed=4)]))], stem="other", series="o")
    with pytest.raises(Refused, match="there is no room"):  # what was imported is held as a base
        await site.take(other)


async def test_clients_of_a_mirror_pull_what_is_imported_beside_it_at_once(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    site.configure(offline=True)
    async with mirror(site.config) as running, open_control(running):
        await site.take(bundle)
        found = await running.cache.manifest(ALPINE, Tag("3"))
        assert found.descriptor.digest == IMAGE.digest
        for data in IMAGE.blobs:
            assert (await running.cache.stat_blob(ALPINE, Digest.of(data))).size == len(data)


async def test_an_import_ends_with_the_mirror_beside_which_it_runs(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    site.configure(offline=True)
    begun = asyncio.Event()

    class Told(list[object]):
        def append(self, event: object) -> None:
            begun.set()

    async with mirror(site.config) as running:
        async with open_control(running):
            # Another fills the blob, and does not come to an end.
            claim = await running.store.claim(Digest.of(IMAGE.blobs[1]))
            assert claim is not None
            site.told = Told()  # type: ignore[assignment]
            work = asyncio.ensure_future(site.take_again(bundle))
            await begun.wait()
        with pytest.raises(Interrupted, match="same command again"):
            await work
        await running.store.release(claim)
    assert not site.tags()
    assert (await site.take(bundle)).bundles[0].published


async def test_a_blob_that_is_fetched_by_a_client_meanwhile_is_taken_once(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    source = MemorySource("upstream")
    layer = source.add_blob(ALPINE, IMAGE.blobs[1]).digest
    async with mirror(site.config) as running, open_control(running), opened_store(site.config) as (store, _):
        async with open_cache(store, {ALPINE.upstream: [source]}, emit=print) as cache:
            size, report = await asyncio.gather(cache.ensure_blob(ALPINE, layer), site.take(bundle))
        assert size == len(IMAGE.blobs[1])
        assert report.bundles[0].published
    assert not site.half()
    assert not site.leftovers()


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "small", 16 << 20) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.needs("root", "mount")
async def test_a_disk_that_fills_up_meanwhile_is_told_and_the_import_goes_on_later(
    small_volume: Path, tmp_path: Path
) -> None:
    image = make_image([blob(3 << 20, seed) for seed in range(2)])
    (bundle,) = make_bundle(tmp_path, [(f"{ALPINE}:3", image)])
    site = Site(small_volume)
    await site.take(*make_bundle(tmp_path, IMAGES, stem="first"))
    stats = os.statvfs(small_volume)
    somebody = small_volume / "somebody"

    def fill_up(_: object) -> None:
        if not somebody.exists():
            with somebody.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, stats.f_bavail * stats.f_frsize - (2 << 20))

    site.told = type("Filler", (list,), {"append": lambda self, event: fill_up(event)})()
    with pytest.raises(BundleError, match=r"stays|room"):
        await site.take_again(bundle)
    assert set(site.tags()) == {f"{ALPINE}:3"}
    assert not site.half()
    await asyncio.to_thread(somebody.unlink)
    assert (await site.take(bundle, force=True)).bundles[0].published
    store = await Store.open(site.data)
    try:
        assert not (await store.verify()).corrupt
    finally:
        await store.close()
