"""The bucket as objects under digests: looked at, opened, put, listed, deleted, signed for. No policy.

Objects lie under `v1/blobs/<algorithm>/<2 hex>/<hex>` below the prefix, manifests with their media type as their
Content-Type. The metadata `public` says that the content was once fetched anonymously.

How the bucket is reached lies in `connecting`, whether it is asked at all in `breaker`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError

from metrics.events import BucketHealth, BucketRequest, BucketTransferred, Emit
from proxy.bucket.answers import IDLE_SECONDS, NAME, Opened, describe, is_public
from proxy.bucket.breaker import Breaker
from proxy.bucket.connecting import Store, connect
from proxy.oci.descriptor import OCTET_STREAM
from proxy.oci.digest import Digest
from proxy.oci.errors import DigestInvalid, RangeNotSatisfiable, Unavailable
from proxy.oci.ranges import ByteRange

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

FOLDER = "v1/blobs"
ANSWER_SECONDS = 3.0
LIST_SECONDS = 30.0
READ_SECONDS = 6.0
"""For which a small object is waited for, so that whoever waits can still be served from elsewhere (P26)."""
SLOWEST = 128 << 10
"""Bytes per second below which an upload is given up."""
PART = 8 << 20
"""What is larger is uploaded in parts of this size, of which three are in memory at a time."""
PART_SECONDS = 2.0 * PART / SLOWEST
"""For which a part may take on its way up, beside another."""
MOST_PARTS = 9000
PAGE = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Object:
    """An object: `size` in bytes, when it was put, in seconds since the epoch; `public` unless listed."""

    digest: Digest
    size: int
    modified: float
    public: bool = False


class _Missing(Exception):
    """There is no such object."""


class _Refused(Unavailable):
    """The bucket answered with an error; `said` is its status, 0 when there was none."""

    said = 0


class Bucket:
    """Make it with `open_bucket`. Its methods raise Unavailable, at once while the breaker is open.

    `uploads` is the same store, reached with more patience.

    No error, event or name carries a URL, a query string or a credential.
    """

    name = NAME

    def __init__(self, store: Store, uploads: Store, emit: Emit) -> None:
        self._store = store
        self._uploads = uploads
        self._emit = emit
        self._breaker = Breaker(NAME, time.monotonic)
        self._heard_at = float("-inf")
        self._opened = asyncio.Event()
        self._wakers: list[Callable[[], None]] = []

    @property
    def failing(self) -> str | None:
        """Why it is not asked at the moment; None while it is."""
        return self._breaker.reason if self._breaker.is_open else None

    def heard_within(self, seconds: float) -> bool:
        """It has answered so lately, and nothing was heard of it since that keeps it from being asked."""
        return not self._breaker.is_open and time.monotonic() - self._heard_at <= seconds

    def when_back(self, call: Callable[[], None]) -> None:
        """Let `call` be called whenever the bucket answers again."""
        self._wakers.append(call)

    async def look(self, digest: Digest) -> Object | None:
        """Return what is stored under a digest."""
        options: GetOptions = {"head": True}
        try:
            found = await self._ask("head", lambda: obstore.get_async(self._store, key_of(digest), options=options))
        except _Missing:
            return None
        return _object(digest, found)

    async def open(self, digest: Digest, span: ByteRange | None = None) -> Opened | None:
        """Open an object, or a part of it; None when there is none. Raises RangeNotSatisfiable."""
        path = key_of(digest)
        try:
            result = await self._ask(
                "get",
                lambda: obstore.get_async(self._store, path, options=_options(span)),
                range_asked=span is not None,
            )
        except _Missing:
            return None
        except _Refused as error:
            if span is None or error.said != 416:
                raise
            found = await self.look(digest)
            if found is None:
                return None
            if found.size:
                span.resolve(found.size)
                raise RangeNotSatisfiable(f"{NAME} has no byte of {span} of {digest}", size=found.size) from None
            return await self.open(digest)
        return Opened(result, digest, self._emit, self._failed)

    async def read(self, digest: Digest, limit: int) -> tuple[bytes, str, bool] | None:
        """Return an object of up to `limit` bytes whole, its media type and whether it is public; None without one.

        Raises Unavailable where it is larger.
        """
        opened = await self.open(digest)
        if opened is None:
            return None
        try:
            if opened.size > limit:
                raise Unavailable(f"{NAME} has {opened.size} bytes under {digest}, more than the {limit} it may have")
            async with asyncio.timeout(READ_SECONDS):
                body = b"".join([chunk async for chunk in opened])
            return body, opened.media_type, opened.anonymous
        except TimeoutError:
            raise Unavailable(f"{NAME} gives {digest} too slowly to wait for it") from None
        finally:
            await opened.aclose()

    async def put(
        self, digest: Digest, content: AsyncIterator[bytes], *, size: int, media_type: str | None, public: bool
    ) -> None:
        """Store `size` bytes under a digest, and look whether they are there. What `content` raises leaves no object.

        What is up to PART bytes large is kept in memory. A replaced object counts as put now.
        """
        attributes = {"Content-Type": media_type or OCTET_STREAM, **({"public": "1"} if public else {})}
        path, store = key_of(digest), self._uploads
        body = b"".join([chunk async for chunk in content]) if size <= PART else None
        part = max(PART, -(-size // MOST_PARTS))

        def upload() -> Awaitable[object]:
            if body is not None:
                return obstore.put_async(store, path, body, attributes=attributes, use_multipart=False)
            return obstore.put_async(store, path, content, attributes=attributes, chunk_size=part, max_concurrency=2)

        try:
            await self._ask("put", upload, seconds=IDLE_SECONDS + size / SLOWEST)
        except _Missing:
            raise Unavailable(f"there is no such bucket to store {digest} in: make it, or name another") from None
        self._emit(BucketTransferred("up", size))
        found = await self.look(digest)
        if found is None or found.size != size:
            has = "nothing" if found is None else f"{found.size} bytes"
            raise Unavailable(f"{NAME} took {size} bytes of {digest} and has {has} there now: it is uploaded again")

    async def delete(self, digest: Digest) -> None:
        """Delete an object, if it is there."""
        try:
            await self._ask("delete", lambda: obstore.delete_async(self._store, key_of(digest)))
        except _Missing:
            return

    async def pages(self) -> AsyncIterator[list[Object]]:
        """List all objects, in pages; what has no digest's name is left out."""
        stream = obstore.list(self._store, FOLDER, chunk_size=PAGE)

        async def following() -> list[Object] | None:
            try:
                page = await anext(stream)
            except StopAsyncIteration:
                return None
            found = [(digest_of(one["path"]), one) for one in page]
            return [Object(name, one["size"], one["last_modified"].timestamp()) for name, one in found if name]

        while True:
            try:
                page = await self._ask("list", following, seconds=LIST_SECONDS)
            except _Missing:
                return
            if page is None:
                return
            yield page

    async def sign(self, digest: Digest, seconds: float) -> str:
        """Return a URL, a secret, with which anybody may GET the object for so long. Raises Unavailable."""
        self._breaker.check()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await obstore.sign_async(self._store, "GET", key_of(digest), timedelta(seconds=seconds))
        except (BaseError, OSError, TimeoutError) as error:
            raise Unavailable(f"{NAME} cannot sign for {digest}: {describe(error)[1]}") from None

    async def probe(self) -> None:
        """While the breaker is open, ask until there is an answer. Runs until it is cancelled."""
        while True:
            await self._opened.wait()
            while self._breaker.is_open:
                await asyncio.sleep(self._breaker.left)
                try:
                    await self._question("probe", lambda: obstore.head_async(self._store, "v1/probe"), ANSWER_SECONDS)
                except (_Missing, Unavailable):
                    continue
            self._opened.clear()

    async def _ask(
        self,
        operation: str,
        work: Callable[[], Awaitable[T]],
        *,
        seconds: float | None = None,
        range_asked: bool = False,
    ) -> T:
        self._breaker.check()
        limit = ANSWER_SECONDS if seconds is None else seconds
        return await self._question(operation, work, limit, range_asked=range_asked)

    async def _question(
        self, operation: str, work: Callable[[], Awaitable[T]], seconds: float, *, range_asked: bool = False
    ) -> T:
        since = time.monotonic()
        outcome = "cancelled"
        try:
            async with asyncio.timeout(seconds):
                result = await work()
            outcome = "ok"
            self._answered(since)
            return result
        except FileNotFoundError:
            outcome = "missing"
            self._answered(since)
            raise _Missing from None
        except (BaseError, OSError) as error:
            outcome, text, said = describe(error)
            if range_asked and said == 416:
                outcome = "missing"
                self._answered(since)
            else:
                # A slow way up says nothing of the way down.
                self._failed(text, since, outcome == "timeout" and operation != "put")
            refused = _Refused(f"{NAME} {text}")
            refused.said = said
            raise refused from None
        except Exception:
            outcome = "aborted"
            raise
        finally:
            self._emit(BucketRequest(operation, outcome, time.monotonic() - since))

    def _answered(self, since: float) -> None:
        self._heard_at = time.monotonic()
        was = self._breaker.is_open
        self._breaker.answered(since)
        if was and not self._breaker.is_open:
            self._emit(BucketHealth(failing=False, reason=""))
            for call in self._wakers:
                call()

    def _failed(self, text: str, since: float, silent: bool) -> None:
        was = self._breaker.is_open
        self._breaker.failed(text, since, silent=silent)
        if self._breaker.is_open and not was:
            self._opened.set()
            self._emit(BucketHealth(failing=True, reason=text))


@asynccontextmanager
async def open_bucket(url: str, emit: Emit, environment: Mapping[str, str] = os.environ) -> AsyncIterator[Bucket]:
    """Give the bucket at `url` without asking it anything, and probe it, while it fails, for as long as this lasts.

    Raises BucketUnusable.
    """
    store, uploads = [
        await asyncio.to_thread(connect, url, environment, seconds, ANSWER_SECONDS)
        for seconds in (IDLE_SECONDS, PART_SECONDS)
    ]
    bucket = Bucket(store, uploads, emit)
    probing = asyncio.create_task(bucket.probe(), name="is the bucket back")
    try:
        yield bucket
    finally:
        probing.cancel()
        await asyncio.wait([probing])


def key_of(digest: Digest) -> str:
    """Return where a digest lies below the prefix."""
    return f"{FOLDER}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def digest_of(key: str) -> Digest | None:
    """Return whose key that is; None for what is nobody's."""
    parts = key.removeprefix(f"{FOLDER}/").split("/")
    try:
        digest = Digest.parse(f"{parts[0]}:{parts[-1]}")
    except DigestInvalid:
        return None
    return digest if key_of(digest) == key else None


def _options(span: ByteRange | None) -> GetOptions:
    if span is None:
        return {}
    if span.first is None:
        return {"range": {"suffix": span.last or 0}}
    if span.last is None:
        return {"range": {"offset": span.first}}
    return {"range": (span.first, span.last + 1)}


def _object(digest: Digest, found: GetResult) -> Object:
    return Object(digest, found.meta["size"], found.meta["last_modified"].timestamp(), is_public(found.attributes))
