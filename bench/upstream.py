"""The upstream: just enough of the Distribution API to be pulled through, at an exact pace, in a process of its own.

`python -m bench.upstream PORT` serves the image of `content`, and blobs that are announced to it:

    POST /_bench/blob?seed=S&size=BYTES&rate=BYTES_PER_SECOND    → {"digest": …}   (rate 0: as fast as it goes)
    GET  /_bench/blob?digest=D                                   → {"gets": …, "heads": …, "sent": BYTES}

The pace belongs to the blob and holds for each download of it by itself. Any repository name answers. One request
at a time on a connection, no pipelining, no pushes, no authentication.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.parse
from dataclasses import dataclass
from typing import cast

import uvloop

from bench.content import CONFIG_TYPE, MANIFEST_TYPE, PAGE, Blob, Image, digest_of, image

GRAIN = 0.002  # seconds of bytes that make one write
DEPTH = 0.020  # seconds of bytes that a reader who dawdled may catch up
PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass
class Shelf:
    """A blob on offer, and what was asked of it. `rate` in bytes per second, 0 for no pace."""

    blob: Blob
    rate: int
    gets: int = 0
    heads: int = 0
    sent: int = 0


class Stock:
    """Everything on offer."""

    def __init__(self, picture: Image) -> None:
        self.image = picture
        self.shelves: dict[str, Shelf] = {blob.digest: Shelf(blob, 0) for blob in picture.layers}

    async def announce(self, query: dict[str, str]) -> dict[str, str]:
        blob = Blob(int(query["seed"]), int(query["size"]))
        digest = await asyncio.to_thread(lambda: blob.digest)
        self.shelves[digest] = Shelf(blob, int(query["rate"]))
        return {"digest": digest}

    def counters(self, query: dict[str, str]) -> dict[str, int]:
        shelf = self.shelves[query["digest"]]
        return {"gets": shelf.gets, "heads": shelf.heads, "sent": shelf.sent}


class Connection(asyncio.Protocol):
    """One connection; `answering` is the task of the request at hand."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._buffer = b""
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._answering is None:
            self._next()

    def _next(self) -> None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if found:
            self._buffer = rest
            self._answering = asyncio.get_running_loop().create_task(self._answer(head.decode("latin-1")))
            self._answering.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering = None
        if task.cancelled() or self._transport.is_closing():
            return
        if error := task.exception():
            self._transport.abort()
            raise error
        self._next()

    async def _answer(self, head: str) -> None:
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/_bench/blob":
            answer = await self._stock.announce(query) if method == "POST" else self._stock.counters(query)
            self._send(method, 200, "application/json", json.dumps(answer).encode())
        elif method not in ("GET", "HEAD"):
            self._send(method, 405, "application/json", b'{"errors":[{"code":"UNSUPPORTED"}]}')
        elif url.path in ("/v2/", "/v2"):
            self._send(method, 200, "application/json", b"{}")
        elif (found := PATH.fullmatch(urllib.parse.unquote(url.path))) is not None:
            await self._content(method, found["kind"], found["reference"], headers)
        else:
            self._send(method, 404, "application/json", b'{"errors":[{"code":"NAME_UNKNOWN"}]}')

    async def _content(self, method: str, kind: str, reference: str, headers: dict[str, str]) -> None:
        picture = self._stock.image
        if kind == "manifests" and reference in ("latest", picture.digest):
            self._send(method, 200, MANIFEST_TYPE, picture.manifest, picture.digest)
        elif kind == "blobs" and reference == digest_of(picture.config):
            self._send(method, 200, CONFIG_TYPE, picture.config, reference)
        elif kind == "blobs" and (shelf := self._stock.shelves.get(reference)) is not None:
            await self._blob(method, shelf, headers)
        else:
            code = b"MANIFEST_UNKNOWN" if kind == "manifests" else b"BLOB_UNKNOWN"
            self._send(method, 404, "application/json", b'{"errors":[{"code":"%s"}]}' % code)

    def _send(self, method: str, status: int, kind: str, body: bytes, digest: str = "") -> None:
        extra = f"Docker-Content-Digest: {digest}\r\n" if digest else ""
        self._head(status, kind, len(body), extra)
        if method != "HEAD":
            self._transport.write(body)

    def _head(self, status: int, kind: str, length: int, extra: str) -> None:
        self._transport.write(
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
            f"Docker-Distribution-Api-Version: registry/2.0\r\n{extra}\r\n".encode()
        )

    async def _blob(self, method: str, shelf: Shelf, headers: dict[str, str]) -> None:
        size = shelf.blob.size
        start, end, status = 0, size, 200
        extra = f"Docker-Content-Digest: {shelf.blob.digest}\r\nAccept-Ranges: bytes\r\n"
        if (asked := RANGE.fullmatch(headers.get("range", ""))) is not None:
            start, status = int(asked[1]), 206
            end = min(size, int(asked[2]) + 1) if asked[2] else size
            extra += f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        self._head(status, "application/octet-stream", end - start, extra)
        if method == "HEAD":
            shelf.heads += 1
            return
        shelf.gets += 1
        if shelf.rate:
            await self._paced(shelf, start, end)
        else:
            await self._unpaced(shelf, start, end)

    async def _unpaced(self, shelf: Shelf, start: int, end: int) -> None:
        while start < end:
            await self._writable.wait()
            start += self._write(shelf, start, min(PAGE, end - start))

    async def _paced(self, shelf: Shelf, start: int, end: int) -> None:
        """Send by a token bucket that holds DEPTH seconds: a reader that stalls longer has lost that time."""
        clock = asyncio.get_running_loop().time
        tokens, filled = 0.0, clock()
        while start < end:
            await self._writable.wait()
            now = clock()
            tokens, filled = min(DEPTH * shelf.rate, tokens + (now - filled) * shelf.rate), now
            wanted = min(GRAIN * shelf.rate, end - start)
            if tokens < wanted:
                await asyncio.sleep((wanted - tokens) / shelf.rate)
                continue
            written = self._write(shelf, start, min(int(tokens), end - start))
            tokens -= written
            start += written

    def _write(self, shelf: Shelf, start: int, length: int) -> int:
        data = shelf.blob.slice(start, length)
        self._transport.write(data)
        shelf.sent += len(data)
        return len(data)


async def serve(port: int) -> None:
    stock = Stock(await asyncio.to_thread(image))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stock), "127.0.0.1", port, backlog=256)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
