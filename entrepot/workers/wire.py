"""What the supervisor and a worker tell each other: length-prefixed MessagePack over a socket pair.

The first message, `Start`, alone is a pickle: it carries the configuration's own types, and comes from whoever started
this process.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from contextlib import suppress

import msgspec

from entrepot.config import Config
from entrepot.views import FillView, UpstreamView
from metrics.families import Snapshot
from metrics.logs import Level
from metrics.pulls.model import Step

_LENGTH = struct.Struct("!I")
MAX_MESSAGE = 16 << 20
CLOSE_SECONDS = 1.0


class Start(msgspec.Struct, frozen=True):
    """What a worker is: its number, from 1, and what it is told to do."""

    number: int
    config: Config


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker answers clients."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """What a worker has counted, what it fills, what it knows of the upstreams.

    resident: bytes of its memory. cpu: seconds of processor time since its start.
    """

    metrics: Snapshot
    fills: tuple[FillView, ...]
    upstreams: tuple[UpstreamView, ...]
    resident: int
    cpu: float


class Steps(msgspec.Struct, frozen=True, tag=True):
    """What clients asked of a worker since it last said so."""

    steps: tuple[Step, ...]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Report now."""


class SetLevel(msgspec.Struct, frozen=True, tag=True):
    """Log what is of this level or above from now on."""

    level: Level


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no more connections, finish what runs, and end."""


FromWorker = Ready | Report | Steps
ToWorker = Ask | SetLevel | Drain
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode


def send_start(channel: socket.socket, start: Start) -> None:
    """Send the first message. Blocks for microseconds: the pair's buffer holds it."""
    body = pickle.dumps((start.number, start.config))
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive_start(channel: socket.socket) -> Start:
    """Return the first message. Blocks. Raises EOFError."""

    def exactly(count: int) -> bytes:
        data = channel.recv(count, socket.MSG_WAITALL)
        if len(data) < count:
            raise EOFError("the supervisor is gone")
        return data

    (length,) = _LENGTH.unpack(exactly(_LENGTH.size))
    number, config = pickle.loads(exactly(length))
    return Start(number, config)


class Channel:
    """Messages over one end of the pair, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        """Take over `end`."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: FromWorker | ToWorker) -> None:
        """Send without waiting; what a peer that stands still does not take is bounded by how seldom it is asked.

        To one that is gone nothing is sent.
        """
        if self._writer.is_closing():
            return
        body = msgspec.msgpack.encode(message, enc_hook=str)  # tags and digests are strings of their own types
        self._writer.write(_LENGTH.pack(len(body)) + body)

    @property
    def backlog(self) -> int:
        """Bytes that the peer has not taken yet."""
        transport: asyncio.WriteTransport = self._writer.transport
        return 0 if transport.is_closing() else transport.get_write_buffer_size()

    async def receive(self) -> bytes | None:
        """Return the next message, None when the peer is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                return None
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def aclose(self) -> None:
        """Send what waits, for a moment, and close."""
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
