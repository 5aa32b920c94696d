"""Bundles as a Source: the suite, also over cut volumes and through HTTP; several bundles; lost drives."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from metrics.events import ignore
from proxy.app import Face
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, ManifestUnknown, Unavailable
from proxy.oci.listings import fallback_tag
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.server import Server
from proxy.source import BlobStream, Source
from sync.bundle.opened import Bundle, open_bundles
from sync.bundle.plan import Base, Plan, Required
from sync.bundle.reading import VolumeReader
from sync.bundle.served import WITHHELD, ServedBundles
from sync.bundle.source import BundleSource
from tests.bundle.writing import make_bundle, plan_of, write_bundle
from tests.source_suite import DOCKER_TAG, INDEX_TAG, Contents, SourceSuite, read
from tests.support.contents import OCI_INDEX, Image, blob, make_image, make_index
from tests.support.fake_listings import fallback_index
from tests.support.over_http import over_http

HUB = "docker.io"
APP = Repository(HUB, "team/app")


class _Counting(BundleSource):
    """Counts the blobs that are opened."""

    opened = 0

    async def open_blob(self, *asked):  # type: ignore[no-untyped-def]
        stream = await super().open_blob(*asked)
        self.opened += 1
        return stream


def write_contents(folder: Path, contents: Contents, split: int | None = None) -> list[Path]:
    """Write a bundle of all that the suite wants."""
    pushed = {one.digest: (one.media_type, one.body) for one in contents.referrers}
    listed = Image(OCI_INDEX, fallback_index(pushed, contents.index.digest), children=contents.referrers)
    name = str(contents.repository)
    images = [
        (f"{name}:{INDEX_TAG}", contents.index),
        (f"{name}:{DOCKER_TAG}", contents.docker),
        (f"{name}:{fallback_tag(contents.index.digest)}", listed),
        *((f"{name}@{one.digest}", one) for one in contents.referrers),
    ]
    plan, blobs, documents = plan_of(images)
    refer = {one.digest for one in contents.referrers}
    marked = tuple(
        msgspec.structs.replace(image, subject=str(contents.index.digest)) if image.digest in refer else image
        for image in plan.images
    )
    return write_bundle(folder, msgspec.structs.replace(plan, images=marked), blobs, documents, split=split)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Contents, int | None], list[Path]]:
    """Writes what the suite wants once for each size of volumes."""
    folder = tmp_path_factory.mktemp("written")
    kept: dict[int | None, list[Path]] = {}

    def write(contents: Contents, split: int | None) -> list[Path]:
        if split not in kept:
            (folder / str(split)).mkdir()
            kept[split] = write_contents(folder / str(split), contents, split)
        return kept[split]

    return write


class _OverBundle(SourceSuite):
    split: int | None = None

    @pytest.fixture
    def bundle(self, contents: Contents, written: Callable[[Contents, int | None], list[Path]]) -> Iterator[_Counting]:
        bundles = open_bundles(written(contents, self.split))
        yield _Counting(bundles)
        close(bundles)

    @pytest.fixture
    def source(self, bundle: _Counting) -> Source:
        return bundle

    @pytest.fixture
    def opened(self, bundle: _Counting) -> Callable[[], int]:
        return lambda: bundle.opened


class TestBundle(_OverBundle):
    """One volume."""


class TestCutBundle(_OverBundle):
    """Volumes so small that the large blobs are in several."""

    split = 96 << 10


class TestServedBundle(_OverBundle):
    """As clients have it, over HTTP."""

    split = 1 << 20

    @pytest.fixture
    async def source(self, bundle: _Counting) -> AsyncIterator[Source]:
        served = await ServedBundles.open(bundle)
        async with over_http(served, HUB) as source:
            yield source


def close(bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        bundle.close()


@pytest.fixture
def opening() -> Iterator[Callable[..., BundleSource]]:
    """Opens bundles, and closes them when the test is over."""
    held: list[Bundle] = []

    def opened(*paths: Path) -> BundleSource:
        bundles = open_bundles(paths)
        held.extend(bundles)
        return BundleSource(bundles)

    yield opened
    close(held)


async def test_blob_that_two_repositories_share_is_had_from_both_and_from_no_third(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:  # P43
    shared, alone = blob(3000, 1), blob(3000, 2)
    nested = make_index({"linux/amd64": make_image([shared])})
    images = [(f"{HUB}/a/one:1", make_image([shared, alone])), (f"{HUB}/b/two:1", nested)]
    source = opening(*make_bundle(tmp_path, images))
    for path in ("a/one", "b/two"):
        assert await read(await source.open_blob(Repository(HUB, path), Digest.of(shared))) == shared
    with pytest.raises(BlobUnknown):
        await source.stat_blob(Repository(HUB, "b/two"), Digest.of(alone))
    with pytest.raises(ManifestUnknown):
        await source.manifest(Repository(HUB, "a/one"), nested.digest)


async def test_of_a_tag_in_two_bundles_the_newest_counts(tmp_path: Path, opening: Callable[..., BundleSource]) -> None:
    old, new = make_image([blob(100, 1)]), make_image([blob(100, 2)])
    later = make_bundle(tmp_path, [(f"{APP}:1", new)], stem="later", created=2_000)
    earlier = make_bundle(tmp_path, [(f"{APP}:1", old), (f"{APP}:0", old)], stem="earlier", created=1_000)
    source = opening(*later, *earlier)
    assert (await source.resolve(APP, Tag("1"))).digest == new.digest
    assert (await source.resolve(APP, Tag("0"))).digest == old.digest
    assert (await source.manifest(APP, old.digest)).body == old.body
    assert (await source.tags(APP, None, None)).tags == ("0", "1")


def thin(plan: Plan, digests: set[str]) -> Plan:
    """Return a plan that leaves these blobs to its base."""
    gone = tuple(Required(one.digest, one.size, one.repository) for one in plan.blobs if one.digest in digests)
    kept = tuple(one for one in plan.blobs if one.digest not in digests)
    base = Base("receipt", "sha256:" + "0" * 64, "default of March")
    return msgspec.structs.replace(plan, blobs=kept, requires=gone, bases=(base,))


async def test_thin_bundle_serves_what_is_whole_and_names_the_base_of_the_rest(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:
    known, moved, fresh = make_image([blob(90, 1)]), make_image([blob(90, 2)]), make_image([blob(90, 3)])
    images = [(f"{APP}:known", known), (f"{APP}:moved", moved), (f"{APP}:fresh", fresh)]
    plan, blobs, documents = plan_of(images, created=2_000)
    needed = {str(Digest.of(blob(90, 1))), str(moved.digest), *(str(Digest.of(data)) for data in moved.blobs)}
    paths = write_bundle(tmp_path, thin(plan, needed), blobs, documents, stem="thin")
    served = await ServedBundles.open(opening(*paths))
    assert served.counted() == (1, 3)
    assert (await served.manifest(APP, Tag("fresh"))).body == fresh.body
    for tag in ("known", "moved"):
        with pytest.raises(ManifestUnknown, match="default of March"):
            await served.manifest(APP, Tag(tag))
    assert (await served.tags(APP, None, None)).tags == ("fresh",)

    base = make_bundle(tmp_path, images[:2], stem="base", created=1_000)
    both = await ServedBundles.open(opening(*paths, *base))
    assert both.counted() == (5, 5)
    assert (await both.manifest(APP, Tag("moved"))).body == moved.body


async def test_missing_volume_leaves_what_is_whole_without_it(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:
    first, second = make_image([blob(10_000, 1)]), make_image([blob(90_000, 2)])
    paths = make_bundle(tmp_path, [(f"{APP}:1", first), (f"{APP}:2", second)], split=64 << 10)
    served = await ServedBundles.open(opening(paths[0]))
    assert served.counted() == (1, 2)
    with pytest.raises(ManifestUnknown, match="volumes these are missing: 2"):
        await served.manifest(APP, Tag("2"))


class _Staged:
    """A part of a blob in a file of its own, in memory."""

    label = "a staged part"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


async def test_blob_is_read_across_a_volume_and_staged_parts(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:
    data = blob(300_000, 1)
    paths = make_bundle(tmp_path, [(f"{APP}:1", make_image([data]))], split=96 << 10)
    source = opening(paths[0])
    (bundle,) = source.bundles
    place = bundle.place(Digest.of(data))
    with pytest.raises(Unavailable, match="volumes these are missing: 2"):
        await source.open_blob(APP, Digest.of(data))
    assert len(bundle.plan.slices) > 2
    for one in bundle.plan.slices[1:]:
        assert one.blob == place
        bundle.staged[one.blob, one.offset] = _Staged(data[one.offset : one.offset + one.size])
    assert await read(await source.open_blob(APP, Digest.of(data))) == data
    edge = bundle.plan.slices[1].offset
    assert (
        await read(await source.open_blob(APP, Digest.of(data), ByteRange(edge - 5, edge + 4)))
        == (data[edge - 5 : edge + 5])
    )


async def test_drive_that_is_gone_is_told_by_its_volume_and_heard_of_when_it_is_back(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:  # P30
    data = blob(500_000, 1)
    (path,) = make_bundle(tmp_path, [(f"{APP}:1", make_image([data]))])
    source = opening(path)
    served = await ServedBundles.open(source)
    whole = path.read_bytes()
    os.truncate(path, 100_000)
    for span in (None, ByteRange(400_000, None)):
        with pytest.raises(Unavailable, match=path.name):
            await served.open_blob(APP, Digest.of(data), span)
    await served.manifest(APP, Tag("1"))  # what can be read elsewhere says nothing
    (problem,) = await source.problems()
    assert path.name in problem
    path.write_bytes(whole)
    assert await source.problems() == []
    assert await read(await served.open_blob(APP, Digest.of(data))) == data


@pytest.mark.parametrize("size", [40_000, 3 << 20])
async def test_blob_with_a_flipped_bit_never_ends_and_no_part_follows(
    tmp_path: Path, opening: Callable[..., BundleSource], size: int
) -> None:  # P28, P38
    data = blob(size, 1)
    digest = Digest.of(data)
    (path,) = make_bundle(tmp_path, [(f"{APP}:1", make_image([data]))])
    source = opening(path)
    served = await ServedBundles.open(source)
    found = source.find(digest)
    assert found is not None
    at = found[2][0].offset + 7
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[7] ^ 1]))
    got = bytearray()
    with pytest.raises(BadContent, match=path.name):
        await _read_into(got, served, digest)
    assert len(got) <= size - min(size, WITHHELD)
    with pytest.raises(BadContent):
        await served.open_blob(APP, digest, ByteRange(100, None))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data[7:8])
    assert await read(await served.open_blob(APP, digest)) == data
    assert await read(await served.open_blob(APP, digest, ByteRange(100, 199))) == data[100:200]


async def _read_into(got: bytearray, served: Source, digest: Digest) -> None:
    async for chunk in await served.open_blob(APP, digest):
        got += chunk


@pytest.fixture
async def at_http() -> AsyncIterator[Callable[[Source], Awaitable[URL]]]:
    """Serves Sources over HTTP."""
    async with AsyncExitStack() as stack:

        async def serve(source: Source) -> URL:
            runner = web.ServerRunner(Server(Face(source, frozenset({HUB}), HUB, ignore)))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            return URL(f"http://{host}:{port}/v2/")

        yield serve


async def test_blob_that_was_found_right_is_sent_from_its_file_and_hashed_no_more(
    tmp_path: Path, opening: Callable[..., BundleSource], at_http: Callable[[Source], Awaitable[URL]]
) -> None:
    data = blob(5 << 20, 1)
    (path,) = make_bundle(tmp_path, [(f"{APP}:1", make_image([blob(70_000, 2), data]))])
    served = await ServedBundles.open(opening(path))
    digest = Digest.of(data)
    assert not isinstance(await _closed(served, digest), VolumeReader)
    url = await at_http(served) / f"{APP.path}/blobs/{digest}"
    async with ClientSession() as session:
        for asked, given in (
            ({}, data),
            ({}, data),
            ({"Range": "bytes=4194300-"}, data[4194300:]),
            ({"Range": "bytes=7-2097159"}, data[7:2097160]),
        ):
            async with session.get(url, headers=asked) as answer:
                assert await answer.read() == given
    assert isinstance(await _closed(served, digest), VolumeReader)
    assert isinstance(await _closed(served, digest, ByteRange(7, 9)), VolumeReader)
    reader = await served.open_blob(APP, digest, ByteRange(5, 3 << 20))
    assert b"".join([chunk async for chunk in reader]) == data[5 : (3 << 20) + 1]
    await reader.aclose()


async def _closed(served: Source, digest: Digest, span: ByteRange | None = None) -> BlobStream:
    stream = await served.open_blob(APP, digest, span)
    await stream.aclose()
    return stream


@pytest.mark.parametrize("split", [None, 2 << 20])
async def test_blob_whose_volume_was_written_to_is_hashed_again(
    tmp_path: Path, opening: Callable[..., BundleSource], split: int | None
) -> None:  # P38
    data = blob(3 << 20, 1)
    digest = Digest.of(data)
    paths = make_bundle(tmp_path, [(f"{APP}:1", make_image([data]))], split=split)
    source = opening(*paths)
    served = await ServedBundles.open(source)
    for _ in range(2):
        assert await read(await served.open_blob(APP, digest)) == data
    found = source.find(digest)
    assert found is not None
    with paths[0].open("r+b") as file:
        file.seek(found[2][0].offset)
        file.write(bytes([data[0] ^ 1]))
    os.utime(paths[0], ns=(0, 7))
    with pytest.raises(BadContent):
        await read(await served.open_blob(APP, digest))


async def test_drive_that_is_lost_while_a_blob_is_sent_from_its_file_is_told_by_its_volume(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:  # P28
    data = blob(9 << 20, 1)
    digest = Digest.of(data)
    (path,) = make_bundle(tmp_path, [(f"{APP}:1", make_image([data]))])
    source = opening(path)
    served = await ServedBundles.open(source)
    assert await read(await served.open_blob(APP, digest)) == data
    reader = await served.open_blob(APP, digest)
    assert isinstance(reader, VolumeReader)
    assert 0 < await reader.limit(0) < len(data)
    os.truncate(path, 8 << 20)
    with pytest.raises(Unavailable, match=path.name):
        await reader.limit(len(data) - 1)
    await reader.aclose()
    (problem,) = await source.problems()
    assert path.name in problem


async def test_damaged_manifest_is_never_given(tmp_path: Path, opening: Callable[..., BundleSource]) -> None:
    image = make_image([blob(90, 1)])
    (path,) = make_bundle(tmp_path, [(f"{APP}:1", image)])
    path.write_bytes(path.read_bytes().replace(image.body, image.body[:-1] + b" "))
    with pytest.raises(BadContent, match=path.name):
        await opening(path).manifest(APP, Tag("1"))


async def test_catalog_names_the_repositories_page_by_page(
    tmp_path: Path, opening: Callable[..., BundleSource]
) -> None:  # P15
    image = make_image([blob(90, 1)])
    source = opening(*make_bundle(tmp_path, [(f"{HUB}/b:1", image), (f"{HUB}/a:1", image), ("ghcr.io/c:1", image)]))
    served = await ServedBundles.open(source)
    assert await served.repositories(None, 2) == ["docker.io/a", "docker.io/b"]
    assert await served.repositories("docker.io/b", 2) == ["ghcr.io/c"]
