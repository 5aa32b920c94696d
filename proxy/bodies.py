"""The body of a blob on its way to a client, a node or a region: from a file, or passed on from a source."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from proxy import respond
from proxy.cache.blobs import NodeBlob
from proxy.cache.reader import FileReader
from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError, Unavailable
from proxy.oci.ranges import ByteRange, parse_range
from proxy.sendfile import send_file
from proxy.source import BlobStream


def span_of(header: str) -> ByteRange | None:
    """Return the one range that a `Range` header of a node or region asks for."""
    ranges = parse_range(header) if header else None
    return ranges[0] if ranges is not None and len(ranges) == 1 else None


async def give_blob(
    request: web.BaseRequest,
    digest: Digest,
    span: ByteRange | None,
    found: NodeBlob,
    deadline: float,
    begin: Callable[[web.StreamResponse, int | None], None],
    sent: Callable[[int], None],
) -> web.StreamResponse:
    """Answer another node or region with a blob, or `span` of it, which must begin to arrive before `deadline`.

    `begin` is called with the response and the blob's size just before the headers leave. Raises as `first_byte` and
    `send_body`, RangeNotSatisfiable. The stream stays the caller's to close.
    """
    stream = found.stream
    late = stream.size is None
    await first_byte(stream, deadline)
    if late:
        stream.narrow(span)
    part = (stream.start, stream.end) if span is not None and stream.size and stream.end is not None else None
    response = respond.blob_start(digest, stream.size, part, None)
    begin(response, stream.size)
    writer = await response.prepare(request)
    assert writer is not None
    await send_body(stream, response, writer, request, sent)
    await response.write_eof()
    return response


async def first_byte(stream: BlobStream, deadline: float) -> None:
    """Wait for the first byte, so that what goes wrong before it is an error and not a short body (P26, P30).

    `deadline` is in monotonic seconds. Raises what the stream raises, and Unavailable when not even the size is known.
    """
    if not isinstance(stream, FileReader) or stream.end == stream.start != 0:
        return
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - monotonic()):
            await stream.limit(stream.start)
    except TimeoutError as error:
        if stream.size is None:
            raise Unavailable(f"{stream.digest} has not begun to arrive; ask again") from error


async def send_body(
    stream: BlobStream,
    response: web.StreamResponse,
    writer: AbstractStreamWriter,
    request: web.BaseRequest,
    sent: Callable[[int], None],
) -> None:
    """Send what `stream` was opened for; `sent` hears of the bytes. Raises ConnectionResetError, closed short (P28)."""
    if isinstance(stream, FileReader):
        await send_file(request, writer, stream, stream.start, stream.end, sent, stream.origin)
        return
    try:
        async for chunk in stream:
            await response.write(chunk)
            sent(len(chunk))
    except RegistryError as error:
        raise closed_short(request, error) from error
    except BaseException:
        if request.transport is not None:
            request.transport.abort()
        raise


def closed_short(request: web.BaseRequest, error: RegistryError) -> ConnectionResetError:
    """Close the connection of an answer that has begun and cannot be ended (P28); return what to raise."""
    if request.transport is not None:
        request.transport.close()
    return ConnectionResetError(f"closed short: {error.message}")
