"""The public listener of a mirror: its sockets, and the face that answers on them, which a reload replaces."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

from entrepot.access import open_access, rules_of
from entrepot.config import Address, Config
from entrepot.descriptors import raise_limit
from entrepot.mirror import Mirror
from entrepot.tls import listening_tls
from metrics.declarations import REQUESTS_IN_PROGRESS
from metrics.events import Emit
from proxy.app import Face
from proxy.cache.once import Background
from proxy.cache.readthrough import ANSWER_SECONDS
from proxy.clients import Clients
from proxy.front import Answerer, Front
from proxy.handlers import Locate
from proxy.server import BACKLOG, Server, connection_bound, listen

_ADVICE = {
    errno.EADDRINUSE: "; end the program that listens there, or give another address",
    errno.EACCES: "; give a port from 1024 on, or the capability CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "; give an address of this machine, or 0.0.0.0 for all of them",
}


class Answering:
    """What answers requests now: connections outlive a reload, the face they talk to does not."""

    def __init__(self) -> None:
        self.face: Answerer | None = None
        self._held: AsyncExitStack | None = None
        self._ending = Background()

    def __call__(self, request: web.BaseRequest) -> Coroutine[Any, Any, web.StreamResponse]:
        assert self.face is not None
        return self.face(request)

    async def turn_to(self, mirror: Mirror, emit: Emit) -> None:
        """Answer from `mirror` as its configuration says, from the next request on. Raises AccessFileError."""
        config, stack = mirror.config, AsyncExitStack()
        try:
            access = await stack.enter_async_context(open_access(config, mirror.sources))
            face = Face(
                mirror.cache,
                frozenset(mirror.sources),
                config.default_upstream,
                emit,
                Clients(config.trusted_proxies, config.client_concurrency),
                catalog=config.catalog,
                access=access,
                rules=rules_of(config),
                hosts=config.hosts,
                locate=_locate(mirror),
            )
            nodes = _nodes_endpoint(mirror, emit) if mirror.part.is_node else None
            abroad = mirror.part.abroad
            regions = None if abroad is None else abroad.endpoint(config.region, mirror.cache, emit)
            self.face = face if nodes is None and regions is None else Front(face, nodes, regions)
        except BaseException:
            await stack.aclose()
            raise
        old, self._held = self._held, stack
        if old is not None:
            self._ending.create_task(_end(old), name="end the access of an old configuration")

    async def aclose(self) -> None:
        """End everything. Nobody may be answered any more."""
        await self._ending.aclose()
        if self._held is not None:
            await self._held.aclose()


def _locate(mirror: Mirror) -> Locate | None:
    bucket = mirror.part.bucket
    if bucket is None or not mirror.config.store_redirect:
        return None
    from proxy.bucket.redirects import Redirects

    return Redirects(mirror.store, bucket).location


def _nodes_endpoint(mirror: Mirror, emit: Emit) -> Answerer:
    from proxy.fleet_endpoint import Endpoint
    from sync.records import CHANGES

    part = mirror.part
    more = {} if part.changes is None else {CHANGES: part.changes}
    return Endpoint(part.url, part.secret, mirror.cache, emit, more=more)


async def _end(access: AsyncExitStack) -> None:
    try:
        await asyncio.sleep(ANSWER_SECONDS)  # for those whose request had begun
    finally:
        await access.aclose()


@contextmanager
def bound(address: Address) -> Iterator[list[socket.socket]]:
    """Give sockets that listen on `address`, all families for an empty host. Raises OSError that names the address."""
    sockets: list[socket.socket] = []
    try:
        try:
            flags = socket.AI_PASSIVE
            found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=flags)
            for family, kind, protocol, _, where in dict.fromkeys(found):
                one = socket.socket(family, kind, protocol)
                sockets.append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(where)
                one.listen(BACKLOG)
                one.setblocking(False)
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}{advice}") from None
        yield sockets
    finally:
        for one in sockets:
            one.close()


def addresses_of(sockets: Sequence[socket.socket], *, tls: bool) -> list[str]:
    """Return where clients are answered, as URLs."""
    scheme = "https" if tls else "http"
    return [f"{scheme}://{Address(*one.getsockname()[:2])}" for one in sockets]


@asynccontextmanager
async def answering(mirror: Mirror, sockets: Sequence[socket.socket], emit: Emit) -> AsyncIterator[Answering]:
    """Answer clients of `mirror` on `sockets`; on leaving take no more connections, and let the others end in time."""
    async with AsyncExitStack() as stack:
        answers = Answering()
        stack.push_async_callback(answers.aclose)
        await answers.turn_to(mirror, emit)
        server = await stack.enter_async_context(taking(mirror.config, sockets, answers))
        mirror.metrics.read_from(REQUESTS_IN_PROGRESS, lambda: server.in_progress)
        yield answers


@asynccontextmanager
async def taking(
    config: Config, sockets: Sequence[socket.socket], answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
) -> AsyncIterator[Server]:
    """Let `answer` answer what comes to `sockets`; on leaving take no more connections, let the others end in time."""
    async with AsyncExitStack() as stack:
        context = await stack.enter_async_context(listening_tls(config.tls)) if config.tls is not None else None
        server = Server(answer, connection_bound(await asyncio.to_thread(raise_limit)))
        runner = web.ServerRunner(server, shutdown_timeout=config.drain_timeout)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        for one in sockets:
            stack.callback((await listen(server, one, context)).close)
        yield server
