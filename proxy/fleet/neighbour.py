"""One neighbour as a source of content, and how long it is waited for while nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from proxy.cache.near import NearManifest, TagSaid
from proxy.fleet.protocol import Says, blob_target, decode_tag, manifest_target, node_name, tag_target
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    BlobUnknown,
    ManifestUnknown,
    NotFound,
    RegistryError,
    Transient,
    Unavailable,
)
from proxy.oci.manifests import MAX_MANIFEST
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.upstream.answers import Asked
from proxy.upstream.spans import Placement, place
from proxy.upstream.stream import ResponseStream

if TYPE_CHECKING:
    from proxy.fleet.neighbours import Answer, Neighbours

STALL_SECONDS = 2.0
LONGEST_SILENCE = 60.0
HAS_SECONDS = 2.0
TAG_BYTES = 64 << 10
_HASHED_HERE = 1 << 18

Working = Callable[[], Awaitable[bool]]


class NeighbourStream(ResponseStream):
    """A blob from a node. While nothing comes, `working` is asked whether to go on waiting (see Neighbour)."""

    def __init__(self, answer: Answer, digest: Digest, place: Placement, working: Working) -> None:
        says = answer.says
        super().__init__(answer.node, digest, answer.response, place, anonymous=says.public, stall=STALL_SECONDS)
        self.proven = says.proven
        self._working = working

    async def _read(self) -> bytes:
        silent = 0.0
        while not self._closed:
            try:
                async with asyncio.timeout(self._stall):
                    return await self._response.content.readany()
            except TimeoutError:
                silent += self._stall
                if silent < LONGEST_SILENCE and await self._working():
                    continue
                reason = f"gives nothing for {silent:g} s"
            except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
                reason = f"breaks off ({type(error).__name__})"
            await self.aclose()
            raise Unavailable(f"node {self._host} {reason} at byte {self._position} of blob {self.digest}")
        raise Unavailable(f"blob {self.digest} from node {self._host} was closed at byte {self._position}")


class Neighbour:
    """A NearSource: the node at `url`. Make it with `Neighbours.at`.

    Where it is silent for `STALL_SECONDS` it is given up, unless `still` says that it is to be waited for (None: it
    always is), and it answers a ping.
    """

    kind: Final[Literal["neighbour"]] = "neighbour"

    def __init__(self, neighbours: Neighbours, url: str, *, held: bool, still: Working | None) -> None:
        self.url = url
        self.name = node_name(url)
        self._neighbours = neighbours
        self._held = held
        self._still = still

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> NeighbourStream:
        """Open the blob, or `span` of it. Raises BlobUnknown, RangeNotSatisfiable, GatewayTimeout, Transient."""
        headers = {} if span is None else {"Range": f"bytes={span}"}
        target = blob_target(repository, digest, held=self._held)
        try:
            answer = await self._ask("GET", target, headers)
        except NotFound as error:
            raise BlobUnknown(error.message) from None
        try:
            asked = Asked("blob", repository, digest)
            lies = place(f"node {answer.node}", asked, span, answer.status, answer.headers)
            return NeighbourStream(answer, digest, lies, self._working)
        except BaseException:
            answer.close()
            raise

    async def manifest(self, repository: Repository, digest: Digest) -> NearManifest:
        """Return the verified manifest. Raises ManifestUnknown, GatewayTimeout, Transient, BadContent."""
        try:
            answer = await self._ask("GET", manifest_target(repository, digest, held=self._held))
            body = await answer.read(MAX_MANIFEST)
        except NotFound as error:
            raise ManifestUnknown(error.message) from None
        return await checked_manifest(f"node {self.name}", digest, body, answer.says)

    async def tag(self, repository: Repository, tag: Tag) -> TagSaid:
        """Return what the node was told of a tag. Raises ManifestUnknown where it was told nothing; Transient."""
        try:
            answer = await self._ask("GET", tag_target(repository, tag))
            return decode_tag(await answer.read(TAG_BYTES))
        except NotFound as error:
            raise ManifestUnknown(error.message) from None

    async def has_image(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether the node has the manifest and its blobs; one that cannot be asked has not."""
        target = manifest_target(repository, digest, held=True)
        try:
            async with self._neighbours.request(self.url, "HEAD", target, timeout=HAS_SECONDS) as answer:
                return answer.says.servable
        except (NotFound, Transient):
            return False

    async def has(self, repository: Repository, digest: Digest, seconds: float) -> bool | None:
        """Tell whether the node has stored the blob; None where it does not say so within `seconds`."""
        target = blob_target(repository, digest, held=True)
        try:
            async with self._neighbours.request(self.url, "HEAD", target, timeout=seconds):
                return True
        except NotFound:
            return False
        except RegistryError:
            return None

    async def _ask(self, method: str, target: str, headers: dict[str, str] | None = None) -> Answer:
        """Ask, and look after the node for as long as its answer does not come."""
        asking = asyncio.create_task(self._neighbours.ask(self.url, method, target, headers or {}))
        taken = False
        try:
            while not (await asyncio.wait([asking], timeout=STALL_SECONDS))[0]:
                if not await self._working():
                    raise Unavailable(f"node {self.name} does not answer, and is not to be waited for")
            taken = True
            return asking.result()
        finally:
            if not taken:
                await _withdraw(asking)

    async def _working(self) -> bool:
        if self._still is not None:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    if not await self._still():
                        return False
            except TimeoutError:
                return False
        return await self._neighbours.alive(self.url)


async def checked_manifest(who: str, digest: Digest, body: bytes, says: Says) -> NearManifest:
    """Return the manifest that `who` gave as `digest`. Raises BadContent where it is not that, or has no type."""
    found = await asyncio.to_thread(Digest.of, body, digest.algorithm) if len(body) > _HASHED_HERE else None
    if (found or Digest.of(body, digest.algorithm)) != digest:
        raise BadContent(f"{who} gives bytes for manifest {digest} that do not match it")
    if not says.type:
        raise BadContent(f"{who} does not tell the type of manifest {digest}")
    return NearManifest(Descriptor(says.type, digest, len(body)), body, says.public, says.proven, says.servable)


async def _withdraw(asking: asyncio.Task[Answer]) -> None:
    """End a question whose answer is no longer wanted."""
    asking.cancel()
    await asyncio.wait([asking])
    if not asking.cancelled() and asking.exception() is None:
        asking.result().close()
