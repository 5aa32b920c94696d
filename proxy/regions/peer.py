"""One other region that is asked: its connections, when it is left alone, what it may send a second, its content.

Only the configured host is ever contacted. What is asked of several regions is in `peers`, who answers is
`proxy.region_endpoint`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType

import aiohttp
from yarl import URL

from metrics.events import Emit, PeerTransferred
from proxy.bucket.breaker import Breaker
from proxy.cache.near import TagAtHome
from proxy.cache.once import Background
from proxy.fleet.protocol import SAYS_HEADER
from proxy.oci.errors import (
    BadContent,
    GatewayTimeout,
    NotFound,
    RangeNotSatisfiable,
    RegistryError,
    Unavailable,
)
from proxy.oci.names import Repository, Tag
from proxy.regions.budget import Budget
from proxy.regions.content import HEADERS_SECONDS, IDLE_SECONDS, PeerSource, says_of
from proxy.regions.credentials import Credentials, LinkFileError, LinkFiles
from proxy.regions.misses import Misses
from proxy.regions.protocol import HELD_ONLY, MSGPACK, PING, decode_tag, tag_target, via
from proxy.regions.scope import Scope
from proxy.upstream.answers import own_words
from proxy.upstream.transport import give_up, reason_of

CONNECT_SECONDS = 5.0
HELD_SECONDS = (1.0, 3.0)
PING_SECONDS = 5.0
KEPT_SECONDS = 15.0
WORDS_SECONDS = 2.0
MOST_BODY = 16 << 20
MOST_TAG = 64 << 10
SLOWEST = 1024
TOLD_BYTES = 1 << 20
_MOST_WORDS = 16 << 10
_READ_BUFFER = 1 << 17
_RTT_WEIGHT = 0.3
_PATIENT_RTTS = 5
_NONE: Mapping[str, str] = MappingProxyType({})
log = logging.getLogger(__name__)


class Refused(Unavailable):
    """The region does not know this one: a wrong token or certificate, or no grant. The message says which."""


@dataclass(frozen=True, slots=True)
class PeerTerms:
    """A region, where it is (http or https, a host), what is asked of it and what proves who asks."""

    name: str
    url: str
    scope: Scope
    files: LinkFiles


class PeerClient:
    """Asks one region in the name of `region`. Open it with `open_peer`.

    State: the connections; the breaker, and the probe that closes it again; what was not told yet of what came.
    `transferred`: bytes of content since the start. `misses`: what it lacked lately. `rtt`: seconds until the
    headers of a short answer, None at first.
    """

    def __init__(
        self,
        terms: PeerTerms,
        region: str,
        credentials: Credentials,
        budget: Budget,
        session: aiohttp.ClientSession,
        background: Background,
        emit: Emit,
    ) -> None:
        self.name = terms.name
        self.url = terms.url.rstrip("/")
        self.scope = terms.scope
        self.rtt: float | None = None
        self.transferred = 0
        self.misses = Misses()
        self._credentials = credentials
        self._budget = budget
        self._session = session
        self._background = background
        self._emit = emit
        self._breaker = Breaker(f"region {terms.name}", monotonic)
        self._always = {"Accept-Encoding": "identity", "User-Agent": "entrepot", "Via": via(region)}
        self._untold = 0
        self._misnamed = False

    @property
    def available(self) -> bool:
        """It is not left alone now."""
        return not self._breaker.is_open

    @property
    def patience(self) -> float:
        """Seconds within which it says what it has stored: a client may be waiting, and others can be asked."""
        return min(HELD_SECONDS[1], max(HELD_SECONDS[0], _PATIENT_RTTS * (self.rtt or 0.0)))

    @property
    def problem(self) -> str | None:
        """Why it is left alone now."""
        return self._breaker.reason if self._breaker.is_open else None

    def source(self, start: bool) -> PeerSource:
        """Return it as a source of content: what it has stored or, `start`, may fetch from its upstream for us."""
        return PeerSource(self, start=start)

    async def ask(self, target: str, seconds: float, body: bytes | None = None) -> bytes:
        """Return the answer's body; its headers must come within so many seconds. A `body` is POSTed.

        Raises as `request`; BadContent for more than `MOST_BODY` bytes, Unavailable where they break off or drip.
        """
        method, headers = ("GET", _NONE) if body is None else ("POST", {"Content-Type": MSGPACK})
        response = await self.request(method, target, headers, seconds, body)
        return await self.read(response, MOST_BODY, self._budget.take)

    async def tag(self, repository: Repository, tag: Tag, max_age: float, seconds: float) -> TagAtHome:
        """Return what it says of a tag, if it can of what it heard `max_age` seconds ago or later. Raises as `ask`."""
        response = await self.request("GET", tag_target(repository, tag, max_age), _NONE, seconds)
        return decode_tag(await self.read(response, MOST_TAG, self._budget.take))

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] = _NONE,
        seconds: float = HEADERS_SECONDS,
        body: bytes | None = None,
    ) -> aiohttp.ClientResponse:
        """Return the answer, 200 or 206, once its headers are there; the caller closes it. No redirect is followed.

        Raises:
            NotFound: 404; or 504 where only what is stored was asked for.
            RangeNotSatisfiable: 416. GatewayTimeout: 504, it would have to ask another.
            Refused: it knows no grant for us. Unavailable: any other answer, or none, or it is left alone now.
            BadContent: 502, what it had of it is wrong.
        """
        self._breaker.check()
        began = monotonic()
        response = await self._exchange(method, target, headers, seconds, body)
        held = headers.get("Cache-Control") == HELD_ONLY
        if held:
            self._measure(monotonic() - began)
        if response.status in (200, 206):
            return response
        raise await self._refusal(response, target, held=held)

    async def read(self, response: aiohttp.ClientResponse, limit: int, took: Callable[[int], Awaitable[None]]) -> bytes:
        """Return the whole body, of at most `limit` bytes, and give the connection back. Raises as `ask`."""
        parts: list[bytes] = []
        length, spent = 0, 0.0
        try:
            while True:
                began = monotonic()
                async with asyncio.timeout(IDLE_SECONDS):
                    chunk = await response.content.readany()
                spent += monotonic() - began
                if not chunk:
                    return b"".join(parts)
                parts.append(chunk)
                length += len(chunk)
                if length > limit:
                    raise BadContent(f"region {self.name} answers with more than the {limit} bytes allowed")
                if spent > IDLE_SECONDS + length / SLOWEST:
                    raise Unavailable(f"region {self.name} gives less than {SLOWEST} bytes a second")
                await took(len(chunk))
        except TimeoutError:
            raise Unavailable(f"region {self.name} gives nothing for {IDLE_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"region {self.name} breaks off its answer: {reason_of(error)}") from None
        finally:
            give_up(response)

    async def took(self, count: int) -> None:
        """Note that bytes of content came, and return when the link may carry more."""
        self.transferred += count
        self._untold += count
        if self._untold >= TOLD_BYTES:
            self.tell()
        await self._budget.take(count)

    def tell(self) -> None:
        """Tell what came and was not told yet."""
        count, self._untold = self._untold, 0
        if count:
            self._emit(PeerTransferred(self.name, count))

    async def ping(self) -> None:
        """Ask whether it answers, also while it is left alone. Raises as `request`."""
        began = monotonic()
        response = await self._exchange("GET", PING, _NONE, PING_SECONDS, None)
        self._measure(monotonic() - began)
        try:
            named = json.loads(await self.read(response, _MOST_WORDS, self._budget.take))["region"]
        except (ValueError, LookupError, TypeError):
            return
        if named != self.name and not self._misnamed:
            self._misnamed = True
            log.warning(
                "a peer's name is not the one that its region has: tags that it watches are not asked there",
                extra={"peer": self.name, "region": str(named)[:64]},
            )

    async def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], seconds: float, body: bytes | None
    ) -> aiohttp.ClientResponse:
        """Return an answer that a region gave, whatever it is; note whether it answers at all."""
        began, generation = monotonic(), self._credentials.generation
        try:
            try:
                response = await self._send(method, target, headers, seconds, body)
            except Unavailable as error:  # a certificate that is refused may end the connection without a word
                if isinstance(error, _Silent) or not await self._renewed(generation):
                    raise
                response = await self._send(method, target, headers, seconds, body)
        except _Silent as error:
            self._failed(error, began, silent=True)
            raise Unavailable(error.message) from None
        except RegistryError as error:
            self._failed(error, began, silent=isinstance(error, Refused))
            raise
        self._breaker.answered(began)
        return response

    async def _send(
        self, method: str, target: str, headers: Mapping[str, str], seconds: float, body: bytes | None
    ) -> aiohttp.ClientResponse:
        sent = {**headers, **self._always}
        if self._credentials.token is not None:
            sent["Authorization"] = f"Bearer {self._credentials.token}"
        try:
            async with asyncio.timeout(seconds):
                response = await self._session.request(
                    method, URL(self.url + target, encoded=True), headers=sent, data=body, allow_redirects=False
                )
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _Silent(f"region {self.name} accepts no connection within {CONNECT_SECONDS:g} s") from None
            kind = _Silent if seconds >= min(HEADERS_SECONDS, PING_SECONDS) else Unavailable
            raise kind(f"region {self.name} does not answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            if not _is_of_tls(error):
                raise Unavailable(f"region {self.name} cannot be reached: {reason_of(error)}") from None
            raise Refused(
                f"TLS with region {self.name} fails: {reason_of(error)}; if it has a private authority, give ca_file,"
                " and if it wants a certificate, cert and key"
            ) from None
        try:
            problem = await self._judge(response, target)
        except BaseException:
            response.close()
            raise
        if problem is not None:
            response.close()
            raise problem
        return response

    async def _judge(self, response: aiohttp.ClientResponse, target: str) -> Unavailable | None:
        """Return what it means that no region that knows us gave this answer; None: one did."""
        status, ours = response.status, SAYS_HEADER in response.headers
        if status == 401 or (status == 403 and not ours) or (status == 429 and target == PING):
            words = own_words(await self._words(response))
            return Refused(f"region {self.name} refuses this one with {status}{words}")
        if ours:
            return None
        if status >= 500:
            return Unavailable(f"what is in front of region {self.name} answers {status} in its place")
        if 300 <= status < 400:
            return Refused(f"region {self.name} answers with a redirect ({status}): give the url where it answers")
        return Refused(
            f"region {self.name} answers as it does anybody ({status}): it has no [[grant]], or is no Entrepot"
        )

    async def _refusal(self, response: aiohttp.ClientResponse, target: str, *, held: bool) -> RegistryError:
        words = own_words(await self._words(response))
        status = response.status
        message = f"region {self.name} answers {target.partition('?')[0]} with {status}{words}"
        if status == 404 or (status == 504 and held):
            return NotFound(message)
        size = says_of(response).size
        if status == 416 and size is not None:
            return RangeNotSatisfiable(message, size=size)
        if status == 502:
            return BadContent(message)
        return GatewayTimeout(message) if status == 504 else Unavailable(message)

    async def _words(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the beginning of an error's body, as far as it comes in a moment, and give up the response."""
        body = b""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with asyncio.timeout(WORDS_SECONDS):
                while len(body) < _MOST_WORDS and (chunk := await response.content.readany()):
                    body += chunk
        give_up(response)
        token = self._credentials.token  # whoever echoes what it was sent must not bring it into our log
        return body if token is None else body.replace(token.encode(), b"(the token)")

    async def _renewed(self, generation: int) -> bool:
        try:
            return await self._credentials.renew(generation)
        except LinkFileError as error:
            log.error("what is shown to a region cannot be read again", extra={"peer": self.name, "why": str(error)})
            return False

    def _measure(self, seconds: float) -> None:
        self.rtt = seconds if self.rtt is None else self.rtt + _RTT_WEIGHT * (seconds - self.rtt)

    def _failed(self, error: RegistryError, began: float, *, silent: bool) -> None:
        was_open = self._breaker.is_open
        self._breaker.failed(error.message, began, silent=silent)
        if self._breaker.is_open and not was_open:
            log.warning("a region is left alone for a while", extra={"peer": self.name, "why": error.message})
            self._background.create_task(self._probe(), name=f"probe region {self.name}")

    async def _probe(self) -> None:
        """Ask after ever longer times until it answers: nobody else waits for a region that is dead."""
        while self._breaker.is_open:
            await asyncio.sleep(self._breaker.left)
            with suppress(RegistryError):
                await self.ping()
        log.info("a region answers again", extra={"peer": self.name})


class _Silent(Unavailable):
    """Nothing came in its time."""


@asynccontextmanager
async def open_peer(terms: PeerTerms, region: str, budget: Budget, emit: Emit) -> AsyncIterator[PeerClient]:
    """Ask a region for as long as the context lasts; it is pinged at once. Raises LinkFileError."""
    url = URL(terms.url)
    credentials = await Credentials.open(terms.files, https=url.scheme == "https")
    if url.scheme == "http" and credentials.token is not None and not _is_loopback(url.host or ""):
        log.warning(
            "the token of a region goes over the network in the clear: give an https url", extra={"peer": terms.name}
        )
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=credentials.tls or True, keepalive_timeout=KEPT_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER,
        trust_env=False,
    )
    async with session, Background() as background:
        client = PeerClient(terms, region, credentials, budget, session, background, emit)
        background.create_task(_first_ping(client), name=f"meet region {terms.name}")
        yield client


async def _first_ping(client: PeerClient) -> None:
    with suppress(RegistryError):
        await client.ping()


def _is_of_tls(error: BaseException | None) -> bool:
    """Tell whether TLS failed, which its 1.3 may say only after the handshake."""
    while error is not None:
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            return True
        error = error.__cause__
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
