"""What this node answers other nodes of its fleet: content by digest, tags, pings, and what `more` adds to that.

Nobody without the fleet secret learns anything, nor whether a digest exists. Clients are the face's (`app`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from types import MappingProxyType
from typing import Protocol
from urllib.parse import parse_qs

from aiohttp import web

from metrics.events import Emit, NeighbourAnswered
from proxy import respond
from proxy.bodies import give_blob, span_of
from proxy.cache.blobs import NodeBlob
from proxy.cache.near import NearManifest, TagSaid
from proxy.fleet.protocol import (
    ANSWER_HEADER,
    BLOBS,
    MANIFESTS,
    PING,
    REQUEST_HEADER,
    SAYS_HEADER,
    TAGS,
    OtherProtocol,
    Says,
    encode_tag,
    kind_of,
    origin,
)
from proxy.fleet.signing import asking_node, hash_of, sign_answer, verify_request
from proxy.oci.digest import Digest
from proxy.oci.errors import NameInvalid, NotServed, RangeNotSatisfiable, RegistryError, Unavailable, Unsupported
from proxy.oci.names import Repository, Tag, parse_path
from proxy.oci.ranges import ByteRange

MOST_AT_ONCE = 512
HEADERS_SECONDS = 8.5
FIRST_BYTE_SECONDS = 8.0
_MOST_WARNED = 64
_HASHED_HERE = 1 << 18
_JSON = MappingProxyType({"Content-Type": "application/json"})
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]
"""Answers a verified request with a response whose body is bytes, as they are sent, or raises a RegistryError."""
_NO_MORE: Mapping[str, Handler] = MappingProxyType({})
log = logging.getLogger(__name__)


class NodeCache(Protocol):
    """The cache as other nodes may ask it; its ReadThrough is one. `held`: only what is stored here."""

    async def node_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        """Open a blob. Where its size is not known yet, `span` is to be narrowed later (see FileReader.narrow).

        Raises BlobUnknown, RangeNotSatisfiable, Transient (GatewayTimeout: another node would have to be asked).
        """
        ...

    async def node_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return a manifest. Raises ManifestUnknown, Transient (GatewayTimeout as above)."""
        ...

    async def node_tag(self, repository: Repository, tag: Tag) -> TagSaid:
        """Return what the upstream said of a tag. Raises ManifestUnknown, Transient."""
        ...


@dataclass(slots=True)
class _Asked:
    """One verified request as it goes; `signature` is what its answer is bound to, `span` the Range header."""

    request: web.BaseRequest
    signature: str
    span: str
    started: float = field(default_factory=monotonic)
    sent: int = 0

    @property
    def with_body(self) -> bool:
        return self.request.method != "HEAD"

    def count(self, sent: int) -> None:
        self.sent += sent


class Endpoint:
    """Answers the nodes that ask `own_url`, as this one advertises itself, from `cache`.

    `more` are handlers by their exact path. `MOST_AT_ONCE` requests are answered at once, 503 beyond, pings always.
    Headers of what the cache gives leave within `HEADERS_SECONDS`; `more` sees to that itself. Raises ValueError where
    `own_url` is no node's URL.
    """

    def __init__(
        self,
        own_url: str,
        secret: bytes,
        cache: NodeCache,
        emit: Emit,
        *,
        more: Mapping[str, Handler] = _NO_MORE,
    ) -> None:
        self._own_url = origin(own_url)
        self._secret = secret
        self._cache = cache
        self._emit = emit
        self._more = more
        self._in_progress = 0
        self._warned: set[str] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        asked: _Asked | None = None
        status = 499
        try:
            try:
                asked = self._verify(request)
            except RegistryError as error:
                response: web.StreamResponse = respond.error(error, with_body=request.method != "HEAD")
            else:
                response = await self._answer(asked)
            status = response.status
            return response
        finally:
            self._emit(NeighbourAnswered(kind_of(request.raw_path), status, asked.sent if asked is not None else 0))

    def _verify(self, request: web.BaseRequest) -> _Asked:
        header, span = request.headers.get(REQUEST_HEADER), request.headers.get("Range", "")
        try:
            signature = verify_request(
                self._secret, header, self._own_url, request.method, request.raw_path, span, time.time()
            )
        except OtherProtocol as error:
            node = asking_node(header or "")
            if node not in self._warned and len(self._warned) < _MOST_WARNED:
                self._warned.add(node)
                log.warning("a node of another version is refused", extra={"node": node, "why": error.message})
            raise
        return _Asked(request, signature, span)

    async def _answer(self, asked: _Asked) -> web.StreamResponse:
        request = asked.request
        try:
            if request.method not in ("GET", "HEAD"):
                raise Unsupported("nodes only read from one another")
            path, _, query = request.raw_path.partition("?")
            if path == PING:
                return await self._whole(asked, web.Response(headers=_JSON, body=b"{}"))
            if self._in_progress >= MOST_AT_ONCE:
                raise Unavailable("this node answers too many others at once: ask elsewhere")
            self._in_progress += 1
            try:
                handler = self._more.get(path)
                if handler is not None:
                    return await self._whole(asked, await handler(request))
                return await self._in_time(asked, path, query)
            finally:
                self._in_progress -= 1
        except RegistryError as error:
            size = error.size if isinstance(error, RangeNotSatisfiable) else None
            return await self._whole(asked, respond.error(error, with_body=asked.with_body), Says(size=size))
        except ConnectionError:
            raise
        except Exception:
            log.exception("a node's request failed", extra={"target": request.raw_path.partition("?")[0]})
            if request.writer.output_size > 0:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("failed after the headers had left") from None
            problem = RegistryError("internal error; the log of the node has it")
            return await self._whole(asked, respond.error(problem, with_body=asked.with_body))

    async def _in_time(self, asked: _Asked, path: str, query: str) -> web.StreamResponse:
        try:
            async with asyncio.timeout(HEADERS_SECONDS) as limit:
                return await self._content(asked, path, query, limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(f"no answer in {HEADERS_SECONDS:g} s; what was begun goes on") from error

    async def _content(self, asked: _Asked, path: str, query: str, limit: asyncio.Timeout) -> web.StreamResponse:
        for start in (BLOBS, MANIFESTS, TAGS):
            if path.startswith(start):
                break
        else:
            raise NotServed("nodes of a fleet are answered nothing of the kind here")
        name = path[len(start) :]
        repository, held = _of(query)
        if start == BLOBS:
            return await self._blob(asked, repository, Digest.parse(name), limit, held=held)
        if start == MANIFESTS:
            return await self._manifest(asked, repository, Digest.parse(name), held=held)
        body = encode_tag(await self._cache.node_tag(repository, Tag.parse(name)))
        return await self._whole(asked, web.Response(headers=_JSON, body=body))

    async def _manifest(
        self, asked: _Asked, repository: Repository, digest: Digest, *, held: bool
    ) -> web.StreamResponse:
        found = await self._cache.node_manifest(repository, digest, held=held)
        says = Says(found.proven, found.anonymous, found.servable, len(found.body), found.descriptor.media_type)
        return await self._whole(asked, respond.manifest(found, None, with_body=asked.with_body), says)

    async def _blob(
        self, asked: _Asked, repository: Repository, digest: Digest, limit: asyncio.Timeout, *, held: bool
    ) -> web.StreamResponse:
        span = span_of(asked.span)
        found = await self._cache.node_blob(repository, digest, span, held=held)
        stream = found.stream
        try:
            if not asked.with_body:
                head = web.Response(headers=respond.blob_headers(digest, None))
                return await self._whole(asked, head, Says(found.proven, found.public, size=stream.size))

            def begin(response: web.StreamResponse, size: int | None) -> None:
                self._sign(asked, response, Says(found.proven, found.public, size=size), "")
                limit.reschedule(None)

            deadline = asked.started + FIRST_BYTE_SECONDS
            return await give_blob(asked.request, digest, span, found, deadline, begin, asked.count)
        finally:
            await stream.aclose()

    async def _whole(self, asked: _Asked, response: web.Response, says: Says | None = None) -> web.Response:
        """Sign an answer with its body, which is at hand."""
        body = response.body
        assert body is None or isinstance(body, bytes | bytearray)
        signed = ""
        if asked.with_body:
            whole = bytes(body or b"")
            asked.sent = len(whole)
            signed = hash_of(whole) if len(whole) <= _HASHED_HERE else await asyncio.to_thread(hash_of, whole)
        self._sign(asked, response, says or Says(), signed)
        return response

    def _sign(self, asked: _Asked, response: web.StreamResponse, says: Says, body: str) -> None:
        said = says.encode()
        response.headers[SAYS_HEADER] = said
        response.headers[ANSWER_HEADER] = sign_answer(self._secret, asked.signature, response.status, said, body)


def _of(query: str) -> tuple[Repository, bool]:
    """Return in whose name a node asks, and whether only for what is stored. Raises NameInvalid."""
    fields = parse_qs(query)
    upstream, slash, path = fields.get("repository", [""])[0].partition("/")
    if not upstream or not slash:
        raise NameInvalid("write repository=UPSTREAM/PATH: in whose name is it asked for?")
    return parse_path(upstream, path), fields.get("held") == ["1"]
