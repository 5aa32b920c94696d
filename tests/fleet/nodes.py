"""Nodes in the test's own process: an endpoint over a cache made of dicts, on a socket of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from metrics.events import Event
from proxy.cache.blobs import NodeBlob
from proxy.cache.near import NearManifest, TagSaid
from proxy.cache.once import Background
from proxy.cache.progress import Signal
from proxy.cache.reader import FileReader
from proxy.fleet.answers import Answers
from proxy.fleet.fleet import SharedFleet
from proxy.fleet.flight import Others
from proxy.fleet.holders import Holders
from proxy.fleet.leases import Leases
from proxy.fleet.link import Link
from proxy.fleet.neighbour import Neighbour, NeighbourStream
from proxy.fleet.neighbours import Neighbours, open_neighbours
from proxy.fleet.protocol import Neighbourhood
from proxy.fleet_endpoint import Endpoint, Handler
from proxy.front import Front
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, ManifestUnknown, RegistryError
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.server import Server, listen

SECRET = b"a secret of this fleet alone"
ALPINE = Repository("docker.io", "library/alpine")
ASKER = "http://127.0.0.1:1"
TYPE = "application/vnd.oci.image.manifest.v1+json"

Answerer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Growing(FileReader):
    """A blob of which so far nothing is here; `arrive` brings more. Without `sized` its size is told by `learn`.

    `waited`: somebody waits for more.
    """

    def __init__(self, content: bytes, *, sized: bool = True) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the reader
        digest = Digest.of(content)
        super().__init__(digest, os.dup(self._file.fileno()), len(content) if sized else None, "joined")
        self._content = content
        self._here = 0
        self._changed = Signal()
        self._error: RegistryError | None = None
        self.waited = asyncio.Event()
        self.closed = asyncio.Event()

    def arrive(self, upto: int | None = None) -> None:
        """Have the bytes before `upto`, all without it."""
        upto = len(self._content) if upto is None else upto
        os.pwrite(self._fd, self._content[self._here : upto], self._here)
        self._here = upto
        self._changed.wake()

    def learn(self) -> None:
        """Have the source tell the size."""
        self.size = len(self._content)
        self.end = self.end or self.size

    def fail(self, error: RegistryError) -> None:
        self._error = error
        self._changed.wake()

    async def limit(self, position: int) -> int:
        while True:
            end = len(self._content) if self.end is None else self.end
            if min(self._here, end) > position or (self._here == len(self._content) and position >= end):
                return min(self._here, end)
            if self._error is not None:
                raise self._error.again()
            self.waited.set()
            await self._changed.wait()

    def close(self) -> None:
        super().close()
        self._file.close()
        self.closed.set()


@dataclass
class FakeCache:
    """What a node has. `asked` is what was asked of it, `waiting` holds every question where it is set."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    running: dict[Digest, Growing] = field(default_factory=dict)
    manifests: dict[Digest, NearManifest] = field(default_factory=dict)
    tags: dict[Tag, TagSaid] = field(default_factory=dict)
    error: RegistryError | None = None
    gate: asyncio.Event | None = None
    asked: list[tuple[Repository, str, bool]] = field(default_factory=list)

    def store(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.blobs[digest] = content
        return digest

    def fill(self, growing: Growing) -> Digest:
        self.running[growing.digest] = growing
        return growing.digest

    def publish(self, body: bytes, *, digest: Digest | None = None, servable: bool = True) -> Digest:
        digest = digest or Digest.of(body)
        descriptor = Descriptor(TYPE, digest, len(body))
        self.manifests[digest] = NearManifest(descriptor, body, anonymous=True, proven=True, servable=servable)
        return digest

    async def node_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        await self._asked(repository, digest, held=held)
        stream: FileReader
        if digest in self.blobs:
            with tempfile.TemporaryFile() as file:
                file.write(self.blobs[digest])
                file.flush()
                stream = FileReader(digest, os.dup(file.fileno()), len(self.blobs[digest]), "hit")
        elif digest in self.running and not held:
            stream = self.running[digest]
        else:
            raise BlobUnknown(f"{digest} is not here")
        try:
            stream.narrow(span)
        except BaseException:
            stream.close()
            raise
        return NodeBlob(stream, proven=True, public=False)

    async def node_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        await self._asked(repository, digest, held=held)
        if digest not in self.manifests:
            raise ManifestUnknown(f"{digest} is not here")
        return self.manifests[digest]

    async def node_tag(self, repository: Repository, tag: Tag) -> TagSaid:
        await self._asked(repository, tag, held=False)
        if tag not in self.tags:
            raise ManifestUnknown(f"{tag} was not asked for")
        return self.tags[tag]

    async def _asked(self, repository: Repository, reference: str, *, held: bool) -> None:
        self.asked.append((repository, reference, held))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error.again()


@dataclass
class Node:
    """A node that answers at `url`. `connections` counts those that it took."""

    url: str
    cache: FakeCache
    endpoint: Endpoint
    answer: Answerer
    events: list[Event]
    connections: int = 0


@asynccontextmanager
async def serving(
    answer: Answerer, *, bound: socket.socket | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[object]]]:
    """Serve `answer` on a free port; give the URL, and a list with an entry for each connection."""
    made: list[object] = []
    runner = web.ServerRunner(server := Server(answer), shutdown_timeout=0.2)
    await runner.setup()

    def accept() -> asyncio.Protocol:
        made.append(protocol := server())
        return protocol

    listener = await listen(accept, bound or a_socket(), tls)
    try:
        yield url_of(listener.sockets[0].getsockname()[1], tls), made
    finally:
        listener.close()
        await runner.cleanup()


def a_socket() -> socket.socket:
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    return one


def url_of(port: int, tls: ssl.SSLContext | None = None) -> str:
    return f"{'https' if tls else 'http'}://127.0.0.1:{port}"


async def no_face(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="the face")


@asynccontextmanager
async def a_node(
    *,
    more: Mapping[str, Handler] | None = None,
    secret: bytes = SECRET,
    tls: ssl.SSLContext | None = None,
    own_url: str | None = None,
) -> AsyncIterator[Node]:
    """Run a node; `own_url` is what it advertises, where that is not where it listens."""
    bound, cache, events = a_socket(), FakeCache(), list[Event]()
    url = url_of(bound.getsockname()[1], tls)
    endpoint = Endpoint(own_url or url, secret, cache, events.append, more=more or {})
    front = Front(no_face, endpoint)
    node = Node(url, cache, endpoint, front, events)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await node.answer(request)

    async with serving(answer, bound=bound, tls=tls) as (_, made):
        yield node
        node.connections = len(made)


@dataclass
class Asker:
    """A node that asks."""

    neighbours: Neighbours
    events: list[Event]

    def at(self, node: Node, *, held: bool = False, still: Callable[[], Awaitable[bool]] | None = None) -> Neighbour:
        return self.neighbours.at(node.url, held=held, still=still)


@asynccontextmanager
async def an_asker(
    *patterns: str, secret: bytes = SECRET, tls: ssl.SSLContext | None = None, own_url: str = ASKER
) -> AsyncIterator[Asker]:
    """Ask in the name of `own_url`, those whom `patterns` admit."""
    events: list[Event] = []
    neighbourhood = Neighbourhood.parse(patterns, own_url)
    async with open_neighbours(own_url, secret, neighbourhood, tls, events.append) as neighbours:
        yield Asker(neighbours, events)


async def read(stream: NeighbourStream) -> bytes:
    """Return all of it, and close it."""
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def find_nobody() -> None:
    """Look for nodes, and find none."""


def sharing(
    link: Link,
    leases: Leases,
    asker: Asker,
    background: Background,
    known: Callable[[], Sequence[str]] = tuple,
    look: Callable[[], Awaitable[None]] = find_nobody,
) -> SharedFleet:
    """Return the fleet as a node sees it that asks as `asker` does, knows of some nodes, and finds more by `look`."""
    holders = Holders(leases, asker.neighbours, known, look)
    return SharedFleet(Others(asker.neighbours, holders, Answers(link), leases, background), None)
