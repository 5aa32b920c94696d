"""Another region as a source of content by digest. How it is asked, and how fast, is in `peer`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal

import aiohttp

from proxy.cache.near import NearManifest
from proxy.fleet.neighbour import checked_manifest
from proxy.fleet.protocol import SAYS_HEADER, Says
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, ManifestUnknown, NotFound
from proxy.oci.manifests import MAX_MANIFEST
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.regions.protocol import HELD_ONLY, Wanted, content_target
from proxy.upstream.answers import Asked
from proxy.upstream.spans import Placement, place
from proxy.upstream.stream import ResponseStream

if TYPE_CHECKING:
    from proxy.regions.peer import PeerClient

HEADERS_SECONDS = 10.0
IDLE_SECONDS = 30.0


class PeerStream(ResponseStream):
    """A blob from a region, no faster than its link may be. `proven` as of a NearStream."""

    def __init__(
        self,
        name: str,
        digest: Digest,
        response: aiohttp.ClientResponse,
        lies: Placement,
        took: Callable[[int], Awaitable[None]],
    ) -> None:
        says = says_of(response)
        super().__init__(f"region {name}", digest, response, lies, anonymous=says.public, stall=IDLE_SECONDS)
        self.proven = says.proven
        self._took = took

    async def _read(self) -> bytes:
        chunk = await super()._read()
        await self._took(len(chunk))
        return chunk


class PeerSource:
    """A NearSource: what the region has stored or, `start`, may fetch from its upstream for us."""

    kind: Final[Literal["region"]] = "region"

    def __init__(self, client: PeerClient, *, start: bool) -> None:
        self.name = client.name
        self._client = client
        self._start = start
        self._headers: dict[str, str] = {} if start else {"Cache-Control": HELD_ONLY}

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> PeerStream:
        """Open the blob, or `span` of it. Raises BlobUnknown, RangeNotSatisfiable, GatewayTimeout, Transient."""
        misses = self._client.misses
        if not self._start and misses.lacks(repository):
            raise BlobUnknown(f"region {self.name} lacked what it was asked for of {repository} a moment ago")
        headers = self._headers if span is None else {**self._headers, "Range": f"bytes={span}"}
        target = content_target(Wanted("blob", repository, digest))
        try:
            response = await self._client.request("GET", target, headers, self._seconds)
        except NotFound as error:
            misses.missed(repository)
            raise BlobUnknown(error.message) from None
        misses.has(repository)
        try:
            asked = Asked("blob", repository, digest)
            lies = place(f"region {self.name}", asked, span, response.status, response.headers)
            stream = PeerStream(self.name, digest, response, lies, self._client.took)
        except BaseException:
            response.close()
            raise
        stream.when_closed = self._client.tell
        return stream

    async def manifest(self, repository: Repository, digest: Digest) -> NearManifest:
        """Return the verified manifest. Raises ManifestUnknown, GatewayTimeout, Transient, BadContent."""
        target = content_target(Wanted("manifest", repository, digest))
        try:
            response = await self._client.request("GET", target, self._headers, self._seconds)
        except NotFound as error:
            self._client.misses.missed(repository)
            raise ManifestUnknown(error.message) from None
        self._client.misses.has(repository)
        body = await self._client.read(response, MAX_MANIFEST, self._client.took)
        self._client.tell()
        return await checked_manifest(f"region {self.name}", digest, body, says_of(response))

    @property
    def _seconds(self) -> float:
        return HEADERS_SECONDS if self._start else self._client.patience


def says_of(response: aiohttp.ClientResponse) -> Says:
    """Return what an answer tells besides its body. Raises BadContent."""
    text = response.headers.get(SAYS_HEADER, "")
    return Says.decode(text) if text else Says()
