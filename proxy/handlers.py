"""What each kind of request gets: a Source's answer as HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from aiohttp import HttpVersion11, web

from proxy import respond
from proxy.bodies import first_byte, send_body
from proxy.cache.manifests import ServedManifest
from proxy.cache.reader import FileReader
from proxy.oci.conditional import not_modified, range_applies
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange, parse_range
from proxy.oci.requests import BlobRequest, ManifestRequest
from proxy.oci.terms import ANY, read_terms
from proxy.ranged import Parts, open_ranges
from proxy.source import BlobStream, Source

FIRST_BYTE_SECONDS = 9.0
WITHOUT_UPSTREAM = frozenset({"hit", "stale"})
"""Outcomes of manifests for which nobody else had to be waited for."""

Locate = Callable[[Repository, Digest], Awaitable[str | None]]
"""Says where else a client that may have a blob is to get it; None: here."""


@dataclass(slots=True)
class Exchange:
    """One request as it goes: what the log and the metrics will say of it. Times are monotonic seconds.

    `stale_age`: how many seconds ago what is given was confirmed, where it is stale.
    `limit` is what ends it unless it has begun to be answered by then. See RequestFinished for the rest.
    """

    started: float
    client: str = ""
    request_id: str = ""
    kind: str = "other"
    outcome: str = "none"
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    digest: str = ""
    sent: int = 0
    first_byte: float = 0.0
    upstream_wait: float = 0.0
    stale_age: float | None = None
    alike: int = 0
    limit: asyncio.Timeout | None = None

    def begin(self) -> None:
        """The headers leave now."""
        self.first_byte = monotonic()
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(None)

    def count(self, sent: int) -> None:
        """Add bytes of a body."""
        self.sent += sent


async def serve_manifest(
    source: Source, wanted: ManifestRequest, request: web.BaseRequest, exchange: Exchange
) -> tuple[web.StreamResponse, ServedManifest | None]:
    """Answer GET and HEAD of a manifest (P2, P7, P21); also return it where the same answer may be given again."""
    terms = ANY
    if isinstance(wanted.reference, Tag):
        lines = request.headers
        terms = read_terms(lines.getall("Accept", ()), lines.getall("Cache-Control", ()))
    manifest = await source.manifest(wanted.repository, wanted.reference, terms)
    exchange.first_byte = monotonic()
    exchange.outcome = manifest.outcome if isinstance(manifest, ServedManifest) else "miss"
    if exchange.outcome not in WITHOUT_UPSTREAM:
        exchange.upstream_wait = exchange.first_byte - exchange.started
    if isinstance(manifest, ServedManifest) and manifest.outcome == "stale":
        exchange.stale_age = manifest.age
    exchange.digest = digest = manifest.descriptor.digest
    if not_modified(request.headers.get("If-None-Match"), digest):
        return respond.not_modified(digest, wanted.ns), None
    with_body = request.method == "GET"
    exchange.sent = len(manifest.body) if with_body else 0
    again = manifest if isinstance(manifest, ServedManifest) and manifest.fresh_for > 0 else None
    return respond.manifest(manifest, wanted.ns, with_body=with_body), again


async def serve_blob(
    source: Source, wanted: BlobRequest, request: web.BaseRequest, exchange: Exchange, locate: Locate | None = None
) -> web.StreamResponse:
    """Answer GET and HEAD of a blob, whole or ranges of it (P3-P7); a GET by sending it where `locate` says."""
    conditional = not_modified(request.headers.get("If-None-Match"), wanted.digest)
    if request.method == "HEAD" or conditional:
        descriptor = await source.stat_blob(wanted.repository, wanted.digest)
        exchange.first_byte = monotonic()
        if conditional:
            return respond.not_modified(wanted.digest, wanted.ns)
        return respond.blob_head(wanted.digest, descriptor.size, wanted.ns)
    deadline = exchange.started + FIRST_BYTE_SECONDS
    ranges = _wanted_ranges(wanted, request)
    span = ranges[0] if len(ranges) == 1 else None
    if locate is not None and len(ranges) < 2:
        location = await locate(wanted.repository, wanted.digest)
        if location is not None:
            exchange.first_byte, exchange.outcome = monotonic(), "redirected"
            return respond.blob_elsewhere(wanted.digest, location, wanted.ns)
    if len(ranges) > 1:
        parts = await open_ranges(source, wanted, ranges, deadline)
        if isinstance(parts, Parts):
            try:
                exchange.outcome = parts.outcome
                exchange.begin()
                exchange.upstream_wait = parts.source_wait(exchange.started, exchange.first_byte)
                return await parts.send(request, exchange.count)
            finally:
                await parts.aclose()
        span = parts
    asked = monotonic()
    stream = await source.open_blob(wanted.repository, wanted.digest, span)
    opening = monotonic() - asked
    try:
        exchange.outcome = stream.outcome if isinstance(stream, FileReader) else "relayed"
        late = stream.size is None
        await first_byte(stream, deadline)
        if late and isinstance(stream, FileReader):
            stream.narrow(span)
        if stream.size is None and request.version < HttpVersion11:
            raise Unavailable(f"the size of {wanted.digest} is not known yet, and HTTP/1.0 cannot tell its end")
        part = (stream.start, stream.end) if span is not None and stream.size and stream.end is not None else None
        response = respond.blob_start(wanted.digest, stream.size, part, wanted.ns)
        exchange.begin()
        exchange.upstream_wait = _waited(stream, exchange, opening)
        await _send(stream, response, request, exchange)
    finally:
        await stream.aclose()
    return response


def _wanted_ranges(wanted: BlobRequest, request: web.BaseRequest) -> tuple[ByteRange, ...]:
    """Return the ranges that are asked for, none for everything; `If-Range` decides too (P7)."""
    header = request.headers.get("Range")
    if header is None or not range_applies(request.headers.get("If-Range"), wanted.digest):
        return ()
    return parse_range(header) or ()


def _waited(stream: BlobStream, exchange: Exchange, opening: float) -> float:
    """Return for how long a source was waited for; whoever passes it on did so for as long as the opening took."""
    return stream.source_wait(exchange.started, exchange.first_byte) if isinstance(stream, FileReader) else opening


async def _send(stream: BlobStream, response: web.StreamResponse, request: web.BaseRequest, exchange: Exchange) -> None:
    writer = await response.prepare(request)
    assert writer is not None
    await send_body(stream, response, writer, request, exchange.count)
    await response.write_eof()
