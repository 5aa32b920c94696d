"""POST /api/gc at the control socket: `{"dry_run": …, "bucket": …}`, answered with lines of `entrepot.collecting`."""

from __future__ import annotations

import logging

import msgspec
from aiohttp import web

from entrepot.answers import read_body
from entrepot.collecting import CollectError, CollectFailed, CollectLine, collect, collect_bucket
from entrepot.lines import Lines, stream
from entrepot.view import VIEW
from proxy.oci.errors import RegistryError

_log = logging.getLogger(__name__)


class GcRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body. With `dry_run` nothing goes; `bucket`: collect in the bucket, not on the disk."""

    dry_run: bool = False
    bucket: bool = False


_decode = msgspec.json.Decoder(GcRequest).decode


def add_routes(router: web.UrlDispatcher) -> None:
    """Add the route to the control socket's application."""
    router.add_post("/api/gc", _answer)


async def _answer(request: web.Request) -> web.StreamResponse:
    view = request.app[VIEW]
    wanted = await read_body(request, _decode, "gc request")
    _log.info("gc asked for by a command", extra={"dry_run": wanted.dry_run})

    async def work(lines: Lines) -> CollectLine:
        try:
            if wanted.bucket:
                emit, turn = view.metrics.observe, view.part.turn
                return await collect_bucket(view.config, view.store, emit, turn, lines.put, dry_run=wanted.dry_run)
            return await collect(view.store, view.config.quota, view.metrics.observe, lines.put, dry_run=wanted.dry_run)
        except (CollectFailed, RegistryError) as error:
            return CollectError(str(error))
        except OSError as error:
            _log.error("gc failed: %s", error)
            return CollectError(f"not all could be evicted or deleted: {error}")
        except Exception:
            _log.exception("gc failed")
            return CollectError("the eviction failed in the mirror; its log has the reason")

    return await stream(request, work)
