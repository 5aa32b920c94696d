"""What this region answers others that have a grant: content by digest, tags, pings, and what `more` adds to that.

Nobody without a grant learns anything, nor whether a digest exists; what a grant does not cover is unknown to it.
Nothing here asks another region or node in turn. Clients are the face's (`app`), nodes the `fleet_endpoint`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from types import MappingProxyType
from typing import Protocol

import msgspec
from aiohttp import web

from metrics.events import Emit, RegionAnswered
from proxy import respond
from proxy.bodies import give_blob, span_of
from proxy.cache.blobs import NodeBlob
from proxy.cache.near import NearManifest, TagAtHome
from proxy.fleet.protocol import SAYS_HEADER, Says
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadRequest,
    BlobUnknown,
    GatewayTimeout,
    ManifestUnknown,
    NotFound,
    RangeNotSatisfiable,
    RegistryError,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.regions.grants import Grant, Grants
from proxy.regions.protocol import (
    HELD_ONLY,
    JSON,
    MSGPACK,
    PING,
    SYNC,
    TAG,
    Wanted,
    encode_tag,
    kind_of,
    parse_content,
    parse_tag,
    regions_of,
)
from proxy.regions.scope import Scope
from proxy.store.exchanged import TagChange

MOST_AT_ONCE = 512
HEADERS_SECONDS = 8.5
FIRST_BYTE_SECONDS = 8.0
BODY_SECONDS = 20.0
_JSON = MappingProxyType({"Content-Type": JSON})
RegionHandler = Callable[[web.BaseRequest, Scope], Awaitable[web.Response]]
"""Answers about what a scope covers with a response whose body is bytes, or raises a RegistryError. It may be POSTed
to: the body was read before."""
_NO_MORE: Mapping[str, RegionHandler] = MappingProxyType({})
log = logging.getLogger(__name__)


class RegionCache(Protocol):
    """The cache as other regions may ask it; its ReadThrough is one. `held`: only what is stored in this region.

    All judge whether the repository is proven to contain what is asked for (P43), and raise NotFound kinds or
    Transient; GatewayTimeout where another region would have to be asked.
    """

    async def region_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        """Open a blob. As `NodeCache.node_blob`."""
        ...

    async def region_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return a manifest."""
        ...

    async def region_tag(self, repository: Repository, tag: Tag, max_age: float) -> tuple[TagChange, float]:
        """Return what a tag is here, and how many seconds ago its upstream was asked: `max_age`, or about one."""
        ...


@dataclass(slots=True)
class _Asked:
    """One request of a region as it goes."""

    request: web.BaseRequest
    started: float = field(default_factory=monotonic)
    sent: int = 0

    @property
    def with_body(self) -> bool:
        return self.request.method != "HEAD"

    @property
    def held(self) -> bool:
        """Only what is stored is asked for (RFC 9111 §5.2.1.7)."""
        directives = self.request.headers.get("Cache-Control", "").lower().split(",")
        return HELD_ONLY in (one.strip() for one in directives)

    def count(self, sent: int) -> None:
        self.sent += sent


class RegionEndpoint:
    """Answers the regions that have `grants`, as the region `region`, from `cache`.

    `more` are handlers by their exact path. `MOST_AT_ONCE` requests are answered at once, 503 beyond, pings always.
    Headers of what the cache gives leave within `HEADERS_SECONDS`; `more` sees to that itself.
    """

    def __init__(
        self,
        grants: Grants,
        region: str,
        cache: RegionCache,
        emit: Emit,
        more: Mapping[str, RegionHandler] = _NO_MORE,
    ) -> None:
        self._grants = grants
        self._region = region
        self._cache = cache
        self._emit = emit
        self._more = more
        self._in_progress = 0
        self._looped: set[str] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        asked, status = _Asked(request), 499
        try:
            response = await self._answer(asked)
            status = response.status
            return response
        finally:
            self._emit(RegionAnswered(kind_of(request.raw_path), status, asked.sent))

    async def _answer(self, asked: _Asked) -> web.StreamResponse:
        request = asked.request
        path = request.raw_path.partition("?")[0]
        try:
            return await self._granted(asked, await self._grants.judge(request), path)
        except RegistryError as error:
            size = error.size if isinstance(error, RangeNotSatisfiable) else None
            response = respond.error(error, with_body=asked.with_body)
            if isinstance(error, Unauthorized):
                response.force_close()  # a certificate belongs to a connection: another needs a new one
            return _whole(asked, response, Says(size=size))
        except ConnectionError:
            raise
        except Exception:
            log.exception("a region's request failed", extra={"target": path})
            if request.writer.output_size > 0:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("failed after the headers had left") from None
            problem = RegistryError("internal error; the log of the mirror has it")
            return _whole(asked, respond.error(problem, with_body=asked.with_body))

    async def _granted(self, asked: _Asked, grant: Grant, path: str) -> web.StreamResponse:
        request = asked.request
        if request.method not in ("GET", "HEAD") and not (request.method == "POST" and path in self._more):
            raise Unsupported("regions only read from one another")
        if path == PING:
            body = msgspec.json.encode({"region": self._region})
            return _whole(asked, web.Response(headers=respond.BASE | _JSON, body=body))
        self._refuse_loops(grant, request)
        if self._in_progress >= MOST_AT_ONCE:
            raise Unavailable("this region answers too many questions at once: ask again in a moment", retry_after=1.0)
        self._in_progress += 1
        try:
            handler = self._more.get(path)
            if handler is not None:
                await _read_body(request)
                return _whole(asked, await handler(request, grant.scope))
            return await self._in_time(asked, grant.scope, path)
        finally:
            self._in_progress -= 1

    def _refuse_loops(self, grant: Grant, request: web.BaseRequest) -> None:
        """Answer no question that was ours: whoever asks would wait for an answer that waits for it."""
        if self._region not in regions_of(request.headers.getall("Via", ())):
            return
        if grant.name not in self._looped:
            self._looped.add(grant.name)
            log.error(
                "a question of this region came back to it: have another region the same name, or does a peer's url"
                " lead here?",
                extra={"grant": grant.name, "region": self._region},
            )
        raise GatewayTimeout(f"region {self._region} asked this itself: it came back to where it began")

    async def _in_time(self, asked: _Asked, scope: Scope, path: str) -> web.StreamResponse:
        try:
            async with asyncio.timeout(HEADERS_SECONDS) as limit:
                if path == TAG:
                    return await self._tag(asked, scope)
                if path.startswith(SYNC):
                    raise NotFound("regions are answered nothing of the kind here")
                return await self._content(asked, scope, parse_content(path), limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(f"no answer in {HEADERS_SECONDS:g} s; what was begun goes on") from error

    async def _tag(self, asked: _Asked, scope: Scope) -> web.Response:
        request = asked.request
        repository, tag, max_age = parse_tag(request.raw_path.partition("?")[2])
        if not scope.admits(repository):
            raise ManifestUnknown(f"{repository}:{tag} is not known here")
        record, age = await self._cache.region_tag(repository, tag, max_age)
        accepted = JSON if request.headers.get("Accept", "").strip() == JSON else MSGPACK
        body = encode_tag(TagAtHome(record, age, self._region), accepted)
        return _whole(asked, web.Response(headers=respond.BASE | {"Content-Type": accepted}, body=body))

    async def _content(self, asked: _Asked, scope: Scope, wanted: Wanted, limit: asyncio.Timeout) -> web.StreamResponse:
        unknown = BlobUnknown if wanted.kind == "blob" else ManifestUnknown
        if not scope.admits(wanted.repository):
            raise unknown(f"{wanted.kind} {wanted.digest} is not known here in {wanted.repository}")
        try:
            if wanted.kind == "blob":
                return await self._blob(asked, wanted, limit)
            return await self._manifest(asked, wanted)
        except NotFound as error:
            if asked.held:
                raise GatewayTimeout(f"not stored in region {self._region}: {error.message}") from None
            raise

    async def _manifest(self, asked: _Asked, wanted: Wanted) -> web.Response:
        found = await self._cache.region_manifest(wanted.repository, wanted.digest, held=asked.held)
        says = Says(found.proven, found.anonymous, found.servable, len(found.body), found.descriptor.media_type)
        return _whole(asked, respond.manifest(found, None, with_body=asked.with_body), says)

    async def _blob(self, asked: _Asked, wanted: Wanted, limit: asyncio.Timeout) -> web.StreamResponse:
        digest, span = wanted.digest, span_of(asked.request.headers.get("Range", ""))
        found = await self._cache.region_blob(wanted.repository, digest, span, held=asked.held)
        stream = found.stream
        try:
            if not asked.with_body:
                says = Says(found.proven, found.public, size=stream.size)
                return _whole(asked, web.Response(headers=respond.blob_headers(digest, None)), says)

            def begin(response: web.StreamResponse, size: int | None) -> None:
                response.headers[SAYS_HEADER] = Says(found.proven, found.public, size=size).encode()
                limit.reschedule(None)

            deadline = asked.started + FIRST_BYTE_SECONDS
            return await give_blob(asked.request, digest, span, found, deadline, begin, asked.count)
        finally:
            await stream.aclose()


async def _read_body(request: web.BaseRequest) -> None:
    """Have a question's body, which its handler then finds there. Raises BadRequest where it is too long or late."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await request.read()
    except TimeoutError:
        raise BadRequest(f"the question did not come within {BODY_SECONDS:g} s") from None
    except web.HTTPRequestEntityTooLarge as error:
        raise BadRequest(f"the question is too long: {error.text}") from None


def _whole(asked: _Asked, response: web.Response, says: Says | None = None) -> web.Response:
    """Finish an answer whose body is at hand."""
    body = response.body
    if asked.with_body and isinstance(body, bytes | bytearray):
        asked.sent = len(body)
    response.headers[SAYS_HEADER] = (says or Says()).encode()
    return response
