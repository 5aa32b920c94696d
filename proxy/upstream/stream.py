"""A blob's body on its way from an upstream: exactly the bytes of a span, or an error. Nothing is verified here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.upstream.failures import BrokeOff
from proxy.upstream.spans import Placement
from proxy.upstream.transport import give_up


class ResponseStream:
    """A BlobStream over the body of `response`, which lies in the blob as `place` says; the rest is dropped.

    `stall`: how many seconds a read may take. `when_closed` is called once, when it is.
    """

    def __init__(
        self,
        host: str,
        digest: Digest,
        response: aiohttp.ClientResponse,
        place: Placement,
        *,
        anonymous: bool,
        stall: float,
    ) -> None:
        self.digest = digest
        self.size = place.size
        self.start = place.start
        self.end = place.end
        self.anonymous = anonymous
        self._host = host
        self._response = response
        self._stall = stall
        self._position = place.begins
        self._stop = place.bound if place.end is None else place.end
        self._over = False
        self._closed = False
        self.when_closed: Callable[[], None] | None = None
        connection = response.connection
        protocol = connection.protocol if connection is not None else None
        self._lost = protocol.closed if protocol is not None else None
        if self._lost is not None:
            self._lost.add_done_callback(self._connection_lost)
        elif protocol is not None:
            self._end_body()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes, as many as there are.

        Raises:
            BrokeOff: the body breaks off, stalls, or ends before `end`.
            Unavailable: it was closed before.
        """
        while not self._over:
            chunk = await self._read()
            at = self._position
            self._position = at + len(chunk)
            self._over = not chunk or (self._stop is not None and self._position >= self._stop)
            if self._over:
                await self.aclose()
            if not chunk and self.end is not None and at < self.end:
                raise BrokeOff(f"{self._host} ends blob {self.digest} at byte {at} of {self.end}")
            wanted = chunk[max(0, self.start - at) : None if self._stop is None else self._stop - at]
            if wanted:
                return wanted
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give the connection back where the body is over, else close it. May be called at any time, and again."""
        if not self._closed:
            self._closed = True
            if self._lost is not None:
                self._lost.remove_done_callback(self._connection_lost)
            if self.when_closed is not None:
                self.when_closed()
            give_up(self._response)

    def _connection_lost(self, lost: asyncio.Future[None]) -> None:
        if not lost.cancelled():
            lost.exception()  # it is ours to have looked at
        self._end_body()

    def _end_body(self) -> None:
        """After broken framing aiohttp ends the connection and leaves whoever reads the body waiting."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection is lost"))

    async def _read(self) -> bytes:
        if self._closed:
            raise Unavailable(f"blob {self.digest} from {self._host} was closed at byte {self._position}")
        try:
            async with asyncio.timeout(self._stall):
                return await self._response.content.readany()
        except TimeoutError:
            what, reason = "stalls", "timeout"
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            what, reason = f"breaks off ({type(error).__name__})", "short"
        await self.aclose()
        raise BrokeOff(f"{self._host} {what} at byte {self._position} of blob {self.digest}", reason=reason)
