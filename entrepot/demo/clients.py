"""The machines that pull in the demo: as docker, containerd and podman do it over HTTP, without keeping the bytes.

When they pull, and what, is `rollouts`'s.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle, repeat
from typing import Literal

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import Child, parse_manifest
from proxy.oci.media import ACCEPT

_TIMEOUT = ClientTimeout(total=None, sock_connect=5, sock_read=30)


Ending = Literal["done", "unchanged", "left", "failed"]


class PullFailed(Exception):
    """A pull that did not come to its end, and why."""


@dataclass(frozen=True, slots=True)
class Program:
    """A client program. at_once: how many layers it fetches at once; asks_first: by HEAD, what a tag is."""

    name: str
    agent: str
    at_once: int
    asks_first: bool


DOCKER = Program(
    "docker",
    "docker/27.3.1 go/go1.22.7 git-commit/41ca978 kernel/6.8.0-45-generic os/linux arch/amd64 "
    r"UpstreamClient(Docker-Client/27.3.1 \(linux\))",
    3,
    True,
)
CONTAINERD = Program("containerd", "containerd/1.7.24", 3, True)
PODMAN = Program("podman", "containers/5.31.0 (github.com/containers/image)", 6, False)


class Pulled(msgspec.Struct, frozen=True):
    """A pull that ended. seconds: how long it took; sent: bytes that came; layers, had: of the image, and had before.

    ending: done, unchanged (the machine had all of it), left (the client went away), or failed.
    """

    image: str
    program: str
    ending: Ending
    seconds: float
    sent: int
    layers: int = 0
    had: int = 0
    problem: str = ""


@dataclass
class Node:
    """A machine. State: where it connects from (None: whichever address the system takes), the digests that it has,
    and that it pulls one image at a time.

    addresses: for it and those that take its place; mirror: the URL it pulls from; count hears of bytes as they come.
    """

    program: Program
    architecture: str
    addresses: Iterator[str | None]
    mirror: str
    count: Callable[[int], None]
    address: str | None = field(init=False)
    _has: set[str] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.address = next(self.addresses)

    def renew(self) -> None:
        """Become a new machine, which has another address and no layers."""
        self.address = next(self.addresses)
        self._has.clear()

    async def pull(self, image: str, *, patience: float | None = None) -> Pulled:
        """Pull an image; the client goes away after `patience` seconds. What it has fetched by then it keeps."""
        async with self._turn:
            pull = _Pull(self, image)
            begun = time.monotonic()
            ending: Ending
            problem = ""
            try:
                async with asyncio.timeout(patience) as waiting:
                    ending = await pull.run()
            except TimeoutError as error:
                ending, problem = ("left", "") if waiting.expired() else ("failed", str(error) or "no answer in time")
            except (PullFailed, RegistryError, ClientError, OSError) as error:
                ending, problem = "failed", str(error) or type(error).__name__
            seconds = time.monotonic() - begun
            return Pulled(
                image, self.program.name, ending, round(seconds, 3), pull.sent, pull.layers, pull.had, problem
            )

    def has(self, digest: Digest) -> bool:
        return str(digest) in self._has

    def keep(self, digest: Digest) -> None:
        self._has.add(str(digest))


class _Pull:
    """One pull under way. State: what came so far."""

    def __init__(self, node: Node, image: str) -> None:
        self._node = node
        repository, _, self._tag = image.rpartition(":")
        self._url = f"{node.mirror}/v2/{repository}"
        self.sent = self.layers = self.had = 0

    async def run(self) -> Ending:
        """Raises PullFailed, RegistryError, ClientError, OSError, TimeoutError."""
        node = self._node
        local = None if node.address is None else (node.address, 0)
        connector = TCPConnector(local_addr=local, limit=node.program.at_once)
        headers = {"User-Agent": node.program.agent}
        async with ClientSession(connector=connector, headers=headers, timeout=_TIMEOUT) as session:
            reference = self._tag
            if node.program.asks_first:
                async with session.head(f"{self._url}/manifests/{reference}", headers={"Accept": ACCEPT}) as answer:
                    reference = str(_good(answer).headers.get("Docker-Content-Digest", reference))
                if ":" in reference and node.has(Digest.parse(reference)):
                    return "unchanged"
            index, body, media_type = await self._manifest(session, reference)
            if node.has(index):
                return "unchanged"
            chosen = self._chosen(parse_manifest(body, media_type).children)
            image, body, media_type = await self._manifest(session, str(chosen))
            await self._blobs(session, parse_manifest(body, media_type).children)
            node.keep(image)
            node.keep(index)
            return "done"

    def _chosen(self, children: tuple[Child, ...]) -> Digest:
        for child in children:
            if child.platform is not None and child.platform.architecture == self._node.architecture:
                return child.descriptor.digest
        raise PullFailed(f"there is no image for {self._node.architecture}")

    async def _manifest(self, session: ClientSession, reference: str) -> tuple[Digest, bytes, str]:
        async with session.get(f"{self._url}/manifests/{reference}", headers={"Accept": ACCEPT}) as answer:
            body = await _good(answer).read()
        digest = Digest.of(body)
        if ":" in reference and str(digest) != reference:
            raise PullFailed(f"{reference} came as {digest}")
        self._came(len(body))
        return digest, body, answer.content_type

    async def _blobs(self, session: ClientSession, children: tuple[Child, ...]) -> None:
        layers = [child for child in children if child.role == "layer"]
        self.layers = len(layers)
        self.had = sum(self._node.has(child.descriptor.digest) for child in layers)
        wanted = [child.descriptor.digest for child in children if not self._node.has(child.descriptor.digest)]
        failures: list[BaseException] = []
        async with asyncio.TaskGroup() as group:
            # The connections of the program are the bound on what runs at once.
            for digest in dict.fromkeys(wanted):
                group.create_task(self._blob(session, digest, failures))
        if failures:
            raise failures[0]

    async def _blob(self, session: ClientSession, digest: Digest, failures: list[BaseException]) -> None:
        hasher = digest.hasher()
        try:
            async with session.get(f"{self._url}/blobs/{digest}") as answer:
                async for piece in _good(answer).content.iter_any():
                    hasher.update(piece)
                    self._came(len(piece))
            if not digest.matches(hasher):
                raise PullFailed(f"what came as {digest} is something else")
        except (PullFailed, ClientError, OSError) as error:
            failures.append(error)
            return
        self._node.keep(digest)

    def _came(self, size: int) -> None:
        self.sent += size
        self._node.count(size)


def _good(answer: ClientResponse) -> ClientResponse:
    if answer.status != 200:
        raise PullFailed(f"{answer.method} {answer.url.path} was answered {answer.status}")
    return answer


def addresses() -> Iterator[str | None]:
    """Yield addresses of this machine, one for each node: of its own where the system has them, as Linux does."""
    own = [f"127.0.0.{number}" for number in range(11, 251)]
    with closing(socket.socket()) as probe:
        try:
            probe.bind((own[0], 0))
        except OSError:
            return repeat(None)
    return cycle(own)
