"""HTTP answers: headers and bodies, nothing about where the content comes from."""

from __future__ import annotations

import math
from time import monotonic, monotonic_ns

from aiohttp import web

from proxy.cache.manifests import ServedManifest
from proxy.hot import MAX_SECONDS, HotAnswer
from proxy.oci.descriptor import OCTET_STREAM, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError, Unauthorized, encode
from proxy.oci.multipart import Multipart
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import format_content_range

BASE = {"Docker-Distribution-Api-Version": "registry/2.0", "Server": "entrepot"}
Headers = dict[str, str]


def ping() -> web.Response:
    """P1."""
    return web.Response(body=b"{}", headers=BASE | {"Content-Type": "application/json"})


def error(problem: RegistryError, *, with_body: bool) -> web.Response:
    """The JSON body of P9, `Retry-After` where it is known (P16), `Allow` with 405, our challenge with 401."""
    headers = BASE | {"Content-Type": "application/json"}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after))
    if problem.status == 405:
        headers["Allow"] = "GET, HEAD"
    if isinstance(problem, Unauthorized):
        headers["WWW-Authenticate"] = problem.challenge
    body = encode(problem)
    if not with_body:
        return web.Response(status=problem.status, headers=headers | {"Content-Length": str(len(body))})
    return web.Response(status=problem.status, headers=headers, body=body)


def manifest_headers(manifest: Manifest, ns: str | None) -> Headers:
    """The headers of P2, plus the validator and what a stale answer says of itself."""
    descriptor = manifest.descriptor
    headers = BASE | {
        "Content-Type": descriptor.media_type,
        "Content-Length": str(len(manifest.body)),
        "Docker-Content-Digest": descriptor.digest,
        "ETag": f'"{descriptor.digest}"',
    }
    if ns is not None:
        headers["OCI-Namespace"] = ns
    if isinstance(manifest, ServedManifest) and manifest.warning:
        headers["Warning"] = f'299 - "{manifest.warning}"'
    return headers


def manifest(found: Manifest, ns: str | None, *, with_body: bool) -> web.Response:
    """A whole manifest, or its headers."""
    headers = manifest_headers(found, ns)
    return web.Response(headers=headers, body=found.body) if with_body else web.Response(headers=headers)


def hot(found: ServedManifest, ns: str | None, repository: Repository, reference: Reference, moves: int) -> HotAnswer:
    """The same, kept for the next request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in manifest_headers(found, ns).items())
    now, stale = monotonic(), found.outcome == "stale"
    return HotAnswer(
        head=f"HTTP/1.1 200 OK\r\n{lines}".encode(),
        body=found.body,
        expires=now + min(found.fresh_for, MAX_SECONDS),
        moves=moves,
        upstream=repository.upstream,
        repository=repository.path,
        reference=reference,
        outcome="stale" if stale else "hit",
        media_type=found.descriptor.media_type if isinstance(reference, Tag) else "",
        digest=found.descriptor.digest,
        made=monotonic_ns(),
        confirmed=now - found.age if stale else None,
    )


def not_modified(digest: Digest, ns: str | None) -> web.Response:
    """304 (P7)."""
    headers = BASE | {"ETag": f'"{digest}"', "Docker-Content-Digest": digest}
    if ns is not None:
        headers["OCI-Namespace"] = ns
    return web.Response(status=304, headers=headers)


def blob_headers(digest: Digest, ns: str | None) -> Headers:
    """The headers of P3 that do not depend on the part asked for."""
    headers = BASE | {
        "Content-Type": OCTET_STREAM,
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
    }
    if ns is not None:
        headers["OCI-Namespace"] = ns
    return headers


def blob_head(digest: Digest, size: int, ns: str | None) -> web.Response:
    """The answer to HEAD."""
    return web.Response(headers=blob_headers(digest, ns) | {"Content-Length": str(size)})


def blob_elsewhere(digest: Digest, location: str, ns: str | None) -> web.Response:
    """The answer to a GET that another server is to answer, at a URL that nobody may keep (P36)."""
    headers = BASE | {"Location": location, "Docker-Content-Digest": digest, "Cache-Control": "no-store"}
    if ns is not None:
        headers["OCI-Namespace"] = ns
    return web.Response(status=307, headers=headers)


def blob_start(digest: Digest, size: int | None, part: tuple[int, int] | None, ns: str | None) -> web.StreamResponse:
    """The head of a body that will be streamed: 206 with a `part` (start, end exclusive), else 200.

    Without a size the body is chunked.
    """
    headers = blob_headers(digest, ns)
    if part is not None and size is not None:
        headers["Content-Range"] = format_content_range(part[0], part[1], size)
        headers["Content-Length"] = str(part[1] - part[0])
        return web.StreamResponse(status=206, headers=headers)
    if size is not None:
        headers["Content-Length"] = str(size)
    return web.StreamResponse(headers=headers)


def blob_parts(digest: Digest, body: Multipart, ns: str | None) -> web.StreamResponse:
    """The head of several ranges in one answer (P5)."""
    headers = blob_headers(digest, ns) | {"Content-Type": body.content_type, "Content-Length": str(body.length)}
    return web.StreamResponse(status=206, headers=headers)
