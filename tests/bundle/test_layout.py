"""Where the bytes of a bundle lie: cuts, entries, headers, and that any reader of tar sees the same."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import msgspec
import pytest
from hypothesis import assume, given, settings, strategies as st

from proxy.oci.digest import Digest
from sync.bundle import layout
from sync.bundle.errors import BundleError
from sync.bundle.layout import BlobPart, DocumentPart, Entry
from sync.bundle.plan import FORMAT, Blob, Cut, Document, Plan, read_plan, write_plan
from tests.bundle.writing import seal_for, volume_bytes
from tests.support.contents import blob

DOCUMENTS = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"{}" * 300}
HASHES = ("sha256", "sha512")


def bare_plan(bodies: dict[str, bytes], created: int = 1_700_000_000) -> Plan:
    return Plan(
        format=FORMAT,
        series="default",
        region="eu-west",
        created=created,
        repositories=("docker.io/library/alpine",),
        images=(),
        blobs=tuple(Blob(digest, len(body), 0) for digest, body in bodies.items()),
        documents=tuple(
            Document(name, len(body), hashlib.sha256(body).hexdigest()) for name, body in DOCUMENTS.items()
        ),
        volumes=(Cut(0, 0),),
    )


@st.composite
def contents(draw: st.DrawFn) -> dict[str, bytes]:
    sizes = draw(st.lists(st.one_of(st.integers(0, 20_000), st.sampled_from((0, 1, 511, 512, 513, 8192))), max_size=8))
    bodies = {}
    for seed, size in enumerate(sizes):
        body = blob(size, seed)
        bodies[str(Digest.of(body, draw(st.sampled_from(HASHES))))] = body
    return bodies


def cut_or_none(plan: Plan, split: int | None, signature_size: int) -> Plan | None:
    try:
        return layout.cut(plan, split, signature_size)
    except BundleError:
        return None


@settings(max_examples=60, deadline=None)
@given(contents(), st.one_of(st.none(), st.integers(12_000, 50_000)), st.sampled_from((0, 1, 180, 513)))
def test_volumes_hold_all_blobs_in_order_and_are_smaller_than_the_split(
    bodies: dict[str, bytes], split: int | None, signature_size: int
) -> None:
    cut = cut_or_none(bare_plan(bodies), split, signature_size)
    assume(cut is not None)
    assert cut is not None
    slices = tuple(
        msgspec.structs.replace(
            one,
            sha256=hashlib.sha256(bodies[cut.blobs[one.blob].digest][one.offset : one.offset + one.size]).hexdigest(),
        )
        for one in cut.slices
    )
    sealed = layout.seal(msgspec.structs.replace(cut, slices=slices))
    signature = b"s" * signature_size or None
    assert len(sealed.body) % layout.PLAN_UNIT == 0
    assert read_plan(sealed.body).plan == sealed.plan
    brought: dict[str, bytes] = {}
    order = []
    for number in range(1, len(sealed.plan.volumes) + 1):
        written = volume_bytes(sealed, signature, number, bodies, DOCUMENTS)
        assert len(written) == layout.volume_size(sealed, signature_size, number)
        assert split is None or len(written) < split
        entries = list(layout.entries(sealed, signature_size, number))
        with tarfile.open(fileobj=io.BytesIO(written)) as tar:
            members = tar.getmembers()
        assert [one.name for one in members] == [one.name for one in entries]
        assert [(one.offset_data, one.size) for one in members] == [(one.data, one.size) for one in entries]
        assert all(one.isreg() and one.mode == 0o644 and one.mtime == 1_700_000_000 for one in members)
        shares = [one for one in entries if isinstance(one.part, BlobPart)]
        assert list(layout.data_offsets(sealed, signature_size, number)) == [one.data for one in shares]
        index = json.loads(layout.offsets_document(sealed, signature_size, number))
        assert len(index) == len(shares)
        for digest, offset, size, within in index:
            assert within == len(brought.get(digest, b""))
            assert size or not bodies[digest]
            brought[digest] = brought.get(digest, b"") + written[offset : offset + size]
            order.append(digest)
    assert brought == bodies
    assert list(dict.fromkeys(order)) == list(bodies)


def test_equal_plans_and_blobs_give_equal_bytes() -> None:
    bodies = {str(Digest.of(body)): body for body in (blob(9000), blob(1, 1))}
    first = seal_for(bare_plan(bodies), bodies, split=14_000)
    second = seal_for(bare_plan(dict(bodies)), bodies, split=14_000)
    assert first == second
    assert volume_bytes(first, None, 2, bodies, DOCUMENTS) == volume_bytes(second, None, 2, bodies, DOCUMENTS)


def test_cutting_again_depends_on_nothing_that_an_earlier_cut_left() -> None:
    bodies = {str(Digest.of(body)): body for body in (blob(60_000), blob(30_000, 1))}
    plan = bare_plan(bodies)
    once = layout.cut(plan, 20_000, 0)
    assert layout.cut(once, 20_000, 0) == once
    assert layout.cut(once, None, 0) == plan


def test_blob_that_ends_with_a_volume_leaves_no_empty_slice_in_the_next() -> None:
    bodies = {str(Digest.of(body)): body for body in (blob(5120), blob(5120, 1), blob(5120, 2))}
    plan = bare_plan(bodies)
    whole = layout.volume_size(layout.seal(layout.cut(plan, None, 0)), 0, 1)
    found = layout.cut(plan, whole - 2 * (5120 + layout.BLOCK) + 1, 0)
    assert [(one.blob, one.offset) for one in found.volumes] == [(0, 0), (1, 0), (2, 0)]
    assert not found.slices
    edge = layout.cut(plan, whole - 5120 - layout.BLOCK, 0)
    assert edge.slices
    assert all(one.size for one in edge.slices)


def test_size_of_4_gib_gives_volumes_that_fat32_takes() -> None:
    plan = bare_plan({})
    big = tuple(Blob(f"sha256:{number:064x}", 3 << 30, 0) for number in range(5))
    sealed = layout.seal(layout.cut(msgspec.structs.replace(plan, blobs=big), 4 << 30, 0))
    sizes = [layout.volume_size(sealed, 0, number) for number in range(1, len(sealed.plan.volumes) + 1)]
    assert all(size < 4 << 30 for size in sizes)
    assert len(sizes) == 4


def test_header_of_more_than_8_gib_is_what_tar_reads() -> None:
    entry = Entry("blobs/sha256/" + "a" * 64, 1 << 40, 0, BlobPart(0, 0, True))
    read = tarfile.TarInfo.frombuf(layout.header(entry, 1 << 33), "utf-8", "strict")
    assert (read.size, read.mtime, read.name) == (1 << 40, 1 << 33, entry.name)
    document = Entry("index.json", 5, 0, DocumentPart(1))
    assert layout.header(document, 0)[124:136] == b"00000000005\0"


def test_slices_are_found_by_blob_and_offset() -> None:
    bodies = {str(Digest.of(body)): body for body in (blob(3), blob(50_000, 1))}
    plan = seal_for(bare_plan(bodies), bodies, split=20_000).plan
    parts = layout.slices_of(plan, 1)
    assert len(parts) > 2
    assert sum(one.size for one in parts) == 50_000
    assert [layout.slice_at(plan, 1, one.offset) for one in parts] == list(parts)
    assert layout.slice_at(plan, 1, 1) is None
    assert layout.slice_at(plan, 0, 0) is None
    assert not layout.slices_of(plan, 0)


@pytest.mark.parametrize("split", [1, 512, 7_000, 8_700])
def test_split_that_the_plan_does_not_fit_into_is_refused_with_one_that_would_do(split: int) -> None:
    bodies = {str(Digest.of(body)): body for body in (blob(60_000), blob(30_000, 1))}
    with pytest.raises(BundleError, match="--split-size 1MiB would do"):
        layout.cut(bare_plan(bodies), split, 0)
    assert layout.cut(bare_plan(bodies), 1 << 20, 0).volumes == (Cut(0, 0),)


def test_split_into_more_volumes_than_there_may_be_is_refused() -> None:
    huge = msgspec.structs.replace(bare_plan({}), blobs=(Blob("sha256:" + "a" * 64, 1 << 42, 0),))
    with pytest.raises(BundleError, match=r"there may be 9999; --split-size \d+MiB would do") as refused:
        layout.cut(huge, 4 << 20, 0)
    offered = int(str(refused.value).rsplit("--split-size ", 1)[1].split("MiB")[0])
    assert len(layout.cut(huge, offered << 20, 0).volumes) <= 9_999


def test_many_blobs_are_cut_in_one_pass_each() -> None:
    blobs = tuple(Blob(f"sha256:{number:064x}", 100_000 + number, 0) for number in range(20_000))
    sealed = layout.seal(layout.cut(msgspec.structs.replace(bare_plan({}), blobs=blobs), 64 << 20, 0))
    begins = [(one.blob, one.offset) for one in sealed.plan.volumes]
    assert len(begins) > 20
    assert sum(len(layout.data_offsets(sealed, 0, number)) for number in range(1, len(begins) + 1)) == 20_000 + sum(
        1 for _, offset in begins if offset
    )


def test_plan_without_padding_is_the_same_plan_under_another_name() -> None:
    sealed = layout.seal(bare_plan({}))
    bare = read_plan(write_plan(sealed.plan))
    assert bare.plan == sealed.plan
    assert bare.name != sealed.name


@pytest.mark.parametrize("series", ["", "\x1b[2J", "two\nlines", "x" * 256])
def test_plan_that_no_site_would_read_is_not_sealed(series: str) -> None:
    with pytest.raises(BundleError, match="no site would take such a bundle: the plan cannot be read"):
        layout.seal(msgspec.structs.replace(bare_plan({}), series=series))
