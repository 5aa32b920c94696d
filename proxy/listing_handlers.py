"""What a request for a list gets: tags, referrers and, where the operator wants it, the catalog (P11, P12, P15)."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol, runtime_checkable
from urllib.parse import quote

import msgspec
from aiohttp import web
from yarl import URL

from proxy.cache.listings import ServedReferrers, ServedTags
from proxy.handlers import Exchange
from proxy.oci import media
from proxy.oci.conditional import not_modified
from proxy.oci.digest import Digest
from proxy.oci.listings import encode_referrers
from proxy.oci.names import Repository
from proxy.oci.requests import CatalogRequest, ReferrersRequest, TagsRequest
from proxy.respond import BASE, Headers
from proxy.rules import Rules
from proxy.source import Source

PAGE_MOST = 10_000
"""What is listed at once at most; the rest follows a Link."""
_ENCODED_AT_ONCE = 200
_NAMES_AT_ONCE = 1000


@runtime_checkable
class Cataloged(Protocol):
    """A source that knows its repositories."""

    async def repositories(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names of repositories, upstream and all, in their order (P15)."""
        ...


async def serve_tags(
    source: Source, wanted: TagsRequest, request: web.BaseRequest, exchange: Exchange
) -> web.StreamResponse:
    """Answer GET and HEAD of `tags/list` (P11). The name in it is the one behind `/v2/`, as the client calls it."""
    page = await source.tags(wanted.repository, wanted.last, _limit(wanted.n))
    target = URL(request.raw_path, encoded=True)
    path = target.raw_path
    name = path.partition("/v2/")[2].removesuffix("/tags/list")
    headers: Headers = {"Content-Type": "application/json"}
    if page.more:
        headers["Link"] = _next_link(path, wanted.n, page.tags[-1], target.query.get("ns"))
    if isinstance(page, ServedTags):
        exchange.outcome = page.outcome
        _warn(headers, page.warning)
    body = msgspec.json.encode({"name": name, "tags": [str(tag) for tag in page.tags]})
    return _answer(body, headers, wanted.ns, request, exchange)


async def serve_referrers(
    source: Source, wanted: ReferrersRequest, request: web.BaseRequest, exchange: Exchange
) -> web.StreamResponse:
    """Answer GET and HEAD of `referrers/<digest>` with an index, empty where nothing refers to it (P12)."""
    found = await source.referrers(wanted.repository, wanted.digest, wanted.artifact_type)
    headers: Headers = {"Content-Type": media.OCI_INDEX}
    if found.filtered:
        headers["OCI-Filters-Applied"] = "artifactType"
    if isinstance(found, ServedReferrers):
        exchange.outcome = found.outcome
        _warn(headers, found.warning)
    if len(found.manifests) > _ENCODED_AT_ONCE:
        body = await asyncio.to_thread(encode_referrers, found)
    else:
        body = encode_referrers(found)
    return _answer(body, headers, wanted.ns, request, exchange)


async def serve_catalog(
    source: Cataloged, rules: Rules, wanted: CatalogRequest, request: web.BaseRequest, exchange: Exchange
) -> web.StreamResponse:
    """Answer GET and HEAD of `_catalog` with the repositories that were pulled here, upstream and all (P15).

    What `rules` close now is not named.
    """
    limit = _limit(wanted.n)
    names = await _mirrored(source, rules, wanted.last, limit + 1 if limit else 0)
    headers: Headers = {"Content-Type": "application/json"}
    if len(names) > limit > 0:
        del names[limit:]
        headers["Link"] = _next_link(URL(request.raw_path, encoded=True).raw_path, wanted.n, names[-1], None)
    exchange.outcome = "hit"
    return _answer(msgspec.json.encode({"repositories": names}), headers, None, request, exchange)


async def _mirrored(source: Cataloged, rules: Rules, after: str | None, limit: int) -> list[str]:
    names: list[str] = []
    while len(names) < limit:
        page = await source.repositories(after, most := min(limit, _NAMES_AT_ONCE))
        names += (name for name in page if rules.mirrors(_repository(name)))
        if len(page) < most:
            break
        after = page[-1]
    return names[:limit]


def _repository(name: str) -> Repository:
    upstream, _, path = name.partition("/")
    return Repository(upstream, path)


def _limit(n: int | None) -> int:
    return PAGE_MOST if n is None else min(n, PAGE_MOST)


def _next_link(path: str, n: int | None, last: str, ns: str | None) -> str:
    """Return the `Link` to what follows, relative to this mirror and in the form that the client chose (P11)."""
    query = "" if n is None else f"n={n}&"
    scope = "" if ns is None else f"&ns={quote(ns, safe='')}"
    return f'<{path}?{query}last={quote(last, safe="")}{scope}>; rel="next"'


def _warn(headers: Headers, warning: str) -> None:
    if warning:
        headers["Warning"] = f'299 - "{warning}"'


def _answer(
    body: bytes, headers: Headers, ns: str | None, request: web.BaseRequest, exchange: Exchange
) -> web.Response:
    """Return `body`, its headers alone, or 304 where the client has the same list (P7)."""
    exchange.first_byte = monotonic()
    digest = Digest.of(body)
    headers = BASE | headers | {"ETag": f'"{digest}"'}
    if ns is not None:
        headers["OCI-Namespace"] = ns
    if not_modified(request.headers.get("If-None-Match"), digest):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    if request.method == "HEAD":
        return web.Response(headers=headers | {"Content-Length": str(len(body))})
    exchange.sent = len(body)
    return web.Response(headers=headers, body=body)
