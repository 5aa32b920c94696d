"""The memory Source passes the suite, and counts and fails as its callers rely on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.errors import TagInvalid, Unavailable
from proxy.oci.names import Repository, Tag
from proxy.source import Source
from tests.source_suite import Contents, SourceSuite

REPOSITORY = Repository("docker.io", "library/app")


class TestMemorySource(SourceSuite):
    @pytest.fixture
    def memory(self, contents: Contents) -> MemorySource:
        return contents.load(MemorySource("memory"))

    @pytest.fixture
    def source(self, memory: MemorySource) -> Source:
        return memory

    @pytest.fixture
    def opened(self, memory: MemorySource) -> Callable[[], int]:
        return lambda: memory.opened


async def test_moved_tag_resolves_to_the_new_manifest() -> None:
    memory = MemorySource("memory")
    old = memory.add_manifest(REPOSITORY, b"old", "a/b", "3")
    new = memory.add_manifest(REPOSITORY, b"new", "a/b", "3")
    assert (await memory.resolve(REPOSITORY, Tag("3"))) == new
    memory.tag(REPOSITORY, "3", old.digest)
    assert (await memory.resolve(REPOSITORY, Tag("3"))) == old


def test_malformed_tag_is_refused() -> None:
    with pytest.raises(TagInvalid):
        MemorySource("memory").add_manifest(REPOSITORY, b"x", "a/b", "-bad")


async def test_sha512_blob_is_found_by_its_own_digest() -> None:  # P8
    memory = MemorySource("memory")
    descriptor = memory.add_blob(REPOSITORY, b"data", "sha512")
    assert descriptor.digest == Digest.of(b"data", "sha512")
    assert (await memory.stat_blob(REPOSITORY, descriptor.digest)).size == 4


@pytest.mark.parametrize("anonymous", [True, False])
async def test_content_says_whether_it_was_given_without_credential(anonymous: bool) -> None:  # P43
    memory = MemorySource("memory", anonymous=anonymous)
    manifest = memory.add_manifest(REPOSITORY, b"x", "a/b")
    blob = memory.add_blob(REPOSITORY, b"data")
    assert (await memory.manifest(REPOSITORY, manifest.digest)).anonymous is anonymous
    assert (await memory.open_blob(REPOSITORY, blob.digest)).anonymous is anonymous


async def test_closed_stream_breaks_instead_of_ending_short() -> None:
    memory = MemorySource("memory")
    blob = memory.add_blob(REPOSITORY, bytes(200_000))
    stream = await memory.open_blob(REPOSITORY, blob.digest)
    chunks = stream.__aiter__()
    await anext(chunks)
    await stream.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await anext(chunks)
