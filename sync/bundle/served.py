"""Bundles as clients may have them: only images that are whole, only blobs whose bytes are those of their digest.

A Source in front of `source`. Nobody behind it verifies what it gives (`entrepot serve --from`).
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import islice
from typing import Self

from proxy.cache.manifests import ServedManifest
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, ManifestUnknown
from proxy.oci.listings import Referrers, TagPage, page_of
from proxy.oci.names import Reference, Repository
from proxy.oci.ranges import ByteRange
from proxy.oci.terms import ANY, Terms
from proxy.source import BlobStream
from sync.bundle.opened import Bundle
from sync.bundle.plan import Image
from sync.bundle.reading import BundleBlob
from sync.bundle.source import BundleSource, missing

WITHHELD = 64 << 10
VERIFIED_FIRST = 1 << 20
"""Blobs up to so many bytes are read and verified before a byte of them is given."""
JUDGED_KEPT = 4096
_log = logging.getLogger(__name__)

_Stamps = tuple[tuple[int, int], ...]


class ServedBundles:
    """Gives what bundles have whole. Make it with `open`.

    whole: of each manifest, whether it can be served (an index is when one of its manifests is). State: the blobs that
    were found damaged, so that nobody stitches a part of one to what he has; whoever wants all of one has it read anew.
    And those that were found right, with what tells that their volumes are still what they were.
    """

    def __init__(self, source: BundleSource, whole: dict[str, bool]) -> None:
        self._source = source
        self._whole = whole
        self._damaged: OrderedDict[Digest, _Stamps | None] = OrderedDict()
        self._verified: OrderedDict[Digest, _Stamps | None] = OrderedDict()

    @classmethod
    async def open(cls, source: BundleSource) -> Self:
        """Look at all manifests. Raises Unavailable for a volume that cannot be read."""
        return cls(source, await asyncio.to_thread(_judged, source))

    @property
    def name(self) -> str:
        return self._source.name

    def counted(self) -> tuple[int, int]:
        """Return how many images can be served, and how many there are."""
        found = [self._whole.get(image.digest, False) for _, image in self._source.images()]
        return sum(found), len(found)

    def lacking(self, most: int) -> list[tuple[Bundle, Image]]:
        """Return up to `most` images that cannot be served, each with the bundle that names it."""
        lost = ((bundle, image) for bundle, image in self._source.images() if not self._whole.get(image.digest, False))
        return list(islice(lost, most))

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        return (await self.manifest(repository, reference)).descriptor

    async def manifest(self, repository: Repository, reference: Reference, terms: Terms = ANY) -> ServedManifest:
        found = await self._source.manifest(repository, reference, terms)
        if not self._whole.get(found.descriptor.digest, False):
            raise ManifestUnknown(f"{repository} {reference} is not whole here: {self._lost(repository, reference)}")
        return ServedManifest(found.descriptor, found.body)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        return await self._source.stat_blob(repository, digest)

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> BlobStream:
        """Open a blob whose last bytes leave when all fit its digest; of a part only its bytes are read.

        One that was found right, in volumes that nobody has written to since, is sent without being hashed again.
        """
        stream = await self._source.open_blob(repository, digest, span)
        stamps = stream.stamps()
        if stamps is not None and stream.size > VERIFIED_FIRST and self._verified.get(digest) == stamps:
            return stream.by_sendfile() or stream
        try:
            if (stream.start, stream.end) == (0, stream.size):
                checked = verifying(stream, digest, partial(self._judge, digest, stamps, stream.where))
                if stream.size <= VERIFIED_FIRST:
                    return _Bytes(digest, b"".join([chunk async for chunk in checked]))
                await stream.begin()
                return checked
            if digest in self._damaged:
                raise BadContent(f"blob {digest} of {repository} is damaged in {stream.where}: no part of it is given")
            await stream.begin()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def tags(self, repository: Repository, after: str | None, limit: int | None) -> TagPage:
        """Return the tags whose images are whole."""
        named = [(tag, self._source.tagged(repository, tag)) for tag in self._source.names_of_tags(repository)]
        shown = [tag for tag, found in named if found is not None and self._whole.get(found[1].digest, False)]
        return page_of(shown, after, limit)

    async def referrers(self, repository: Repository, digest: Digest, artifact_type: str | None) -> Referrers:
        found = await self._source.referrers(repository, digest, artifact_type)
        shown = tuple(entry for entry in found.manifests if self._whole.get(entry["digest"], False))
        return Referrers(shown, found.filtered)

    async def repositories(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names of repositories, upstream and all (P15)."""
        names = [str(one) for one in self._source.repositories]
        start = bisect_right(names, after) if after else 0
        return names[start : start + limit]

    def _lost(self, repository: Repository, reference: Reference) -> str:
        for bundle, image in self._source.images():
            if bundle.plan.names[image.repository] != repository:
                continue
            if reference == image.digest or (image.tag is not None and reference == image.tag.name):
                return f"{missing(bundle)}; serve a folder that has them too"
        return "not all that it names is in the bundles that are served"

    def _judge(self, digest: Digest, stamps: _Stamps | None, where: str, right: bool) -> None:
        kept, other = (self._verified, self._damaged) if right else (self._damaged, self._verified)
        if not right:
            _log.error(
                "a blob is damaged; `entrepot bundle verify` finds out where", extra={"blob": digest, "in": where}
            )
        other.pop(digest, None)
        kept[digest] = stamps
        if len(kept) > JUDGED_KEPT:
            kept.popitem(last=False)


def verifying(stream: BundleBlob, digest: Digest, judged: Callable[[bool], None] = lambda _: None) -> BlobStream:
    """Return a whole blob's stream whose last 64 KiB are withheld until everything fits `digest` (P38).

    It raises BadContent in their place where it does not; `judged` hears which.
    """
    return _Verified(stream, digest, judged)


class _Verified:
    """A BlobStream."""

    def __init__(self, stream: BundleBlob, digest: Digest, judged: Callable[[bool], None]) -> None:
        self.digest = digest
        self.size, self.start, self.end = stream.size, stream.start, stream.end
        self._stream = stream
        self._judged = judged
        self._hasher = digest.hasher()
        stream.hash_into(self._hasher)

    @property
    def anonymous(self) -> bool:
        return False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = b""
        async for chunk in self._stream:
            if len(chunk) < WITHHELD:
                chunk = held + chunk
            elif held:
                yield held
            if len(chunk) > WITHHELD:
                yield chunk[:-WITHHELD]
            held = chunk[-WITHHELD:]
        right = self.digest.matches(self._hasher)
        self._judged(right)
        if not right:
            raise BadContent(f"blob {self.digest} in {self._stream.where} is damaged: its bytes are not its digest's")
        if held:
            yield held

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Bytes:
    """A small blob that is verified and at hand; a BlobStream."""

    def __init__(self, digest: Digest, data: bytes) -> None:
        self.digest = digest
        self.start, self.size, self.end = 0, len(data), len(data)
        self._data = data

    @property
    def anonymous(self) -> bool:
        return False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._data:
            yield self._data

    async def aclose(self) -> None:
        """There is nothing to close."""


def _judged(source: BundleSource) -> dict[str, bool]:
    """Tell of every manifest that is brought whether it can be served. For a thread."""
    whole: dict[str, bool] = {}
    for bundle in source.bundles:
        for blob in bundle.plan.blobs:
            if blob.media_type is not None:
                _is_whole(source, Digest(blob.digest), whole)
    return whole


def _is_whole(source: BundleSource, digest: Digest, known: dict[str, bool], depth: int = 8) -> bool:
    if digest in known:
        return known[digest]
    if not depth:
        return False
    parsed = source.parsed(digest)
    if parsed is None:
        verdict = False
    elif parsed.kind == "index":
        named = [child.descriptor.digest for child in parsed.children]
        each = [_is_whole(source, child, known, depth - 1) for child in named]
        verdict = not named or any(each)
    else:
        needed = (child.descriptor.digest for child in parsed.children if child.required)
        verdict = all(source.find(child) is not None for child in needed)
    known[digest] = verdict
    return verdict
