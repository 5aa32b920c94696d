"""The nodes near this one: signed requests to them, their verified answers, and whether they are alive.

What is asked for content, and how long one waits for it, is in `neighbour`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from hmac import compare_digest
from types import MappingProxyType

import aiohttp
from yarl import URL

from metrics.events import Emit, NeighbourRequest
from proxy.fleet.neighbour import Neighbour
from proxy.fleet.protocol import (
    ANSWER_HEADER,
    PING,
    REQUEST_HEADER,
    SAYS_HEADER,
    Neighbourhood,
    Says,
    kind_of,
    node_name,
    origin,
)
from proxy.fleet.signing import Question, hash_of, seal, sign_request, unseal, verify_answer
from proxy.oci.errors import BadContent, GatewayTimeout, NotFound, RangeNotSatisfiable, RegistryError, Unavailable
from proxy.upstream.answers import own_words
from proxy.upstream.transport import give_up, reason_of

CONNECT_SECONDS = 1.0
ALIVE_SECONDS = 0.5
HEADERS_SECONDS = 9.0
BODY_SECONDS = 20.0
MOST_BODY = 16 << 20
_MOST_WORDS = 16 << 10
_MOST_WARNED = 64
_HASHED_HERE = 1 << 18
_READ_BUFFER = 1 << 18
_ALWAYS = {"Accept-Encoding": "identity", "User-Agent": "entrepot", "Via": "1.1 entrepot"}
_NONE: Mapping[str, str] = MappingProxyType({})
_OUTCOMES = {200: "ok", 206: "ok", 404: "missing"}
log = logging.getLogger(__name__)


class Refused(Unavailable):
    """A node does not believe this one: another secret, clock or version. The message says which."""


class Answer:
    """A verified answer of the node `node` (host and port): status and `says`. Close it.

    Of the other `headers` and of a body that `read` does not verify nothing is proven.
    """

    def __init__(self, node: str, response: aiohttp.ClientResponse, says: Says, body: str) -> None:
        self.node = node
        self.status = response.status
        self.says = says
        self.response = response
        self._body = body

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    async def read(self, limit: int = MOST_BODY, seconds: float = BODY_SECONDS) -> bytes:
        """Return the whole signed body, of at most `limit` bytes, and give the connection back.

        Raises BadContent where it is longer, or not what was signed; Unavailable where it breaks off or takes longer.
        """
        parts: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(seconds):
                while chunk := await self.response.content.readany():
                    parts.append(chunk)
                    length += len(chunk)
                    if length > limit:
                        raise BadContent(f"node {self.node} answers with more than the {limit} bytes allowed")
        except TimeoutError:
            raise Unavailable(f"node {self.node} does not end its answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"node {self.node} breaks off its answer: {reason_of(error)}") from None
        finally:
            self.close()
        body = b"".join(parts)
        found = hash_of(body) if length <= _HASHED_HERE else await asyncio.to_thread(hash_of, body)
        if not compare_digest(found, self._body):
            raise BadContent(f"the body of an answer of node {self.node} is not the one that was signed")
        return body

    async def refusal(self, target: str) -> RegistryError:
        """Return what an answer other than 200 and 206 means."""
        words = own_words(await self.read(_MOST_WORDS)) if self._body else ""
        message = f"node {self.node} answers {target.partition('?')[0]} with {self.status}{words}"
        if self.status == 404:
            return NotFound(message)
        if self.status == 416 and self.says.size is not None:
            return RangeNotSatisfiable(message, size=self.says.size)
        if self.status == 502:
            return BadContent(message)  # what it gave of this, if anything, was wrong
        return GatewayTimeout(message) if self.status == 504 else Unavailable(message)

    def close(self) -> None:
        """Keep the connection where the body is over, else close it."""
        give_up(self.response)


class Neighbours:
    """The other nodes, asked in the name of `own_url`. Open it with `open_neighbours`.

    State: the connections, and which nodes the log was warned of.
    """

    def __init__(
        self, own_url: str, secret: bytes, neighbourhood: Neighbourhood, session: aiohttp.ClientSession, emit: Emit
    ) -> None:
        self._own_url = origin(own_url)
        self._secret = secret
        self._neighbourhood = neighbourhood
        self._session = session
        self._emit = emit
        self._warned: set[str] = set()

    @asynccontextmanager
    async def request(
        self,
        url: str,
        method: str,
        target: str,
        headers: Mapping[str, str] = _NONE,
        timeout: float = HEADERS_SECONDS,  # noqa: ASYNC109 - until the headers only
    ) -> AsyncIterator[Answer]:
        """Ask the node at `url` for `target` (path and query), and give its answer, 200 or 206. Raises as `ask`."""
        answer = await self.ask(url, method, target, headers, timeout)
        try:
            yield answer
        finally:
            answer.close()

    async def ask(
        self, url: str, method: str, target: str, headers: Mapping[str, str] = _NONE, seconds: float = HEADERS_SECONDS
    ) -> Answer:
        """Return the answer, 200 or 206, once its headers are there, within so many seconds; the caller closes it.

        No redirect is followed.

        Raises:
            NotFound: 404. RangeNotSatisfiable: 416. GatewayTimeout: 504.
            Unavailable: any other answer, or none; no neighbour lives at `url`.
            BadContent: no node of this fleet gave the answer; or 502, what the node had of it is wrong.
        """
        began = time.monotonic()
        outcome = "failed"
        try:
            answer = await self._exchange(url, method, target, headers, seconds)
            try:
                outcome = _OUTCOMES.get(answer.status, "refused")
                if outcome != "ok":
                    raise await answer.refusal(target)
            except BaseException:
                answer.close()
                raise
            return answer
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        finally:
            self._emit(NeighbourRequest(kind_of(target), outcome, time.monotonic() - began))

    async def alive(self, url: str) -> bool:
        """Tell whether the node at `url` answers as a node of this fleet, at once."""
        try:
            async with self.request(url, "GET", PING, timeout=ALIVE_SECONDS) as answer:
                await answer.read(_MOST_WORDS, ALIVE_SECONDS)
        except RegistryError:
            return False
        return True

    def seal(self, about: str, data: bytes) -> bytes:
        """Return `data` as only a node of this fleet can leave it for the others, where anybody may write."""
        return seal(self._secret, about, data)

    def unseal(self, about: str, kept: bytes) -> bytes:
        """Return what a node of this fleet left. Raises BadContent where none did."""
        return unseal(self._secret, about, kept)

    def at(self, url: str, *, held: bool, still: Callable[[], Awaitable[bool]] | None) -> Neighbour:
        """Return the node at `url` as a source: of what it has stored (`held`), or of its running downloads too.

        `still` tells whether it is worth waiting for, where nothing comes; None: as long as it is alive. Raises
        ValueError where that is no node's URL.
        """
        return Neighbour(self, origin(url), held=held, still=still)

    async def _exchange(self, url: str, method: str, target: str, headers: Mapping[str, str], seconds: float) -> Answer:
        if not self._neighbourhood.admits(url):
            raise Unavailable(f"{url} is no neighbour: `neighbours` admits no node there")
        to, name = origin(url), node_name(url)
        question = Question(to, method, target, headers.get("Range", ""), self._own_url)
        signed = sign_request(self._secret, question, time.time(), secrets.token_hex(16))
        sent = {**headers, **_ALWAYS, REQUEST_HEADER: signed.header}
        try:
            async with asyncio.timeout(seconds):
                response = await self._session.request(
                    method, URL(to + target, encoded=True), headers=sent, allow_redirects=False
                )
        except TimeoutError as error:
            late = isinstance(error, aiohttp.ConnectionTimeoutError)
            what, limit = ("accepts no connection", CONNECT_SECONDS) if late else ("does not answer", seconds)
            raise Unavailable(f"node {name} {what} within {min(limit, seconds):g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"node {name} cannot be reached: {reason_of(error)}") from None
        try:
            if response.status in (401, 403, 505) and ANSWER_HEADER not in response.headers:
                raise await self._refused(name, response)
            says = response.headers.get(SAYS_HEADER, "")
            header = response.headers.get(ANSWER_HEADER)
            try:
                heard = verify_answer(self._secret, header, signed.signature, response.status, says)
            except BadContent as error:
                raise BadContent(f"node {name} is not believed: {error.message}") from None
            return Answer(name, response, Says.decode(says) if says else Says(), heard.body)
        except BaseException:
            response.close()
            raise

    async def _refused(self, name: str, response: aiohttp.ClientResponse) -> Refused:
        """Return what it means that a node does not know us; say so once in the log, as nobody else will."""
        body = b""
        try:
            async with asyncio.timeout(ALIVE_SECONDS):
                while len(body) < _MOST_WORDS and (chunk := await response.content.readany()):
                    body += chunk
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # the status says enough
        message = f"node {name} refuses this node with {response.status}{own_words(body)}"
        if name not in self._warned and len(self._warned) < _MOST_WARNED:
            self._warned.add(name)
            log.warning("a node refuses this one", extra={"node": name, "why": message})
        return Refused(message)


@asynccontextmanager
async def open_neighbours(
    own_url: str, secret: bytes, neighbourhood: Neighbourhood, tls: ssl.SSLContext | None, emit: Emit
) -> AsyncIterator[Neighbours]:
    """Ask other nodes for as long as the context lasts. `tls` verifies those with https, None: by the system's roots.

    Raises ValueError where `own_url` is no node's URL.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls or True, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER,
        trust_env=False,
    )
    async with session:
        yield Neighbours(own_url, secret, neighbourhood, session, emit)
