"""A look at the bucket that nodes share: an object of some bytes is put, read, listed and deleted again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

from metrics.events import ignore
from proxy.bucket.connecting import BucketUnusable
from proxy.bucket.objects import Bucket, open_bucket
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable

MOST_SECONDS = 9.0
_SIZE = 32

Step = Literal["open", "write", "read", "list", "delete"]


@dataclass(frozen=True, slots=True)
class BucketSeen:
    """The bucket at `url`. `failed`: the first step that did not work, and `failure` why; None: all did.

    `left`: the digest of the object that could not be taken away again. `skew`: how far ahead the bucket's clock is,
    within a second.
    """

    url: str
    failed: Step | None = None
    failure: str = ""
    skew: float = 0.0
    left: str | None = None


async def look_at_bucket(url: str) -> BucketSeen:
    """Try all that the mirror does with the bucket at `url`, with the credentials of this process's environment."""
    seen = BucketSeen(url)
    try:
        async with open_bucket(url, ignore) as bucket:
            return await _try(bucket, seen)
    except BucketUnusable as error:
        return replace(seen, failed="open", failure=str(error))


async def _try(bucket: Bucket, seen: BucketSeen) -> BucketSeen:
    body = secrets.token_bytes(_SIZE)
    digest = Digest.of(body)

    async def content() -> AsyncIterator[bytes]:
        yield body

    async def write() -> None:
        await bucket.put(digest, content(), size=_SIZE, media_type=None, public=False)

    async def read() -> None:
        found = await bucket.read(digest, _SIZE)
        if found is None or found[0] != body:
            raise Unavailable("it gives something else than was put there a moment ago")

    async def first_page() -> None:
        await anext(bucket.pages(), None)

    seen = await _step(seen, "write", write)
    if seen.failed is not None:
        return seen
    put = await _modified(bucket, digest)
    if put is not None:
        seen = replace(seen, skew=put - time.time())
    seen = await _step(seen, "read", read)
    seen = await _step(seen, "list", first_page)
    deleted = await _step(replace(seen, failed=None), "delete", lambda: bucket.delete(digest))
    if deleted.failed is not None:
        return replace(deleted if seen.failed is None else seen, left=str(digest))
    return seen


async def _step(seen: BucketSeen, step: Step, work: Callable[[], Awaitable[None]]) -> BucketSeen:
    """Take a step; after one that failed, or for which time ran out, none is taken."""
    if seen.failed is not None:
        return seen
    try:
        async with asyncio.timeout(MOST_SECONDS / 3):
            await work()
    except TimeoutError:
        return replace(seen, failed=step, failure=f"no answer within {MOST_SECONDS / 3:g} s")
    except Unavailable as error:
        return replace(seen, failed=step, failure=error.message)
    return seen


async def _modified(bucket: Bucket, digest: Digest) -> float | None:
    try:
        found = await bucket.look(digest)
    except Unavailable:
        return None
    return None if found is None else found.modified
