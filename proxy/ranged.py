"""Several ranges of a blob in one answer (P5), from the stored file or along a fill. One range is `handlers`'.

The blob is opened once to learn its size and to begin its fill. What is stored is sent from that one file. Along a
fill every part is opened by itself, so that a small one far ahead, as lazy-pulling clients ask for, is relayed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from proxy import respond
from proxy.bodies import closed_short, first_byte, send_body
from proxy.cache.reader import FileReader, StoredReader
from proxy.oci import multipart
from proxy.oci.descriptor import OCTET_STREAM
from proxy.oci.errors import RangeNotSatisfiable, RegistryError
from proxy.oci.multipart import Multipart, Part
from proxy.oci.ranges import ByteRange
from proxy.oci.requests import BlobRequest
from proxy.source import BlobStream, Source


@dataclass(slots=True)
class Parts:
    """An open blob, and the two or more parts of it that will be given, in the order asked. Close it."""

    body: Multipart
    _source: Source
    _wanted: BlobRequest
    _whole: BlobStream
    _stream: BlobStream

    @property
    def outcome(self) -> str:
        """For the log: hit | joined | miss | relayed."""
        return self._whole.outcome if isinstance(self._whole, FileReader) else "relayed"

    def source_wait(self, start: float, end: float) -> float:
        """Return for how many of these monotonic seconds a source had not answered yet that this needs."""
        return self._whole.source_wait(start, end) if isinstance(self._whole, FileReader) else 0.0

    async def send(self, request: web.BaseRequest, sent: Callable[[int], None]) -> web.StreamResponse:
        """Send all. Raises ConnectionResetError, closed short (P28)."""
        response = respond.blob_parts(self._wanted.digest, self.body, self._wanted.ns)
        writer = await response.prepare(request)
        assert writer is not None
        for number, part in enumerate(self.body.parts):
            if number:
                try:
                    await self._turn_to(part)
                except RegistryError as error:
                    raise closed_short(request, error) from error
            await response.write(part.head)
            sent(len(part.head))
            await send_body(self._stream, response, writer, request, sent)
        await response.write(self.body.tail)
        sent(len(self.body.tail))
        await response.write_eof()
        return response

    async def ready(self, deadline: float) -> None:
        """Open the first part and wait for its first byte, until the monotonic second `deadline`."""
        await self._turn_to(self.body.parts[0])
        await first_byte(self._stream, deadline)

    async def _turn_to(self, part: Part) -> None:
        if self._stream is not self._whole:
            await self._stream.aclose()
            self._stream = self._whole
        if isinstance(self._whole, StoredReader):
            self._whole.start, self._whole.end = part.start, part.end
            return
        span = ByteRange(part.start, part.end - 1)
        self._stream = await self._source.open_blob(self._wanted.repository, self._wanted.digest, span)

    async def aclose(self) -> None:
        """Close what is open."""
        if self._stream is not self._whole:
            await self._stream.aclose()
        await self._whole.aclose()


async def open_ranges(
    source: Source, wanted: BlobRequest, ranges: Sequence[ByteRange], deadline: float
) -> Parts | ByteRange | None:
    """Return what answers `ranges`: several parts, the only range that has a byte, or None: everything.

    Raises RangeNotSatisfiable when none has a byte, and as `Source.open_blob`.
    """
    async with AsyncExitStack() as stack:
        whole = await _open(source, wanted, ranges)
        stack.push_async_callback(whole.aclose)
        if whole.size is None:
            await first_byte(whole, deadline)
        size = whole.size
        spans = None if size is None else multipart.choose(ranges, size)
        if size is None or spans is None:
            return None
        if len(spans) == 1:
            return ByteRange(spans[0][0], spans[0][1] - 1)
        body = multipart.frame(spans, size, secrets.token_hex(16), OCTET_STREAM)
        parts = Parts(body, source, wanted, whole, whole)
        stack.push_async_callback(parts.aclose)
        await parts.ready(deadline)
        stack.pop_all()
        return parts


async def _open(source: Source, wanted: BlobRequest, ranges: Sequence[ByteRange]) -> BlobStream:
    """Open all of the blob; who asks for no range from its start goes on with bytes that it has (P28)."""
    if not any(one.first == 0 for one in ranges):
        try:
            return await source.open_blob(wanted.repository, wanted.digest, ByteRange(1, None))
        except RangeNotSatisfiable:
            pass  # a blob of one byte: its end may have been asked for
    return await source.open_blob(wanted.repository, wanted.digest)
