"""Bundles taken over by a site: all volumes at once and one at a time, again, older, beside fills, after a crash."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrepot.cli import main
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store.disk import Disk
from proxy.store.store import Store
from proxy.store.sweep import sweeping
from sync.bundle import importing, publishing
from sync.bundle.errors import Refused
from sync.bundle.layout import Entry
from sync.bundle.opened import open_bundles
from sync.bundle.receipts import is_receipt_of
from sync.bundle.staging import State
from sync.bundle.volume import Volume
from tests.bundle.site import Site, without
from tests.bundle.writing import make_bundle, plan_of, write_bundle
from tests.support.contents import Image, blob, make_image, make_index

ALPINE, TOOLS = "docker.io/library/alpine", "ghcr.io/team/tools"
ONE = make_image([blob(200_000), blob(70, seed=1)])
ARM = make_image([blob(120_000, seed=5)], platform="linux/arm64")
BOTH = make_index({"linux/amd64": ONE, "linux/arm64": ARM})
SIGNATURE = make_image([blob(50, seed=7)], subject=BOTH, artifact_type="application/vnd.example.signature")
IMAGES = [(f"{ALPINE}:3", BOTH), (f"{TOOLS}:1", ONE), (f"{ALPINE}@{SIGNATURE.digest}", SIGNATURE)]
SPLIT = 110_000


def closure_of(image: Image) -> set[str]:
    below = (closure_of(child) for child in image.children)
    return {str(image.digest), *(str(Digest.of(data)) for data in image.blobs)}.union(*below)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def read_all(site: Site, images: list[tuple[str, Image]]) -> None:
    """Read every image from the store alone, as clients would."""
    store = await Store.open(site.data)
    try:
        for reference, image in images:
            repository = Repository(*reference.rpartition(":")[0].partition("@")[0].split("/", 1))
            for digest in closure_of(image):
                assert await store.catalog.has_membership(repository, Digest(digest)), (reference, digest)
                assert Digest.of(await store.read_blob(Digest(digest), 1 << 20) or b"") == digest
            record = await store.catalog.blob(image.digest)
            assert record is not None
            assert record.complete
    finally:
        await store.close()


async def test_all_images_of_a_bundle_are_served_afterwards(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    report = await site.take(bundle)
    (done,) = report.bundles
    assert done.published
    assert {tag.reference: tag.change for tag in done.tags} == {f"{ALPINE}:3": "new", f"{TOOLS}:1": "new"}
    assert site.tags() == {f"{ALPINE}:3": BOTH.digest, f"{TOOLS}:1": ONE.digest}
    await read_all(site, IMAGES)
    assert not site.leftovers()
    assert site.holders() == {"base:default": len(closure_of(BOTH) | closure_of(SIGNATURE))}
    assert (tmp_path / "site.local.receipt").is_file()
    assert report.spoken == done.spoken


async def test_the_receipt_on_a_disk_that_is_used_again_is_that_of_the_bundle_on_it(site: Site, tmp_path: Path) -> None:
    receipt = tmp_path / "site.local.receipt"
    (bundle,) = make_bundle(tmp_path, [(f"{ALPINE}:3", BOTH)])
    await site.take(bundle)
    (bundle,) = make_bundle(tmp_path, [(f"{TOOLS}:1", ONE)], created=1_700_000_100)
    (done,) = (await site.take(bundle)).bundles
    assert is_receipt_of(receipt, Digest(done.plan), "local")
    written = receipt.stat().st_mtime_ns, receipt.stat().st_ino
    await site.take(bundle)
    assert (receipt.stat().st_mtime_ns, receipt.stat().st_ino) == written
    receipt.write_bytes(receipt.read_bytes()[:-1])
    await site.take(bundle)
    assert is_receipt_of(receipt, Digest(done.plan), "local")
    assert not is_receipt_of(receipt, Digest(done.plan), "another")


async def test_the_same_bundle_again_changes_nothing_and_reads_no_blob(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    await site.take(bundle)
    before = site.seq()

    def refuse(*_: object) -> None:
        raise AssertionError("a blob was read")

    monkeypatch.setattr(importing, "Intake", refuse)
    monkeypatch.setattr("sync.bundle.volume.Volume.check_blob", refuse)
    report = await site.take(bundle)
    assert report.bundles[0].unchanged
    assert site.seq() == before
    assert not report.in_part


@pytest.mark.parametrize("backwards", [False, True])
async def test_volumes_come_one_at_a_time_in_any_order(site: Site, tmp_path: Path, backwards: bool) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    assert len(volumes) == 4
    order = volumes[::-1] if backwards else volumes
    for number, volume in enumerate(order, 1):
        (done,) = (await site.take(volume)).bundles
        left = sorted(int(path.suffixes[-2][1:]) for path in order[number:])
        assert list(done.missing) == left
        assert done.published == (not left)
        assert bool(site.tags()) == done.published
    await read_all(site, IMAGES)
    assert not site.leftovers()


async def test_what_was_verified_is_not_read_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    await site.take(volumes[0], volumes[2])
    read: list[str] = []
    check = importing._check

    def count(volume: Volume, entry: Entry) -> None:
        read.append(volume.path.name)
        check(volume, entry)

    monkeypatch.setattr(importing, "_check", count)
    (done,) = (await site.take(*volumes)).bundles
    assert done.published
    assert set(read) == {volumes[1].name, volumes[3].name}


async def test_a_volume_that_was_done_is_asked_for_again_when_its_blobs_are_gone(site: Site, tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    await site.take(volumes[0])
    store = await Store.open(site.data)
    try:
        assert await store.catalog.lose_blob(ONE.digest, lambda: False)
    finally:
        await store.close()
    (done,) = (await site.take(*volumes[1:])).bundles
    assert done.missing == (1,)
    assert not site.tags()
    assert (await site.take(volumes[0])).bundles[0].published
    await read_all(site, IMAGES)


async def test_a_dry_run_writes_nothing(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    (done,) = (await site.take(bundle, dry_run=True)).bundles
    assert done.taken == plan_of(IMAGES)[0].size
    assert not done.published
    assert not site.stored()
    assert not (site.data / "bundles").exists()


async def test_an_older_bundle_moves_no_tag_back_without_force(site: Site, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path, [(f"{ALPINE}:3", BOTH)], stem="newer", created=1_700_000_100, version=2 << 40)
    older = make_bundle(tmp_path, [(f"{ALPINE}:3", ARM)], stem="older", version=1 << 40)
    await site.take(*newer)
    held = site.holders()
    report = await site.take(*older)
    assert report.in_part
    assert [tag.change for tag in report.bundles[0].tags] == ["kept"]
    assert site.tags() == {f"{ALPINE}:3": BOTH.digest}
    assert site.holders() == held  # the newer bundle stays the base of the series
    await site.take(*older, force=True)
    assert site.tags() == {f"{ALPINE}:3": ARM.digest}


async def test_a_tag_that_was_removed_here_stays_away_without_force(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    await site.take(bundle)
    store = await Store.open(site.data)
    try:
        await store.catalog.remove(Repository("ghcr.io", "team/tools"), Tag("1"))
    finally:
        await store.close()
    report = await site.take(bundle)
    assert [tag.change for tag in report.bundles[0].tags] == ["same", "kept"]
    assert site.tags()[f"{TOOLS}:1"] is None
    await site.take(bundle, force=True)
    assert site.tags()[f"{TOOLS}:1"] == ONE.digest


async def test_a_thin_bundle_needs_its_base_and_supersedes_it(site: Site, tmp_path: Path) -> None:
    fresh = make_image([*ONE.blobs[1:], blob(333, seed=9)])
    plan, bodies, documents = plan_of([(f"{ALPINE}:4", fresh), (f"{ALPINE}:3", BOTH)], created=1_700_000_200)
    thin = write_bundle(tmp_path, without(plan, closure_of(BOTH)), bodies, documents, stem="thin")
    with pytest.raises(Refused, match="the bundle before"):
        await site.take(*thin)
    assert not site.stored()
    assert not site.leftovers()
    base = make_bundle(tmp_path, [(f"{ALPINE}:3", BOTH)], stem="base")
    report = await site.take(*thin, *base)
    assert [one.published for one in report.bundles] == [True, True]
    await read_all(site, [(f"{ALPINE}:4", fresh), (f"{ALPINE}:3", BOTH)])
    assert set(site.holders()) == {"base:default"}
    assert site.holders()["base:default"] == len(plan.blobs)


async def test_what_is_taken_in_is_held_until_the_last_volume_has_come(site: Site, tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    await site.take(*volumes[:3])
    before = site.stored()
    store = await Store.open(site.data)
    try:
        async with sweeping(store, 1, print) as sweeper:
            await sweeper.collect()
    finally:
        await store.close()
    assert site.stored() == before
    assert (await site.take(volumes[3])).bundles[0].published


async def test_an_import_that_nobody_went_on_with_is_given_up_with_what_it_held(site: Site, tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT, stem="left")
    await site.take(volumes[0])
    (state,) = (site.data / "bundles" / "imports").iterdir()
    assert site.holders().keys() == {f"import:{state.name}"}
    os.utime(state / "progress", (0, 0))
    await site.take(*make_bundle(tmp_path, [(f"{ALPINE}:4", ARM)], stem="other"))
    assert not state.exists()
    assert site.holders().keys() == {"base:default"}


class Crash(Exception):
    """Stands for the end of the process."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the import end at its step of this number, before it is done; return the steps that it has taken."""
    taken: list[str] = []

    def counted(place: object, name: str) -> None:
        real = getattr(place, name)

        def work(*values: object, **named: object) -> object:
            taken.append(name)
            if len(taken) == step:
                raise Crash(name)
            return real(*values, **named)

        monkeypatch.setattr(place, name, work)

    counted(State, "note")
    counted(State, "stage")
    counted(State, "drop")
    counted(State, "remove")
    counted(publishing, "_prove")
    counted(publishing, "_conclude")
    counted(Site, "tags")
    return taken


@pytest.mark.parametrize(
    "steps", [(2, 9, 14), pytest.param(tuple(range(1, 60)), marks=pytest.mark.slow)], ids=["some", "all"]
)
async def test_whatever_a_crash_has_left_is_finished_by_the_next_import(tmp_path: Path, steps: tuple[int, ...]) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    crashed = 0
    for step in steps:
        site = Site(tmp_path / str(step))
        with pytest.MonkeyPatch.context() as monkeypatch:
            taken = crash_at(monkeypatch, step)
            try:
                await site.take(*volumes[2:])
                await site.take(*volumes[:2])
            except (Crash, ExceptionGroup):
                crashed += 1
                assert len(taken) >= step
        assert not site.half()
        assert len(site.tags()) in (0, 2)  # all tags or none
        report = await site.take(*volumes)
        assert report.bundles[0].published
        assert not site.leftovers()
        assert len(site.tags()) == 2
    assert crashed >= min(3, len(steps))


async def test_an_import_that_waits_at_the_door_as_another_ends_works_in_no_folder_that_is_gone(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    (opened,) = open_bundles([bundle])
    imports = site.data / "bundles" / "imports"
    state = State.open(imports, opened, Disk())
    lock = fcntl.flock

    def ended_meanwhile(file: int, kind: int) -> None:
        monkeypatch.undo()
        state.remove()
        state.close()
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", ended_meanwhile)
    with pytest.raises(Refused, match="under way"):
        State.open(imports, opened, Disk())
    State.open(imports, opened, Disk()).close()
    opened.close()


async def test_two_imports_of_one_bundle_do_not_meet(site: Site, tmp_path: Path) -> None:
    (bundle,) = make_bundle(tmp_path, IMAGES)
    (opened,) = open_bundles([bundle])
    state = State.open(site.data / "bundles" / "imports", opened, Disk())
    try:
        with pytest.raises(Refused, match="under way"):
            await site.take(bundle)
    finally:
        state.close()
        opened.close()
    assert (await site.take(bundle)).bundles[0].published


def test_the_command_says_what_is_still_to_come_and_ends_with_3(tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=SPLIT)
    data = str(tmp_path / "data")
    first = CliRunner().invoke(main, ["import", str(volumes[1]), "--data", data])
    assert (first.exit_code, "still to come: 1, 3, 4" in first.output) == (3, True)
    whole = CliRunner().invoke(main, ["import", str(tmp_path), "--data", data])
    assert (whole.exit_code, "2 new, 0 moved" in whole.output) == (0, True)
    again = CliRunner().invoke(main, ["import", str(tmp_path), "--data", data])
    assert (again.exit_code, "nothing has changed" in again.output) == (0, True)
    refused = CliRunner().invoke(main, ["import", str(tmp_path), "--data", data, "--require-signature"])
    assert (refused.exit_code, "is not signed" in refused.output) == (1, True)
