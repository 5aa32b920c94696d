"""A registry on 127.0.0.1 in the test's own loop, which fails in the ways that a test asks for.

    async with FakeUpstream() as up:
        digest = up.add_blob("library/alpine", data)
        up.die_at = 4096          # the connection ends after that byte of the blob, once
        ...
        assert up.count(method="GET", contains="/blobs/") == 2

Faults are plain attributes, read when a request (or its next piece of body) is handled, so that a test may
change them at any time. Nothing here asserts, and nothing sleeps but `rate` and `delay_headers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from proxy.oci.digest import Digest
from tests.support.fake_auth import FakeAuth, error_reply
from tests.support.fake_listings import FakeListings

_PIECE = 256 * 1024
_PATH = re.compile(r"/v2/(?P<repo>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<ref>[^/]+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Recorded:
    """A request that arrived. `sent` is the number of body bytes written so far; `status` 0 until decided."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")

    @property
    def accept(self) -> str | None:
        return self.headers.get("Accept")

    @property
    def authorized(self) -> bool:
        """It carried an Authorization header, valid or not."""
        return "Authorization" in self.headers


@dataclass(frozen=True)
class Reply:
    """An answer that `status_for` puts in place of the true one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Cut(Exception):
    """The connection was ended on purpose."""


class FakeUpstream(FakeAuth, FakeListings):
    """An aiohttp registry with contents by repository, a record of requests, and faults to set."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        FakeAuth.__init__(self)
        FakeListings.__init__(self)
        self.tls = tls
        self.requests: list[Recorded] = []
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.presigned: dict[str, bytes] = {}

        # Faults in a blob's body. Offsets are absolute in the blob, whatever range was asked for.
        self.rate: float | None = None  # bytes per second of each connection
        self.die_at: int | None = None
        self.die_once = True
        self.died = asyncio.Event()
        self.stall_at: int | None = None
        self.stalled = asyncio.Event()
        self._go_on = asyncio.Event()
        self.corrupt: dict[int, int] = {}  # offset: xor
        self.chunked = False
        self.ignore_range = False

        # Faults before the body.
        self.down = False
        self.delay_headers = 0.0
        self.no_digest_headers = False
        self.manifest_type: str | None = None  # sent in place of the true Content-Type
        self.head_status: int | None = None  # for HEAD of manifests
        self.status_for: Callable[[Recorded], int | Reply | None] | None = None
        self.extra_headers: dict[str, str] = {}
        self.redirect_to: FakeUpstream | str | None = None  # blobs: 307 to <there>/presigned/<digest>?signature=n
        self.redirect_status = 307

        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self.port = 0

    # Contents

    def add_blob(self, repo: str, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs.setdefault(repo, {})[digest] = data
        return digest

    def add_manifest(self, repo: str, body: bytes, media_type: str, tag: str | None = None) -> Digest:
        digest = Digest.of(body)
        known = self.manifests.setdefault(repo, {})
        known[digest] = (media_type, body)
        if tag is not None:
            known[tag] = (media_type, body)
        return digest

    # The record

    def select(self, *, method: str | None = None, contains: str = "") -> list[Recorded]:
        """Return the requests of a method whose path holds `contains`, in order of arrival."""
        return [r for r in self.requests if method in (None, r.method) and contains in r.path]

    def count(self, *, method: str | None = None, contains: str = "") -> int:
        return len(self.select(method=method, contains=contains))

    async def wait_for(self, count: int, *, method: str | None = None, contains: str = "", seconds: float = 30) -> None:
        """Wait until that many matching requests have arrived."""
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(lambda: self.count(method=method, contains=contains) >= count)

    def sent(self, contains: str) -> int:
        """Return how many bytes of body it has sent for paths that hold `contains`."""
        return sum(record.sent for record in self.select(contains=contains))

    async def wait_sent(self, amount: float, *, contains: str, seconds: float = 30) -> None:
        """Wait until it has sent that many bytes for such paths."""
        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(lambda: self.sent(contains) >= amount)

    @property
    def token_requests(self) -> list[Recorded]:
        return self.select(contains="/token")

    # Faults that are acts

    def go_on(self) -> None:
        """Let every stalled body continue, and stall no more."""
        self.stall_at = None
        self.stalled.clear()
        self._go_on.set()
        self._go_on = asyncio.Event()

    async def stop_listening(self) -> None:
        """Refuse connections from now on, and cut those that exist."""
        assert self._server is not None
        assert self._http is not None
        self._server.close()
        self._server = None
        self.cut_connections()

    def cut_connections(self) -> None:
        """End every open connection with a reset."""
        assert self._http is not None
        for protocol in self._http.connections:
            if protocol.transport is not None:
                protocol.transport.abort()

    async def listen_again(self) -> None:
        """Listen on the same port as before."""
        assert self._http is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._http, "127.0.0.1", self.port, reuse_address=True, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def listening(self) -> bool:
        return self._server is not None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._http = web.Server(self._serve, handler_cancellation=True)
        await self.listen_again()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._go_on.set()
        if self._server is not None:
            await self.stop_listening()
        assert self._http is not None
        await self._http.shutdown(1)

    # Answering

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        record = Recorded(request.method, request.path, dict(request.query), request.headers.copy())
        self.requests.append(record)
        async with self._arrived:
            self._arrived.notify_all()
        try:
            if self.down:
                self._cut(request, abort=True)
            if self.delay_headers:
                await asyncio.sleep(self.delay_headers)
            response = await self._answer(request, record)
        except _Cut:
            return web.Response(status=500)  # never sent: the transport is closing
        if not response.prepared:
            response.headers.extend(self.extra_headers)
        record.status = response.status
        if isinstance(response, web.Response) and isinstance(response.body, bytes) and request.method != "HEAD":
            record.sent = len(response.body)
        return response

    async def _answer(self, request: web.BaseRequest, record: Recorded) -> web.StreamResponse:
        if self.status_for is not None:
            chosen = self.status_for(record)
            if isinstance(chosen, int):
                chosen = Reply(chosen)
            if chosen is not None:
                return web.Response(status=chosen.status, headers=dict(chosen.headers), body=chosen.body)
        if request.path == "/token":
            return await self.give_token(request)
        if request.path.startswith("/presigned/"):
            return await self._presigned(request, record)
        if request.path == "/v2/":
            return self.refusal(request, None) or web.json_response({})
        match = _PATH.fullmatch(request.path)
        if match is None:
            return error_reply(404, "UNSUPPORTED")
        refusal = self.refusal(request, match["repo"])
        if refusal is not None:
            return refusal
        if match["kind"] == "manifests":
            return self._manifest(request, match["repo"], match["ref"])
        if match["kind"] == "blobs":
            return await self._blob(request, record, match["repo"], match["ref"])
        if match["kind"] == "referrers":
            return self.list_referrers(request, match["repo"], match["ref"])
        return self.list_tags(request, match["repo"])

    def _manifest(self, request: web.BaseRequest, repo: str, ref: str) -> web.Response:
        if request.method == "HEAD" and self.head_status is not None:
            return web.Response(status=self.head_status)
        media_type, body = self.manifests.get(repo, {}).get(ref, ("", b""))
        lines = ",".join(request.headers.getall("Accept", []))
        accepted = {part.split(";")[0].strip() for part in lines.split(",")}
        if not media_type or not accepted & {media_type, "*/*"}:
            return error_reply(404, "MANIFEST_UNKNOWN")
        headers = {"Content-Type": self.manifest_type or media_type}
        if not self.no_digest_headers:
            headers["Docker-Content-Digest"] = Digest.of(body)
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.BaseRequest, record: Recorded, repo: str, ref: str) -> web.StreamResponse:
        data = self.blobs.get(repo, {}).get(ref)
        if data is None:
            return error_reply(404, "BLOB_UNKNOWN")
        if self.redirect_to is None:
            return await self._send(request, record, ref, data)
        base = self.redirect_to
        if isinstance(base, FakeUpstream):
            base.presigned[ref] = data
            base = base.url
        where = f"{base}/presigned/{ref}?signature={next(self.serial)}"
        return web.Response(status=self.redirect_status, headers={"Location": where})

    async def _presigned(self, request: web.BaseRequest, record: Recorded) -> web.StreamResponse:
        """Answer as S3 does: no Authorization beside a signature, and a signature for GET is none for HEAD."""
        if "Authorization" in request.headers:
            return web.Response(status=400, text="<Code>InvalidArgument</Code>")
        if request.method != "GET" or "signature" not in request.query:
            return web.Response(status=403, text="<Code>SignatureDoesNotMatch</Code>")
        ref = request.path.removeprefix("/presigned/")
        if ref not in self.presigned:
            return web.Response(status=404, text="<Code>NoSuchKey</Code>")
        return await self._send(request, record, ref, self.presigned[ref])

    async def _send(self, request: web.BaseRequest, record: Recorded, ref: str, data: bytes) -> web.StreamResponse:
        start, end, status = 0, len(data), 200
        match = None if self.ignore_range else _RANGE.fullmatch(request.headers.get("Range", ""))
        if match is not None:
            first, last = match.groups()
            if first:
                start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
            else:
                start = max(0, len(data) - int(last))
            if start >= end:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            status = 206
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/octet-stream"})
        response.headers.extend(self.extra_headers)
        if status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if not self.no_digest_headers and request.path.startswith("/v2/"):
            response.headers["Docker-Content-Digest"] = ref
        if self.chunked and request.method != "HEAD":
            response.enable_chunked_encoding()
        else:
            response.content_length = end - start
        await response.prepare(request)
        record.status = status
        if request.method != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client went away
                await self._write(request, response, record, memoryview(data), start, end)
                await response.write_eof()
        return response

    async def _write(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        record: Recorded,
        data: memoryview,
        start: int,
        end: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        position = start
        while True:
            if self.die_at is not None and position >= self.die_at:
                if self.die_once:
                    self.die_at = None
                self.died.set()
                self._cut(request)
            if self.stall_at is not None and position >= self.stall_at:
                self.stalled.set()
                await self._go_on.wait()
            if position >= end:
                return
            stop = min(position + _PIECE, end)
            if self.rate is not None:
                stop = min(stop, position + max(1, int(self.rate / 50)))
            for limit in (self.die_at, self.stall_at):
                if limit is not None and position < limit:
                    stop = min(stop, limit)
            await response.write(self._spoil(data, position, stop))
            record.sent += stop - position
            position = stop
            async with self._arrived:
                self._arrived.notify_all()
            if self.rate is not None:
                await asyncio.sleep(max(0.0, began + (position - start) / self.rate - loop.time()))

    def _spoil(self, data: memoryview, start: int, stop: int) -> bytes | memoryview:
        marks = [offset for offset in self.corrupt if start <= offset < stop]
        if not marks:
            return data[start:stop]
        piece = bytearray(data[start:stop])
        for offset in marks:
            piece[offset - start] ^= self.corrupt[offset]
        return bytes(piece)

    def _cut(self, request: web.BaseRequest, *, abort: bool = False) -> None:
        if request.transport is not None:
            request.transport.abort() if abort else request.transport.close()
        raise _Cut
