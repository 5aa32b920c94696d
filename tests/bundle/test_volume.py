"""Volumes read from a medium: whole ones are taken, and whatever differs by a bit is found and named."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from proxy.oci.digest import Digest
from proxy.regions.scope import Scope
from sync.bundle import layout
from sync.bundle.errors import BundleError, Damaged, NotABundle, Refused, Untrusted
from sync.bundle.keys import PrivateKey, Trust, TrustedKey
from sync.bundle.layout import BlobPart, Entry
from sync.bundle.opened import Bundle, open_bundles
from sync.bundle.plan import FORMAT, Blob, Required
from sync.bundle.volume import Volume, find_volumes
from tests.bundle.writing import make_bundle, plan_of, write_bundle
from tests.support.contents import blob, make_image, make_index

ALPINE = make_image([blob(3000), blob(9000, 1), b""])
BUSYBOX = make_image([blob(500, 2)])
BOTH = make_index({"linux/amd64": ALPINE, "linux/arm64": BUSYBOX})
IMAGES = [("docker.io/library/alpine:3.20", BOTH), ("quay.io/team/busybox:1", BUSYBOX)]
SPLIT = 16_000


@dataclass(frozen=True)
class Medium:
    """A folder with the volumes of a bundle, and what is needed to look for damage in copies of them."""

    folder: Path
    volumes: list[Path]
    trust: Trust
    layouts: list[list[Entry]]

    def check(self, place: int, body: bytes) -> None:
        """Check all of a volume that has these bytes; raises what any reader of it would be told."""
        copy = self.folder / "copies" / self.volumes[place].name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(body)
        volume = Volume.open(copy)
        try:
            self.trust.judge(volume.sealed, volume.signature)
            check_whole(volume)
        finally:
            volume.close()


def check_whole(volume: Volume) -> None:
    for entry in volume.entries():
        volume.check_frame(entry)
        if isinstance(entry.part, BlobPart):
            volume.check_blob(entry)
        else:
            volume.check_small(entry)
    volume.check_end()


@pytest.fixture(scope="module", params=["unsigned", "signed"])
def medium(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Medium:
    folder = tmp_path_factory.mktemp("medium")
    key = PrivateKey.new() if request.param == "signed" else None
    volumes = make_bundle(folder, IMAGES, split=SPLIT, key=key)
    trusted = [TrustedKey("eu", key.public, Scope.of(["*"]))] if key else []
    bundle = opened_alone(folder)
    layouts = [bundle.volumes[number].entries() for number in range(1, len(volumes) + 1)]
    bundle.close()
    return Medium(folder, volumes, Trust(trusted, bool(key)), layouts)


def opened_alone(*paths: Path) -> Bundle:
    (bundle,) = open_bundles(paths)
    return bundle


def read_blob(bundle: Bundle, place: int) -> bytes:
    extents = bundle.extents(place)
    assert extents is not None
    return b"".join(one.file.read(one.offset, one.size) for one in extents)


def test_whole_volumes_pass_and_every_blob_is_read_across_their_cuts(medium: Medium) -> None:
    bundle = opened_alone(medium.folder)
    assert len(medium.volumes) > 2
    assert bundle.plan.slices
    assert bundle.missing == []
    for volume in bundle.volumes.values():
        check_whole(volume)
    for place, one in enumerate(bundle.plan.blobs):
        assert bundle.place(one.digest) == place
        assert Digest.of(read_blob(bundle, place)) == one.digest
    assert bundle.place("sha256:" + "0" * 64) is None
    bundle.close()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_found_and_named(medium: Medium, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(medium.volumes) - 1))
    body = bytearray(medium.volumes[place].read_bytes())
    at = data.draw(st.one_of(st.integers(0, len(body) - 1), st.integers(0, 511)))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((Damaged, Untrusted)) as told:
        medium.check(place, bytes(body))
    hit = next((one for one in medium.layouts[place] if one.start <= at < one.end), None)
    if isinstance(told.value, Untrusted):
        assert hit is not None
        assert hit.name == layout.SIGNATURE
        return
    assert medium.volumes[place].name in str(told.value)
    if hit is not None and isinstance(hit.part, BlobPart):
        assert f"volume {place + 1} (" in str(told.value)
        assert f"blob sha256:{hit.name.rsplit('/', 1)[1].split('.')[0]}" in str(told.value)
        assert f"--recut {place + 1}" in str(told.value)


@pytest.mark.parametrize("bit", range(8))
def test_a_format_that_one_flipped_bit_makes_look_newer_is_damage(medium: Medium, bit: int) -> None:
    body = bytearray(medium.volumes[1].read_bytes())
    body[body.index(FORMAT.encode()) + len(FORMAT) - 1] ^= 1 << bit
    with pytest.raises(Damaged, match=r"site\.002\.tar"):
        medium.check(1, bytes(body))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_volume_that_is_cut_off_anywhere_is_found(medium: Medium, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(medium.volumes) - 1))
    body = medium.volumes[place].read_bytes()
    length = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises((Damaged, NotABundle), match=r"site\.00"):
        medium.check(place, body[:length])


@pytest.mark.parametrize("more", [b"\0", bytes(512), b"garbage"])
def test_bytes_after_the_end_are_found(medium: Medium, more: bytes) -> None:
    with pytest.raises(Damaged, match=r"volume 2 \(site\.002\.tar\): it has \d+ bytes instead of \d+"):
        medium.check(1, medium.volumes[1].read_bytes() + more)


def test_file_that_shrinks_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    volume = Volume.open(path)
    os.truncate(path, 20_000)
    last = [one for one in volume.entries() if isinstance(one.part, BlobPart)][-1]
    with pytest.raises(Damaged, match=r"volume 1 \(site\.tar\): it ends at byte 20000, within blob sha256:"):
        volume.check_blob(Entry(last.name, last.size, 20_000 - 512 - last.size + 1, last.part))
    with pytest.raises(Damaged, match="it ends at byte 20000"):
        volume.read(19_999, 2)
    with pytest.raises(Damaged, match="it is cut off"):
        volume.check_end()
    volume.close()
    volume.close()


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"00000000000\0", bytes(12)]
)
def test_plan_of_absurd_size_is_refused_before_it_is_read(tmp_path: Path, size: bytes) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    body = bytearray(path.read_bytes())
    body[124:136] = size
    path.write_bytes(body)
    with pytest.raises(Damaged, match=r"site\.tar: the header of entrepot/plan\.json"):
        Volume.open(path)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"../../etc/passwd\0"),
        (156, b"2"),
        (156, b"1"),
        (156, b"S"),
        (156, b"x"),
        (157, b"/etc/passwd"),
        (100, b"0004755"),
    ],
    ids=["path", "symlink", "hard link", "sparse", "pax", "target", "mode"],
)
def test_header_of_a_blob_that_says_anything_else_is_damaged(tmp_path: Path, at: int, value: bytes) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    volume = Volume.open(path)
    entry = next(one for one in volume.entries() if isinstance(one.part, BlobPart))
    body = bytearray(path.read_bytes())
    head = body[entry.start : entry.data]
    head[at : at + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    body[entry.start : entry.data] = head
    path.write_bytes(body)
    with pytest.raises(Damaged, match=r"volume 1 \(site\.tar\): the header of blob sha256:"):
        volume.check_frame(entry)
    volume.close()


def test_volume_that_a_newer_version_wrote_is_told_as_such_by_its_file(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    body = path.read_bytes()
    volume = Volume.open(path)
    plan = volume.sealed.body
    volume.close()
    newer = plan.replace(b'"format":"entrepot-bundle/1"', b'"format":"entrepot-bundle/2"', 1)
    path.write_bytes(body.replace(plan, newer, 1).replace(Digest.of(plan).encode(), Digest.of(newer).encode(), 1))
    with pytest.raises(Refused, match=r"site\.tar: the bundle was written by a newer version .*; update entrepot here"):
        Volume.open(path)


def test_volumes_count_by_what_they_are_and_not_by_their_names(medium: Medium, tmp_path: Path) -> None:
    for path, other in zip(medium.volumes, reversed(medium.volumes), strict=True):
        (tmp_path / path.name).write_bytes(other.read_bytes())
    (tmp_path / "zz-again.tar").write_bytes(medium.volumes[0].read_bytes())
    bundle = opened_alone(tmp_path)
    assert bundle.volumes[1].path.name == medium.volumes[-1].name
    assert sorted(bundle.volumes) == list(range(1, len(medium.volumes) + 1))
    assert all(Digest.of(read_blob(bundle, place)) == one.digest for place, one in enumerate(bundle.plan.blobs))
    bundle.close()


def test_missing_volume_is_told_and_its_blobs_are_not_at_hand_until_they_are_staged(medium: Medium) -> None:
    whole = opened_alone(medium.folder)
    partial = opened_alone(medium.volumes[0], *medium.volumes[2:])
    assert partial.missing == [2]
    lost = [place for place in range(len(partial.plan.blobs)) if partial.extents(place) is None]
    assert lost
    begin, end = whole.plan.volumes[1], whole.plan.volumes[2]
    assert lost == list(range(begin.blob, end.blob + (end.offset > 0)))
    for place in lost:
        for one in layout.slices_of(whole.plan, place) or [None]:
            offset, size = (one.offset, one.size) if one else (0, whole.plan.blobs[place].size)
            partial.staged[place, offset] = Staged(read_blob(whole, place)[offset : offset + size])
    assert [read_blob(partial, place) for place in lost] == [read_blob(whole, place) for place in lost]
    whole.close()
    partial.close()


@dataclass(frozen=True)
class Staged:
    body: bytes
    label: str = "staged"

    def read(self, offset: int, length: int) -> bytes:
        return self.body[offset : offset + length]


def test_volumes_of_one_plan_with_different_signatures_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = make_bundle(tmp_path / "one", IMAGES, key=PrivateKey.new())
    second = make_bundle(tmp_path / "two", IMAGES, key=PrivateKey.new())
    with pytest.raises(Damaged, match="are of one plan and have different signatures"):
        open_bundles([*first, *second])


def test_bundle_comes_after_the_one_that_it_stands_on_and_otherwise_by_time(tmp_path: Path) -> None:
    base = make_bundle(tmp_path, [IMAGES[1]], stem="z-base", series="base", created=1_800_000_000)
    old = make_bundle(tmp_path, [("quay.io/a/old:1", ALPINE)], stem="b-old", series="old", created=5)
    plan, blobs, documents = plan_of([IMAGES[0]], series="thin", created=3)
    needed = tuple(Required(one.digest, one.size, 0) for one in plan.blobs if one.digest == BUSYBOX.digest)
    brought = tuple(one for one in plan.blobs if one.digest != BUSYBOX.digest)
    plan = msgspec.structs.replace(plan, blobs=brought, requires=needed)
    thin = write_bundle(tmp_path, plan, blobs, documents, stem="a-thin")
    bundles = open_bundles([*thin, *base, *old])
    assert [one.plan.series for one in bundles] == ["old", "base", "thin"]
    for bundle in bundles:
        bundle.close()


def test_folder_gives_its_volumes_and_a_stranger_is_named(medium: Medium, tmp_path: Path) -> None:
    (medium.folder / "other.tar").write_bytes(b"something else")
    assert find_volumes([medium.folder, medium.volumes[0]]) == medium.volumes
    with pytest.raises(NotABundle, match=r"other\.tar is no volume of a bundle"):
        find_volumes([medium.folder / "other.tar"])
    with pytest.raises(NotABundle, match="holds no volume"):
        find_volumes([tmp_path])
    with pytest.raises(NotABundle):
        Volume.open(medium.folder / "other.tar")
    for nothing in (tmp_path / "nothing.tar", medium.folder / "other.tar" / "nothing"):
        with pytest.raises(BundleError, match=r"nothing(\.tar)? is not there: is its drive mounted"):
            find_volumes([nothing])
    for name in ("site.tar.gz", "site.tar"):
        (tmp_path / name).write_bytes(gzip.compress(medium.volumes[0].read_bytes()))
        with pytest.raises(NotABundle, match="it is compressed, and bundles never are; unpack it first"):
            find_volumes([tmp_path / name])
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(NotABundle):
        find_volumes([tmp_path / "pipe.tar"])
    with pytest.raises(NotABundle, match=r"pipe\.tar is no volume"):
        Volume.open(tmp_path / "pipe.tar")


def test_more_volumes_are_opened_than_files_are_allowed_at_first(tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, [("docker.io/library/alpine:1", make_image([blob(2_000_000)]))], split=40_000)
    assert len(volumes) > 60
    for command in ("list", "verify"):
        words = ["-m", "entrepot", "bundle", command, "--data", str(tmp_path / "data"), str(tmp_path)]
        done = subprocess.run(
            ["sh", "-c", 'ulimit -S -n 40; exec "$@"', "sh", sys.executable, *words],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_name_of_a_file_cannot_talk_to_the_terminal(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    volume = Volume.open(path.rename(tmp_path / "\x1b[2Jsite\udcff.tar"))
    assert volume.label == "volume 1 (?[2Jsite?.tar)"
    volume.close()


def test_plan_that_was_read_before_is_not_read_again(medium: Medium) -> None:
    first = Volume.open(medium.volumes[0])
    second = Volume.open(medium.volumes[1], {first.sealed.name: first.sealed})
    assert second.sealed is first.sealed
    assert second.number == 2
    first.close()
    second.close()


def test_sha512_blobs_are_read_by_their_long_names(tmp_path: Path) -> None:
    plan, blobs, documents = plan_of(IMAGES)
    body = blob(20_000, 9)
    digest = str(Digest.of(body, "sha512"))
    plan = msgspec.structs.replace(plan, blobs=(*plan.blobs, Blob(digest, len(body), 0)))
    write_bundle(tmp_path, plan, blobs | {digest: body}, documents, split=SPLIT)
    bundle = opened_alone(tmp_path)
    for volume in bundle.volumes.values():
        check_whole(volume)
    assert read_blob(bundle, len(plan.blobs) - 1) == body
    bundle.close()
