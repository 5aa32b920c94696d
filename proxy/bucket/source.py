"""The fleet's bucket as one of those who are near: it gives content by its digest, and proves nothing (P43)."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from proxy.bucket.answers import NAME, Opened
from proxy.bucket.objects import Bucket
from proxy.cache.near import NearManifest
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, ManifestUnknown
from proxy.oci.manifests import MAX_MANIFEST, parse_manifest
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange


class BucketSource:
    """A NearSource. While the bucket fails, its methods raise Unavailable at once."""

    name = NAME
    kind: Final[Literal["bucket"]] = "bucket"

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def has(self, digest: Digest) -> bool:
        """Tell whether it is there. Raises Unavailable."""
        return await self._bucket.look(digest) is not None

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> Opened:
        """Raises BlobUnknown, RangeNotSatisfiable, Unavailable; the stream raises Unavailable when it breaks."""
        opened = await self._bucket.open(digest, span)
        if opened is None:
            raise BlobUnknown(f"the {NAME} has no blob {digest}")
        return opened

    async def manifest(self, repository: Repository, digest: Digest) -> NearManifest:
        """Return the verified manifest; it is servable, as none is uploaded before what it needs (see `uploads`).

        Raises ManifestUnknown, BadContent, Unavailable.
        """
        found = await self._bucket.read(digest, MAX_MANIFEST)
        if found is None:
            raise ManifestUnknown(f"the {NAME} has no manifest {digest}")
        body, declared, public = found
        media_type = await asyncio.to_thread(_verified, digest, body, declared)
        return NearManifest(Descriptor(media_type, digest, len(body)), body, public, proven=False, servable=True)


def _verified(digest: Digest, body: bytes, declared: str) -> str:
    """Return the media type of a manifest; for a thread, as a large one takes it 50 ms. Raises as `manifest`."""
    if Digest.of(body, digest.algorithm) != digest:
        raise BadContent(f"the {NAME} has other bytes under {digest}: delete that object")
    return parse_manifest(body, declared).media_type
