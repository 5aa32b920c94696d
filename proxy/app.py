"""The HTTP face of a Source: parse, look up, answer; one place turns errors into HTTP.

The request path reads top to bottom in `Face.__call__`. Once headers have left, an error closes the
connection short; a second response is never written.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Set
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from metrics.events import Emit, RequestFinished
from proxy import respond
from proxy.cache.readthrough import ReadThrough
from proxy.handlers import Exchange, serve_blob, serve_manifest
from proxy.hot import HotAnswers, HotResponse
from proxy.oci import requests
from proxy.oci.errors import BadRequest, NotServed, RegistryError
from proxy.source import Source

MAX_LINE = 16 << 10
KEEPALIVE_SECONDS = 75.0
log = logging.getLogger(__name__)


class Face:
    """Answers registry requests from `source`. `upstreams` are the names that select one, `default` the rest.

    In events, 499 is a client that went away; a body closed short has the status that it would have got.
    """

    def __init__(self, source: Source, upstreams: Set[str], default: str, emit: Emit) -> None:
        self._source = source
        self._upstreams = upstreams
        self._default = default
        self._emit = emit
        self._hot = HotAnswers()
        self._cache = source if isinstance(source, ReadThrough) else None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange(monotonic())
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
            self._finished(request, exchange, status)

    def _again(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse | None:
        if self._cache is None:
            return None
        answer = self._hot.get(request, self._cache.moves)
        if answer is None:
            return None
        exchange.kind, exchange.outcome, exchange.upstream = "manifest", answer.outcome, answer.upstream
        exchange.repository, exchange.reference = answer.repository, answer.reference
        with_body = request.method == "GET"
        if not with_body and request.method != "HEAD":
            return None
        exchange.sent = len(answer.body) if with_body else 0
        return HotResponse(answer, with_body=with_body)

    async def _answer(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        try:
            return await self._dispatch(request, exchange)
        except RegistryError as error:
            exchange.outcome = "error"
            return respond.error(error, with_body=request.method != "HEAD")
        except (ConnectionError, web.HTTPException):
            raise
        except Exception:
            log.exception("request failed", extra={"target": request.raw_path.partition("?")[0]})
            exchange.outcome = "error"
            if request.writer.output_size > 0:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("failed after the headers had left") from None
            return respond.error(RegistryError("internal error; the log has it"), with_body=request.method != "HEAD")

    async def _dispatch(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        wanted = requests.parse(request.method, request.raw_path, self._upstreams, self._default)
        if isinstance(wanted, requests.Ping):
            exchange.kind = "ping"
            return respond.ping()
        if isinstance(wanted, requests.CatalogRequest):
            raise NotServed("the catalog of repositories is not served: it would tell names")
        exchange.upstream, exchange.repository = wanted.repository
        if isinstance(wanted, requests.BlobRequest):
            exchange.kind, exchange.reference = "blob", wanted.digest
            return await serve_blob(self._source, wanted, request, exchange)
        if isinstance(wanted, requests.ManifestRequest):
            exchange.kind, exchange.reference = "manifest", wanted.reference
            response, again = await serve_manifest(self._source, wanted, request, exchange)
            if again is not None and self._cache is not None:
                answer = respond.hot(again, wanted.ns, wanted.repository, wanted.reference, self._cache.moves)
                self._hot.put(request.raw_path, answer)
            return response
        kind = "tags" if isinstance(wanted, requests.TagsRequest) else "referrers"
        exchange.kind = kind
        raise NotServed(f"{kind} are not served by this mirror: ask {wanted.repository.upstream} itself")

    def _finished(self, request: web.BaseRequest, exchange: Exchange, status: int) -> None:
        ended = monotonic()
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
                client=request.remote or "",
                request_id=secrets.token_hex(8),
            )
        )


class _Protocol(RequestHandler):
    """Answers what is no HTTP, or too long to be a request of ours, with the spec's JSON too (P8, P9)."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # it was told in the event, and ends the connection
        if status != 400 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        problem = BadRequest("the request is malformed, or its path or headers too long")
        response = respond.error(problem, with_body=True)
        response.force_close()
        return response


class Server(web.Server):
    """An aiohttp low-level server in front of `handler`, a Face."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler, handler_cancellation=True)
        self._options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": KEEPALIVE_SECONDS,
            "max_line_size": MAX_LINE,
        }

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._options)
