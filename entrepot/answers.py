"""JSON questions and answers of our own endpoints, errors included. The registry's own are in `proxy`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

BODY_SECONDS = 10.0
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Refused(Exception):
    """What was asked is answered with `status` and this message, by `errors_as_json`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(request: web.Request, decode: Callable[[bytes], T], what: str) -> T:
    """Return the body of `request` as `decode` reads it. Raises Refused for what is no `what`, or does not arrive."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is no {what}: {error}") from None
    except TimeoutError:
        raise Refused(408, f"the body did not arrive in {BODY_SECONDS:.0f} s") from None


def answer(document: object, *, status: int = 200) -> web.Response:
    """Return `document` (structs, dataclasses, plain values) as a JSON response."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def refusal(status: int, code: str, message: str) -> web.Response:
    """Return an error in the form that registry errors have: `{"errors": [{"code", "message"}]}`."""
    return answer({"errors": [{"code": code, "message": message}]}, status=status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what routing and handlers raise into JSON: 404, 405 with `Allow`, 500 without a detail."""
    try:
        response = await handler(request)
    except Refused as error:
        response = refusal(error.status, "UNSUPPORTED", str(error))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = refusal(405, "UNSUPPORTED", f"{request.path} answers {allowed} only")
        response.headers["Allow"] = allowed
    except web.HTTPNotFound:
        response = refusal(404, "NOT_FOUND", f"there is no {request.path} here")
    except web.HTTPException as error:
        response = refusal(error.status, "UNKNOWN", error.reason)
    except ConnectionError:
        raise
    except Exception:
        _log.exception("a request to the mirror itself failed", extra={"target": request.path})
        response = refusal(500, "UNKNOWN", "the mirror failed to answer; its log has the reason")
    if not response.prepared:
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
    return response
