"""The HTTP face of a Source: parse, look up, answer; one place turns errors into HTTP.

The request path reads top to bottom in `Face.__call__`. Once headers have left, an error closes the
connection short; a second response is never written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Set
from time import monotonic

from aiohttp import web

from metrics.events import BlobStarted, Emit, RequestFinished, StaleServed
from proxy import respond
from proxy.access.admission import Access, Everybody, Visitor
from proxy.cache.readthrough import ReadThrough
from proxy.clients import Clients
from proxy.handlers import Exchange, Locate, serve_blob, serve_manifest
from proxy.hot import HotAnswers, HotResponse
from proxy.listing_handlers import Cataloged, serve_catalog, serve_referrers, serve_tags
from proxy.oci import requests
from proxy.oci.errors import Denied, NotFound, NotServed, RegistryError, TooManyRequests, Unavailable
from proxy.requestids import RequestIds
from proxy.rules import Rules
from proxy.source import Source
from proxy.upstream.callers import acting_for

HEADERS_SECONDS = 9.5
log = logging.getLogger(__name__)


class Face:
    """Answers registry requests from `source`. `upstreams` are the names that select one, `default` the rest.

    `clients` bounds what one client may have in progress; beyond that it gets 429 (P45).

    With `catalog` a client may list the repositories that were pulled, or that `source` is known to have (P15).

    `access` decides who is answered at all, `rules` which repositories are mirrored.

    `hosts` are more names that upstreams have in `ns`.

    `locate` says to which other server the GET of a blob is sent, if to any.

    Headers leave within `HEADERS_SECONDS`, access and everything else included (P26).

    Errors carry `X-Request-Id`, the id of their line in the log: always our own, as each is to be given once.

    In events, 499 is a client that went away; a body closed short has the status that it would have got.
    """

    def __init__(
        self,
        source: Source,
        upstreams: Set[str],
        default: str,
        emit: Emit,
        clients: Clients | None = None,
        *,
        catalog: bool = False,
        access: Access | None = None,
        rules: Rules | None = None,
        hosts: Mapping[str, str] = requests.NO_HOSTS,
        locate: Locate | None = None,
    ) -> None:
        self._source = source
        self._upstreams = upstreams
        self._default = default
        self._hosts = hosts
        self._locate = locate
        self._emit = emit
        self._clients = clients or Clients()
        self._access = access or Everybody()
        self._rules = rules or Rules()
        self._hot = HotAnswers()
        self._ids = RequestIds()
        self._cache = source if isinstance(source, ReadThrough) else None
        self._listed = source if catalog and isinstance(source, Cataloged) else None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        client = self._clients.of(request.remote or "", request.headers)
        exchange = Exchange(monotonic(), client.address)
        if not self._clients.enter(client):
            return self._refuse(request, exchange)
        status = 500
        try:
            response = self._again(request, exchange) or await self._answer(request, exchange)
            status = response.status
            return response
        except ConnectionError as error:
            status = 499
            if isinstance(error.__cause__, RegistryError):
                status, exchange.outcome = error.__cause__.status, "error"
            raise
        except asyncio.CancelledError:
            status = 499
            raise
        finally:
            self._clients.leave(client)
            self._finished(request, exchange, status)

    def _refuse(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        problem = TooManyRequests("too many requests of this client are in progress: ask again", retry_after=1)
        response = self._error(problem, request, exchange)
        self._finished(request, exchange, problem.status)
        return response

    def _error(self, problem: RegistryError, request: web.BaseRequest, exchange: Exchange) -> web.Response:
        exchange.outcome = "error"
        exchange.request_id = exchange.request_id or self._ids.next()
        response = respond.error(problem, with_body=request.method != "HEAD")
        response.headers["X-Request-Id"] = exchange.request_id
        return response

    def _again(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse | None:
        if self._cache is None or not self._access.everybody:
            return None
        answer = self._hot.get(request, self._cache.moves)
        if answer is None:
            return None
        exchange.kind, exchange.outcome, exchange.upstream = "manifest", answer.outcome, answer.upstream
        exchange.repository, exchange.reference, exchange.digest = answer.repository, answer.reference, answer.digest
        if answer.confirmed is not None:
            exchange.stale_age = exchange.started - answer.confirmed
        with_body = request.method == "GET"
        if not with_body and request.method != "HEAD":
            return None
        exchange.sent = len(answer.body) if with_body else 0
        exchange.alike = answer.made if with_body else -answer.made
        self._cache.used(answer.digest)
        return HotResponse(answer, with_body=with_body)

    async def _answer(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        try:
            return await self._in_time(request, exchange)
        except RegistryError as error:
            return self._error(error, request, exchange)
        except (ConnectionError, web.HTTPException):
            raise
        except Exception:
            exchange.outcome, exchange.request_id = "error", exchange.request_id or self._ids.next()
            target = request.raw_path.partition("?")[0]
            log.exception("request failed", extra={"target": target, "request_id": exchange.request_id})
            if request.writer.output_size > 0:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("failed after the headers had left") from None
            return self._error(RegistryError("internal error; the log has it"), request, exchange)

    async def _in_time(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        try:
            async with asyncio.timeout(HEADERS_SECONDS) as exchange.limit:
                return await self._dispatch(request, exchange)
        except TimeoutError as error:
            if exchange.limit is None or not exchange.limit.expired():
                raise
            raise Unavailable(f"no answer in {HEADERS_SECONDS:.0f} s; what was begun goes on, ask again") from error

    async def _dispatch(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        wanted = requests.parse(request.method, request.raw_path, self._upstreams, self._default, self._hosts)
        visitor = Visitor(request.headers.get("Authorization"), exchange.client)
        if isinstance(wanted, requests.Ping):
            exchange.kind = "ping"
            await self._access.admit(visitor, wanted)
            return respond.ping()
        if isinstance(wanted, requests.CatalogRequest):
            exchange.kind = "catalog"
            await self._access.admit(visitor, wanted)
            if self._listed is None:
                raise NotServed("the catalog of repositories is not served: it would tell names")
            return await serve_catalog(self._listed, self._rules, wanted, request, exchange)
        exchange.upstream, exchange.repository = wanted.repository
        if self._access.asks_upstreams:
            self._rules.check(wanted.repository)
        identity = await self._access.admit(visitor, wanted)
        self._rules.check(wanted.repository)
        try:
            with acting_for(identity):
                return await self._serve(wanted, request, exchange)
        except NotFound as error:
            # Whoever asked the upstream first asked for all who joined: its refusal may be another caller's.
            if identity is None or not isinstance(error.__cause__, Denied):
                raise
        self._access.doubt(identity, wanted)
        with acting_for(await self._access.admit(visitor, wanted)):
            return await self._serve(wanted, request, exchange)

    async def _serve(
        self, wanted: requests.Content, request: web.BaseRequest, exchange: Exchange
    ) -> web.StreamResponse:
        if isinstance(wanted, requests.BlobRequest):
            exchange.kind, exchange.reference, exchange.digest = "blob", wanted.digest, wanted.digest
            if request.method == "GET":
                self._blob_started(request, exchange)
            return await serve_blob(self._source, wanted, request, exchange, self._locate)
        if isinstance(wanted, requests.ManifestRequest):
            exchange.kind, exchange.reference = "manifest", wanted.reference
            response, again = await serve_manifest(self._source, wanted, request, exchange)
            if again is not None and self._cache is not None and self._access.everybody:
                answer = respond.hot(again, wanted.ns, wanted.repository, wanted.reference, self._cache.moves)
                self._hot.put(request.raw_path, answer)
            return response
        if isinstance(wanted, requests.TagsRequest):
            exchange.kind = "tags"
            return await serve_tags(self._source, wanted, request, exchange)
        exchange.kind, exchange.reference = "referrers", wanted.digest
        return await serve_referrers(self._source, wanted, request, exchange)

    def _blob_started(self, request: web.BaseRequest, exchange: Exchange) -> None:
        if not exchange.request_id:
            exchange.request_id = self._ids.next()
            self._emit(
                BlobStarted(
                    client=exchange.client,
                    request_id=exchange.request_id,
                    upstream=exchange.upstream,
                    repository=exchange.repository,
                    digest=exchange.digest,
                    agent=request.headers.get("User-Agent", ""),
                    started=exchange.started,
                )
            )

    def _finished(self, request: web.BaseRequest, exchange: Exchange, status: int) -> None:
        ended = monotonic()
        if exchange.stale_age is not None:
            self._emit(StaleServed(exchange.stale_age))
        self._emit(
            RequestFinished(
                kind=exchange.kind,
                method=request.method,
                status=status,
                outcome=exchange.outcome,
                upstream=exchange.upstream,
                repository=exchange.repository,
                reference=exchange.reference,
                sent=exchange.sent,
                first_byte=(exchange.first_byte or ended) - exchange.started,
                duration=ended - exchange.started,
                client=exchange.client,
                request_id=exchange.request_id or self._ids.next(),
                digest=exchange.digest,
                agent=request.headers.get("User-Agent", ""),
                started=exchange.started,
                upstream_wait=exchange.upstream_wait,
                alike=exchange.alike if status == 200 else 0,
            )
        )
