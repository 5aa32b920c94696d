"""`bundle verify` goes on after the first fault and tells all of them, by volume and blob."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from proxy.oci.digest import Digest
from sync.bundle.checking import Checked, CheckedBundle, Stopped, check
from sync.bundle.errors import NotABundle
from sync.bundle.keys import PrivateKey, Trust
from sync.bundle.layout import BlobPart, OffsetsPart, seal
from sync.bundle.volume import Volume
from tests.bundle.writing import make_bundle, plan_of, seal_for, volume_bytes, write_bundle
from tests.support.contents import blob, make_image

IMAGE = make_image([blob(30_000, 1), blob(40_000, 2)])
OTHER = make_image([blob(20_000, 3)])
IMAGES = [("docker.io/library/alpine:3.20", IMAGE), ("docker.io/library/busybox:1", OTHER)]
ANYBODY = Trust((), required=False)


def checked(*paths: Path, trust: Trust = ANYBODY) -> Checked:
    return check(paths, trust, lambda done, total: None)


def only(*paths: Path) -> CheckedBundle:
    found = checked(*paths)
    assert found.faults == ()
    (one,) = found.bundles
    return one


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def places(path: Path, wanted: Callable[[object], bool]) -> dict[str, int]:
    """Return where the entries of a volume have their first bytes, by what they are called."""
    volume = Volume.open(path)
    found = {volume.describe(entry): entry.data for entry in volume.entries() if wanted(entry.part)}
    volume.close()
    return found


@pytest.mark.parametrize("split", [None, 50_000])
def test_a_whole_bundle_is_good_and_all_of_it_was_read(tmp_path: Path, split: int | None) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=split)
    told: list[tuple[int, int]] = []
    found = check([tmp_path], ANYBODY, lambda done, total: told.append((done, total)))
    assert found.good
    (bundle,) = found.bundles
    assert (bundle.checked, bundle.missing) == (tuple(range(1, len(volumes) + 1)), ())
    size = sum(volume.stat().st_size for volume in volumes)
    assert bundle.bytes == size
    assert {total for _, total in told} == {size}
    assert max(done for done, _ in told) > sum(len(data) for data in (*IMAGE.blobs, *OTHER.blobs))


def test_every_fault_is_told_with_its_volume_and_blob(tmp_path: Path) -> None:
    first, second, *_ = make_bundle(tmp_path, IMAGES, split=50_000)
    blobs = places(first, lambda part: isinstance(part, BlobPart))
    for at in blobs.values():
        flip(first, at)
    flip(second, places(second, lambda part: isinstance(part, OffsetsPart))["entrepot/offsets.json"])
    faults = only(tmp_path).faults
    assert [fault.volume for fault in faults] == [1] * len(blobs) + [2]
    assert [name in fault.message for name, fault in zip(blobs, faults, strict=False)] == [True] * len(blobs)
    assert [fault.digest is not None and fault.digest in fault.message for fault in faults[:-1]] == [True] * len(blobs)
    assert "volume 2 (site.002.tar): entrepot/offsets.json" in faults[-1].message


def test_a_header_and_the_padding_are_looked_at_too(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    digest, at = next(iter(places(path, lambda part: isinstance(part, BlobPart)).items()))
    flip(path, at - 512)
    (fault,) = only(path).faults
    assert f"the header of {digest}" in fault.message


def test_a_volume_that_was_cut_off_says_what_it_lacks_in_one_line(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    names = places(path, lambda part: isinstance(part, BlobPart))
    last = list(names)[-2]
    with path.open("r+b") as file:
        file.truncate(names[last] + 10)
    lacking, cut = only(path).faults
    assert "and all after that: 2 blobs, or parts of such" in lacking.message
    assert last in lacking.message
    assert "it is cut off" in cut.message


def test_bytes_after_the_end_are_told(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    with path.open("ab") as file:
        file.write(b"more")
    (fault,) = only(path).faults
    assert "too many" in fault.message


def test_missing_volumes_are_no_fault_and_yet_not_good(tmp_path: Path) -> None:
    volumes = make_bundle(tmp_path, IMAGES, split=50_000)
    volumes[1].unlink()
    found = checked(tmp_path)
    assert ([one.missing for one in found.bundles], found.bundles[0].faults, found.good) == ([(2,)], (), False)


def test_a_volume_whose_plan_is_damaged_does_not_hide_what_is_wrong_with_others(tmp_path: Path) -> None:
    first, second, *_ = make_bundle(tmp_path, IMAGES, split=50_000)
    flip(first, 700)
    flip(second, next(iter(places(second, lambda part: isinstance(part, BlobPart)).values())))
    found = checked(tmp_path)
    assert [fault.file for fault in found.faults] == ["site.001.tar"]
    assert ([fault.volume for fault in found.bundles[0].faults], found.bundles[0].missing) == ([2], (1,))


def test_the_hashes_beside_a_whole_volume_are_compared(tmp_path: Path) -> None:
    first, *_ = make_bundle(tmp_path, IMAGES, split=50_000)
    beside = tmp_path / "site.sha256"
    beside.write_text(beside.read_text().replace(hashlib.sha256(first.read_bytes()).hexdigest(), "0" * 64))
    (fault,) = only(tmp_path).faults
    assert fault.message == "volume 1 (site.001.tar) is whole, and site.sha256 says another hash for it"


def test_what_is_wrong_with_a_signature_is_a_fault(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    found = checked(path, trust=Trust((), required=True))
    assert ("is not signed" in found.bundles[0].faults[0].message, found.good) == (True, False)


def test_two_signatures_of_one_plan_are_told(tmp_path: Path) -> None:
    plan, blobs, documents = plan_of(IMAGES)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_bundle(tmp_path / folder, plan, blobs, documents, split=50_000, key=PrivateKey.new())
    (fault,) = only(tmp_path / "one" / "site.001.tar", tmp_path / "two" / "site.002.tar").faults
    assert "different signatures" in fault.message


def test_parts_that_fit_the_plan_and_are_another_blob_together_are_found(tmp_path: Path) -> None:
    plan, blobs, documents = plan_of(IMAGES)
    sealed = seal_for(plan, blobs, split=50_000)
    cut = sealed.plan.blobs[sealed.plan.slices[0].blob]
    lie = blobs | {cut.digest: bytes(cut.size)}
    slices = tuple(
        msgspec.structs.replace(one, sha256=hashlib.sha256(bytes(one.size)).hexdigest())
        if sealed.plan.blobs[one.blob] is cut
        else one
        for one in sealed.plan.slices
    )
    sealed = seal(msgspec.structs.replace(sealed.plan, slices=slices))
    for number in range(1, len(sealed.plan.volumes) + 1):
        (tmp_path / f"{number}.tar").write_bytes(volume_bytes(sealed, None, number, lie, documents))
    (fault,) = only(tmp_path).faults
    assert fault.digest == cut.digest
    assert "the plan is wrong" in fault.message


def test_a_sector_that_cannot_be_read_is_told_and_the_rest_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    broken, other, *_ = places(path, lambda part: isinstance(part, BlobPart)).items()
    flip(path, other[1])
    preadv = os.preadv

    def failing(file: int, buffers: list[memoryview], offset: int) -> int:
        if offset == broken[1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    first, second = only(path).faults
    assert first.message == f"volume 1 (site.tar): {broken[0]} cannot be read: Input/output error"
    assert other[0] in second.message


def test_a_file_that_is_none_is_a_fault_beside_others_and_an_error_alone(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8" * 1000)
    found = checked(photo, path)
    assert ([fault.file for fault in found.faults], found.good) == (["photo.jpg"], False)
    assert [fault.file for fault in checked(tmp_path / "nothing.tar", path).faults] == ["nothing.tar"]
    with pytest.raises(NotABundle):
        checked(photo)


def test_a_check_that_is_given_up_ends_in_its_threads_too(tmp_path: Path) -> None:
    make_bundle(tmp_path, IMAGES, split=50_000)

    def report(done: int, total: int) -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped):
        check([tmp_path], ANYBODY, report)


def test_blobs_of_sha512_are_hashed_by_it(tmp_path: Path) -> None:
    plan, blobs, documents = plan_of([("docker.io/library/busybox:1", OTHER)])
    *rest, last = plan.blobs
    body = blobs[last.digest]
    long = str(Digest.of(body, "sha512"))
    plan = msgspec.structs.replace(plan, blobs=(*rest, msgspec.structs.replace(last, digest=long)))
    (path,) = write_bundle(tmp_path, plan, blobs | {long: body}, documents)
    assert only(path).faults == ()
    flip(path, places(path, lambda part: isinstance(part, BlobPart))[f"blob {long}"])
    assert [fault.digest for fault in only(path).faults] == [long]
