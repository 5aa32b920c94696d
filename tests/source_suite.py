"""What every Source passes. A subclass brings the source, and says how often content was opened behind it:

    class TestMemorySource(SourceSuite):
        @pytest.fixture
        def memory(self, contents: Contents) -> MemorySource:
            return contents.load(MemorySource("memory"))

        @pytest.fixture
        def source(self, memory: MemorySource) -> Source: ...              # may be async and yield

        @pytest.fixture
        def opened(self, memory: MemorySource) -> Callable[[], int]: ...   # blobs opened so far at the far end

`contents.load` fills a memory Source, `contents.publish` any registry. The sentences are those of
`proxy/source.py`. A source that keeps what it read must answer alike the second time: where that may
differ, the tests ask twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, NotFound, RangeNotSatisfiable
from proxy.oci.listings import TagPage, fallback_tag
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream, Source
from tests.support.contents import DOCKER_MANIFEST, OCI_INDEX, Image, Registry, blob, make_image, make_index
from tests.support.fake_listings import fallback_index

INDEX_TAG = Tag("multi")
DOCKER_TAG = Tag("docker")
SIGNATURE = "application/vnd.example.signature"
SBOM = "application/vnd.example.sbom+json"
UNKNOWN = Digest.of(b"nobody has this")
BLOBS = {"empty": b"", "one byte": b"\x00", "2048 bytes": blob(2048, 1), "3 MiB": blob(3 << 20, 2)}


@dataclass(frozen=True)
class Contents:
    """One repository with an index of two platforms and two that refer to it, a Docker schema 2 image, and the
    blobs of BLOBS in their layers.

    `elsewhere` is a repository of the same upstream that holds nothing.
    """

    repository: Repository
    elsewhere: Repository
    index: Image
    docker: Image
    referrers: tuple[Image, Image]

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags of the repository, that under which registries without the API list referrers among them."""
        return (DOCKER_TAG, INDEX_TAG, fallback_tag(self.index.digest))

    def publish(self, registry: Registry) -> None:
        """Put everything into `registry`, which knows repositories by their path."""
        self.index.publish(registry, self.repository.path, INDEX_TAG)
        self.docker.publish(registry, self.repository.path, DOCKER_TAG)
        for referrer in self.referrers:
            referrer.publish(registry, self.repository.path)
        pushed = {referrer.digest: (referrer.media_type, referrer.body) for referrer in self.referrers}
        listed = fallback_index(pushed, self.index.digest)
        registry.add_manifest(self.repository.path, listed, OCI_INDEX, fallback_tag(self.index.digest))

    def load(self, memory: MemorySource) -> MemorySource:
        """Put everything into a memory Source and return it."""
        self.publish(_Loading(memory, self.repository.upstream))
        return memory


def make_contents(upstream: str) -> Contents:
    """Return the contents under the name that an upstream has in the test."""
    amd64 = make_image([BLOBS["3 MiB"], BLOBS["2048 bytes"]], platform="linux/amd64")
    arm64 = make_image([BLOBS["2048 bytes"], BLOBS["one byte"]], platform="linux/arm64")
    index = make_index({"linux/amd64": amd64, "linux/arm64/v8": arm64})
    said = {"org.example.by": "nobody"}
    return Contents(
        Repository(upstream, "team/app"),
        Repository(upstream, "team/other"),
        index,
        make_image([BLOBS["2048 bytes"], BLOBS["empty"]], manifest_type=DOCKER_MANIFEST),
        (
            make_image([BLOBS["one byte"]], subject=index, artifact_type=SIGNATURE, annotations=said),
            make_image([BLOBS["2048 bytes"]], subject=index, artifact_type=SBOM),
        ),
    )


async def read(stream: BlobStream) -> bytes:
    """Read a stream to its end and close it."""
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


@dataclass(frozen=True)
class _Loading:
    memory: MemorySource
    upstream: str

    def add_blob(self, repo: str, data: bytes) -> Digest:
        return self.memory.add_blob(Repository(self.upstream, repo), data).digest

    def add_manifest(self, repo: str, body: bytes, media_type: str, tag: str | None = None) -> Digest:
        return self.memory.add_manifest(Repository(self.upstream, repo), body, media_type, tag).digest


class SourceSuite:
    """Subclasses bring the fixtures `source` and `opened`, and `contents` where the upstream's name matters."""

    @pytest.fixture
    def contents(self) -> Contents:
        return make_contents("docker.io")

    async def _read(
        self, source: Source, contents: Contents, data: bytes, span: ByteRange | None = None
    ) -> tuple[BlobStream, bytes]:
        stream = await source.open_blob(contents.repository, Digest.of(data), span)
        return stream, await read(stream)

    def test_name_is_short_and_without_secrets(self, source: Source) -> None:
        assert 0 < len(source.name) <= 255
        assert not set("?@\r\n ") & set(source.name)

    @pytest.mark.parametrize("tag", [INDEX_TAG, DOCKER_TAG])
    async def test_tag_resolves_to_the_descriptor_and_gives_the_exact_bytes(
        self, source: Source, contents: Contents, tag: Tag
    ) -> None:  # P18
        image = contents.index if tag == INDEX_TAG else contents.docker
        for _ in range(2):
            descriptor = await source.resolve(contents.repository, tag)
            manifest = await source.manifest(contents.repository, tag)
            assert (descriptor.media_type, descriptor.digest, descriptor.size) == (
                image.media_type,
                image.digest,
                len(image.body),
            )
            assert manifest.body == image.body
            assert manifest.descriptor == descriptor

    async def test_every_manifest_is_found_by_digest(self, source: Source, contents: Contents) -> None:  # P18
        for image in (contents.index, *contents.index.children, contents.docker):
            assert isinstance(image.digest, Digest)
            descriptor = await source.resolve(contents.repository, image.digest)
            manifest = await source.manifest(contents.repository, image.digest)
            assert manifest.body == image.body
            assert (descriptor.digest, descriptor.size) == (image.digest, len(image.body))
            assert descriptor.media_type == manifest.descriptor.media_type == image.media_type

    @pytest.mark.parametrize("reference", [Tag("missing"), UNKNOWN])
    async def test_unknown_manifest_is_manifest_unknown(
        self, source: Source, contents: Contents, reference: Reference
    ) -> None:
        for _ in range(2):
            with pytest.raises(ManifestUnknown):
                await source.resolve(contents.repository, reference)
            with pytest.raises(ManifestUnknown):
                await source.manifest(contents.repository, reference)

    async def test_unknown_blob_is_blob_unknown(self, source: Source, contents: Contents) -> None:
        for _ in range(2):
            with pytest.raises(BlobUnknown):
                await source.stat_blob(contents.repository, UNKNOWN)
            with pytest.raises(BlobUnknown):
                await source.open_blob(contents.repository, UNKNOWN)
            with pytest.raises(BlobUnknown):
                await source.open_blob(contents.repository, UNKNOWN, ByteRange(0, 10))

    async def test_other_repository_does_not_have_what_this_one_has(
        self, source: Source, contents: Contents
    ) -> None:  # P43
        _, data = await self._read(source, contents, BLOBS["2048 bytes"])
        assert data == BLOBS["2048 bytes"]
        await source.manifest(contents.repository, INDEX_TAG)
        with pytest.raises(NotFound):
            await source.open_blob(contents.elsewhere, Digest.of(data))
        with pytest.raises(NotFound):
            await source.stat_blob(contents.elsewhere, Digest.of(data))
        with pytest.raises(NotFound):
            await source.manifest(contents.elsewhere, contents.index.digest)
        with pytest.raises(NotFound):
            await source.resolve(contents.elsewhere, INDEX_TAG)

    @pytest.mark.parametrize("size", BLOBS)
    async def test_stat_tells_the_size_and_opens_nothing(
        self, source: Source, contents: Contents, opened: Callable[[], int], size: str
    ) -> None:  # P3
        data = BLOBS[size]
        descriptor = await source.stat_blob(contents.repository, Digest.of(data))
        assert (descriptor.digest, descriptor.size) == (Digest.of(data), len(data))
        assert opened() == 0
        _, body = await self._read(source, contents, data)
        assert body == data
        assert opened() == 1 or not data

    @pytest.mark.parametrize("size", BLOBS)
    async def test_blob_is_read_whole_and_more_than_once(self, source: Source, contents: Contents, size: str) -> None:
        data = BLOBS[size]
        for _ in range(2):
            stream, body = await self._read(source, contents, data)
            assert body == data
            assert stream.digest == Digest.of(data)
            assert stream.start == 0
            assert stream.size in (None, len(data))
            assert stream.end == stream.size

    @pytest.mark.parametrize(
        ("span", "start", "end"),
        [
            (ByteRange(500, 1499), 500, 1500),
            (ByteRange(500, None), 500, 2048),
            (ByteRange(None, 500), 1548, 2048),
            (ByteRange(None, 5000), 0, 2048),
            (ByteRange(2000, 5000), 2000, 2048),
            (ByteRange(0, None), 0, 2048),
            (ByteRange(0, 0), 0, 1),
            (ByteRange(2047, 2047), 2047, 2048),
        ],
        ids=str,
    )
    async def test_span_gives_exactly_its_bytes(
        self, source: Source, contents: Contents, span: ByteRange, start: int, end: int
    ) -> None:  # P4
        for _ in range(2):
            stream, body = await self._read(source, contents, BLOBS["2048 bytes"], span)
            assert body == BLOBS["2048 bytes"][start:end]
            assert (stream.start, stream.end, stream.size) == (start, end, 2048)

    @pytest.mark.parametrize("span", [ByteRange(500, 0), ByteRange(5000, 10000), ByteRange(2048, None)], ids=str)
    async def test_span_without_a_byte_is_not_satisfiable(
        self, source: Source, contents: Contents, span: ByteRange
    ) -> None:  # P4
        for _ in range(2):
            with pytest.raises(RangeNotSatisfiable) as caught:
                await read(await source.open_blob(contents.repository, Digest.of(BLOBS["2048 bytes"]), span))
            assert caught.value.size == 2048
            await self._read(source, contents, BLOBS["2048 bytes"])

    async def test_span_in_the_middle_and_at_the_end_of_a_large_blob(self, source: Source, contents: Contents) -> None:
        data = BLOBS["3 MiB"]
        for span in (ByteRange(1_000_003, 2_500_000), ByteRange(3_000_000, None), ByteRange(None, 7)):
            start, end = span.resolve(len(data))
            stream, body = await self._read(source, contents, data, span)
            assert body == data[start:end]
            assert (stream.start, stream.end) == (start, end)

    async def test_any_span_of_the_empty_blob_is_all_of_it(self, source: Source, contents: Contents) -> None:  # P6
        for span in (ByteRange(0, None), ByteRange(None, 5)):
            _, body = await self._read(source, contents, b"", span)
            assert body == b""

    async def test_tags_come_in_pages_of_ascii_order(self, source: Source, contents: Contents) -> None:  # P11
        tags = contents.tags
        for _ in range(2):
            for after, limit, expected in (
                (None, None, TagPage(tags, False)),
                (None, 2, TagPage(tags[:2], True)),
                (tags[0], 1, TagPage(tags[1:2], True)),
                (tags[0], 2, TagPage(tags[1:], False)),
                ("e", None, TagPage(tags[1:], False)),
                (tags[-1], None, TagPage((), False)),
                (None, 0, TagPage((), False)),
            ):
                page = await source.tags(contents.repository, after, limit)
                assert (page.tags, page.more) == (expected.tags, expected.more), (after, limit)

    async def test_tags_of_an_unknown_repository_are_name_unknown(self, source: Source, contents: Contents) -> None:
        for _ in range(2):
            with pytest.raises(NameUnknown):  # P11
                await source.tags(contents.elsewhere, None, None)

    async def test_referrers_are_listed_with_all_that_is_said_of_them(
        self, source: Source, contents: Contents
    ) -> None:  # P12
        signature, sbom = contents.referrers
        for _ in range(2):
            found = await source.referrers(contents.repository, contents.index.digest, None)
            entries = {entry["digest"]: entry for entry in found.manifests}
            assert set(entries) == {signature.digest, sbom.digest}
            assert entries[signature.digest] == {
                "mediaType": signature.media_type,
                "digest": signature.digest,
                "size": len(signature.body),
                "artifactType": SIGNATURE,
                "annotations": {"org.example.by": "nobody"},
            }
            assert not found.filtered

    async def test_referrers_of_one_artifact_type_are_told_apart(self, source: Source, contents: Contents) -> None:
        for kind, expected in ((SBOM, [contents.referrers[1].digest]), ("text/none", [])):
            found = await source.referrers(contents.repository, contents.index.digest, kind)  # P12
            assert [entry["digest"] for entry in found.manifests] == expected
            assert found.filtered

    async def test_nothing_refers_to_a_digest_that_nobody_knows(self, source: Source, contents: Contents) -> None:
        for digest in (UNKNOWN, Digest.of(b"nor this", "sha512"), contents.docker.digest):  # P12, P13
            assert (await source.referrers(contents.repository, digest, None)).manifests == ()

    async def test_leaving_early_disturbs_nobody(self, source: Source, contents: Contents) -> None:  # P29
        data = BLOBS["3 MiB"]
        left = await source.open_blob(contents.repository, Digest.of(data))
        staying = await source.open_blob(contents.repository, Digest.of(data))
        async for chunk in left:
            assert data.startswith(chunk)
            break
        await left.aclose()
        await left.aclose()
        assert await read(staying) == data
        unread = await source.open_blob(contents.repository, Digest.of(data))
        await unread.aclose()
        _, again = await self._read(source, contents, data)
        assert again == data

    async def test_many_readers_of_one_blob_all_get_it(self, source: Source, contents: Contents) -> None:
        data = BLOBS["3 MiB"]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            readers = [group.create_task(self._read(source, contents, data)) for _ in range(8)]
        assert all(task.result()[1] == data for task in readers)
