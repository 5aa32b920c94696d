"""A registry host as a Source: its answers read as descriptors, manifests and blob streams.

How a question gets its answer (authentication, redirects, retries) lies below; in what order sources are asked, and
what is believed of them, lies above, in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from metrics.events import Emit
from proxy.oci import media
from proxy.oci.descriptor import OCTET_STREAM, Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    DigestInvalid,
    ManifestUnknown,
    RangeNotSatisfiable,
    RegistryError,
    Unavailable,
)
from proxy.oci.listings import Referrers, TagPage, fallback_tag, page_of
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Reference, Repository
from proxy.oci.ranges import ByteRange
from proxy.oci.terms import ANY, Terms
from proxy.upstream.addresses import Territory
from proxy.upstream.answers import Asked, content_length, content_range
from proxy.upstream.callers import CallersClient
from proxy.upstream.client import Answer, HeadRefused, Host, RegistryClient
from proxy.upstream.gate import Gate
from proxy.upstream.health import Health
from proxy.upstream.holds import Holds
from proxy.upstream.listing import Lister
from proxy.upstream.quota import QuotaWatch
from proxy.upstream.recovery import Recovery
from proxy.upstream.retry import Persistence
from proxy.upstream.settings import UpstreamSettings
from proxy.upstream.spans import place_part, place_whole
from proxy.upstream.stream import ResponseStream
from proxy.upstream.transport import Transport

_ACCEPT = {"Accept": media.ACCEPT}
_HASHED_AT_ONCE = 1 << 20
_PARSED_AT_ONCE = 64 << 10
# What a HEAD says of a manifest when it does not know better; the body does (P23).
_VAGUE = frozenset({"application/json", "text/plain", "text/html", OCTET_STREAM})
_OK = frozenset({200})
_BLOB = frozenset({200, 206, 416})


class RegistrySource:
    """One host of an upstream (proxy.source.Source). Make it in a running loop; close it."""

    def __init__(
        self,
        settings: UpstreamSettings,
        host_url: URL,
        emit: Emit,
        *,
        resolver: AbstractResolver | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.url = host_url
        self._main = host_url == settings.url
        host = host_url.host or ""
        self._name = f"{host}:{host_url.explicit_port}" if host_url.explicit_port else host
        trusted = settings.redirect_hosts | ({settings.proxy.host or ""} if settings.proxy else frozenset())
        territory = Territory(host, trusted)
        now = clock or asyncio.get_running_loop().time
        limits = settings.limits
        self.health = Health(self._name, limits.quiet, limits.quiet_most, now)
        self.holds = Holds(self._name, now)
        self.quota = QuotaWatch(now)
        self.keyring = settings.keyring_for(host_url, self._name, now)
        # Whoever waits for a turn until the time for an answer is over would take it for the host's silence.
        turn = min(limits.turn, limits.answer / 2)
        self._gate = Gate(self._name, settings.concurrency, settings.requests_per_second, turn, now)
        self._transport = Transport(self._name, settings, territory, emit, resolver)
        kind = CallersClient if self._main else RegistryClient
        shared = Host(self._name, host_url, self._transport, territory, self.health, self._gate)
        self._client: RegistryClient = kind(shared, self.keyring, self.quota, emit)
        self._persistence = Persistence(self._name, limits, self.health, self.holds, self.keyring, emit)
        self._recovery = Recovery(self._name, self.health, self._is_back)
        self._persistence.when_failing = self._recovery.watch
        self._lister = Lister(self._name, host_url, self._client, self._transport, self._persistence)
        self._limits = limits

    @property
    def name(self) -> str:
        """The host, with its port where the URL gives one."""
        return self._name

    @property
    def is_down(self) -> bool:
        """It could not be reached a moment ago and fails at once for now; better ask another first."""
        return self.health.is_down

    @property
    def last_error(self) -> RegistryError | None:
        """Why it counts as down or doubtful; None while it answers."""
        return self.health.last_error

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """Return a manifest's descriptor by HEAD, by GET where the HEAD does not tell enough (P35, P37).

        Raises:
            ManifestUnknown, Denied, TooManyRequests, BadContent, Unavailable.
        """
        asked = Asked("manifest", repository, reference)
        try:
            found = await self._persistence.ask(asked, lambda: self._head_manifest(asked, reference))
        except HeadRefused:
            found = None
        return found or (await self.manifest(repository, reference)).descriptor

    async def manifest(self, repository: Repository, reference: Reference, terms: Terms = ANY) -> Manifest:
        """Return a manifest with its true media type (P23), verified by the digest asked for or that came with it.

        It is asked for with `terms.accept` where there is one (P21), else with all that we know (P19).

        Raises:
            ManifestUnknown: it does not exist, or is schema 1 (P22).
            Denied, TooManyRequests, Unavailable.
            BadContent: wrong digest, over `manifest_bytes`, or no manifest at all (P23, P38, P45).
        """
        asked = Asked("manifest", repository, reference)
        return await self._persistence.ask(asked, lambda: self._get_manifest(asked, reference, terms.accept))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """Return a blob's size by HEAD; by one byte of it where the HEAD is refused or leads to a presigned URL (P36).

        Raises:
            BlobUnknown, Denied, TooManyRequests, BadContent, Unavailable.
        """
        asked = Asked("blob", repository, digest)
        try:
            size = await self._persistence.ask(asked, lambda: self._head_blob(asked, digest))
        except HeadRefused:
            size = None
        if size is None:
            size = await self._persistence.ask(asked, lambda: self._size_by_get(asked, digest))
        return Descriptor(OCTET_STREAM, digest, size)

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> ResponseStream:
        """Open a blob or a span of it; a 200 to a Range is read from the span's start (P37).

        The stream's size is what this answer says: who resumes compares it with what was said before.

        Raises:
            BlobUnknown, Denied, RangeNotSatisfiable, TooManyRequests, BadContent, Unavailable.
        """
        asked = Asked("blob", repository, digest)
        await self._gate.begin_stream()
        try:
            quiet = self._limits.quiet_resume if span is not None and span.first else self._limits.quiet_most
            stream = await self._persistence.ask(asked, lambda: self._open(asked, digest, span), quiet)
        except BaseException:
            self._gate.end_stream()
            raise
        stream.when_closed = self._gate.end_stream
        return stream

    async def tags(self, repository: Repository, after: str | None, limit: int | None) -> TagPage:
        """Return a page of all tags, which are collected anew each time: keep them (P11).

        Raises:
            NameUnknown, Denied, TooManyRequests, BadContent, Unavailable.
        """
        return page_of(await self._lister.tags(repository), after, limit)

    async def referrers(self, repository: Repository, digest: Digest, artifact_type: str | None) -> Referrers:
        """Return what the referrers API says, where there is none what the fallback tag points to (P12, P13).

        Raises:
            Denied, TooManyRequests, BadContent, Unavailable.
        """
        entries = await self._lister.referrers(repository, digest)
        if entries is None:
            try:
                found = await self.resolve(repository, fallback_tag(digest))
                listed = await self.manifest(repository, found.digest)
            except ManifestUnknown:
                return Referrers(()).only(artifact_type)
            if listed.descriptor.media_type != media.OCI_INDEX:
                return Referrers(()).only(artifact_type)
            entries = await self._lister.read_referrers(repository, digest, listed.body)
        return Referrers(tuple(entries)).only(artifact_type)

    async def ping(self) -> None:
        """Ask the host whether it answers, even while it counts as down. Raises Transient kinds."""
        await self._client.ping()

    def learned(self) -> None:
        """Tell what `health` has learned from another node, and see to it that somebody asks a host that fails."""
        self._persistence.tell()

    async def _is_back(self) -> None:
        await self._persistence.ask(Asked("ping"), self.ping)

    async def aclose(self) -> None:
        """Close all connections, those of open streams too."""
        await self._recovery.aclose()
        await self._client.aclose()
        await self._transport.aclose()

    # Manifests

    async def _head_manifest(self, asked: Asked, reference: Reference) -> Descriptor | None:
        answer = await self._client.ask(asked, "HEAD", f"{_path(asked)}/manifests/{reference}", _ACCEPT, _OK)
        headers = answer.response.headers
        answer.response.release()
        digest = _told_digest(answer.response)
        if isinstance(reference, Digest):
            if digest is not None and digest.algorithm == reference.algorithm and digest != reference:
                raise BadContent(f"{self._name} says that {asked} has the digest {digest}")
            digest = reference
        media_type = media.essence(headers.get("Content-Type"))
        size = content_length(headers)
        if digest is None or media_type is None or media_type in _VAGUE or media_type in media.SCHEMA1 or not size:
            return None
        return Descriptor(media_type, digest, size)

    async def _get_manifest(self, asked: Asked, reference: Reference, accept: str) -> Manifest:
        headers = {"Accept": accept} if accept else _ACCEPT
        answer = await self._client.ask(asked, "GET", f"{_path(asked)}/manifests/{reference}", headers, _OK)
        body = await self._transport.read(answer.response, self._limits.manifest_bytes, asked)
        expected = reference if isinstance(reference, Digest) else _told_digest(answer.response)
        if len(body) > _HASHED_AT_ONCE:
            digest = await asyncio.to_thread(Digest.of, body, expected.algorithm if expected else "sha256")
        else:
            digest = Digest.of(body, expected.algorithm if expected else "sha256")
        if expected is not None and digest != expected:
            raise BadContent(f"{self._name} gives for {asked} bytes with the digest {digest} instead of {expected}")
        content_type = answer.response.headers.get("Content-Type")
        if len(body) > _PARSED_AT_ONCE:
            media_type = await asyncio.to_thread(_true_type, body, content_type)
        else:
            media_type = _true_type(body, content_type)
        return Manifest(Descriptor(media_type, digest, len(body)), body, self._is_public(answer))

    # Blobs

    async def _head_blob(self, asked: Asked, digest: Digest) -> int | None:
        answer = await self._client.ask(asked, "HEAD", f"{_path(asked)}/blobs/{digest}", {}, _OK)
        answer.response.release()
        self._check_blob(asked, answer.response, digest)
        return content_length(answer.response.headers)

    async def _size_by_get(self, asked: Asked, digest: Digest) -> int:
        answer = await self._ask_blob(asked, digest, "bytes=0-0")
        answer.response.close()
        self._check_blob(asked, answer.response, digest)
        given = content_range(answer.response.headers)
        whole = answer.response.status == 200
        size = content_length(answer.response.headers) if whole else given.size if given is not None else None
        if size is None:
            raise Unavailable(f"{self._name} does not tell the size of {asked}")
        return size

    async def _open(self, asked: Asked, digest: Digest, span: ByteRange | None) -> ResponseStream:
        wanted = span if span is None or span.first is None or span.first > 0 or span.last is not None else None
        answer = await self._ask_blob(asked, digest, None if wanted is None else f"bytes={wanted}")
        try:
            return await self._stream(asked, digest, wanted, answer)
        except BaseException:
            answer.response.close()
            raise

    async def _ask_blob(self, asked: Asked, digest: Digest, range_header: str | None) -> Answer:
        headers = {} if range_header is None else {"Range": range_header}
        expect = _OK if range_header is None else _BLOB
        return await self._client.ask(asked, "GET", f"{_path(asked)}/blobs/{digest}", headers, expect)

    async def _stream(self, asked: Asked, digest: Digest, span: ByteRange | None, answer: Answer) -> ResponseStream:
        response = answer.response
        self._check_blob(asked, response, digest)
        length, given = content_length(response.headers), content_range(response.headers)
        if span is not None and response.status == 416:
            response.close()
            size = given.size if given is not None else None
            if size is None:
                size = await self._size_by_get(asked, digest)
            if size == 0:  # P6
                return await self._open(asked, digest, None)
            raise RangeNotSatisfiable(f"{asked} has {size} bytes and none in the range {span}", size=size)
        if span is not None and response.status == 206:
            place = place_part(self._name, asked, span, given, length)
        else:
            place = place_whole(self._name, asked, span, length)
        stall = self._limits.stall
        return ResponseStream(self._name, digest, response, place, anonymous=self._is_public(answer), stall=stall)

    def _is_public(self, answer: Answer) -> bool:
        """Only the main host can say so: an alternate may be open to us and hold what is private (P43)."""
        return answer.anonymous and self._main

    def _check_blob(self, asked: Asked, response: aiohttp.ClientResponse, digest: Digest) -> None:
        told = _told_digest(response)
        if told is not None and told.algorithm == digest.algorithm and told != digest:
            raise BadContent(f"{self._name} says that {asked} has the digest {told}")
        if response.status in (200, 206) and media.essence(response.headers.get("Content-Type")) == "text/html":
            raise BadContent(f"{self._name} answers {asked} with an HTML page: is it the registry, or a login portal?")


def build_sources(
    settings: UpstreamSettings, emit: Emit, *, resolver: AbstractResolver | None = None
) -> list[RegistrySource]:
    """Return the main host's source followed by the alternates', in order. Call it in a running loop.

    The time for an answer is divided among them, so that one which hangs leaves the others their chance (P26).
    """
    hosts = (settings.url, *settings.alternates)
    limits = replace(settings.limits, answer=settings.limits.answer / len(hosts))
    shared = replace(settings, limits=limits)
    return [RegistrySource(shared, host, emit, resolver=resolver) for host in hosts]


def _path(asked: Asked) -> str:
    assert asked.repository is not None
    return asked.repository.path


def _true_type(body: bytes, content_type: str | None) -> str:
    """Return the media type of a manifest; what was parsed for it is freed here, which takes 4 ms of a large one."""
    return parse_manifest(body, content_type).media_type


def _told_digest(response: aiohttp.ClientResponse) -> Digest | None:
    """Return the `Docker-Content-Digest`; one that is malformed counts as missing (P37)."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None
