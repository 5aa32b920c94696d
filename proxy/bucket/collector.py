"""Collects garbage in the bucket: deletes what all that is known of it says nobody may have any more.

One node of the fleet does it at a time. It lists the objects, asks the catalog of each (`proxy.store.wanted`), and
looks at both again right before it deletes. An object is spared while it is younger than the grace, which has to be
longer than the longest pull; whoever still needs an old one puts it again (`uploads`), which makes it young.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from random import Random

from metrics.events import BucketCollected, Emit
from proxy.bucket.objects import Bucket, Object
from proxy.oci.descriptor import OCTET_STREAM
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, ManifestUnknown, RegistryError, Unavailable
from proxy.oci.manifests import MAX_MANIFEST, ParsedManifest, parse_manifest
from proxy.store import wanted
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError

EVERY_SECONDS = 3600.0
LEARNED_AT_ONCE = 5000

Turn = Callable[[], AbstractAsyncContextManager[bool]]
"""The right to collect, while its context lasts: False where another node has it.

Raises Unavailable for a node that may not know what the others want.
"""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collection:
    """What a collection found and did; `bytes` are those of what was `deleted`.

    removed: objects that will be garbage when their grace is over. unknown: those that no record speaks of, which stay.
    """

    objects: int = 0
    deleted: int = 0
    bytes: int = 0
    removed: int = 0
    unknown: int = 0


class Collector:
    """`run` it in the process that owns the folder, or `collect` now. `grace` in seconds; `clock` gives unix time."""

    def __init__(
        self,
        catalog: Catalog,
        bucket: Bucket,
        emit: Emit,
        grace: float,
        turn: Turn,
        *,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self._catalog = catalog
        self._bucket = bucket
        self._emit = emit
        self._grace = grace
        self._turn = turn
        self._clock = clock
        self._random = random or Random()

    async def run(self) -> None:
        """Collect every hour or so, where no other node does, for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS * self._random.uniform(0.75, 1.25))
            try:
                await self.collect()
            except (RegistryError, StoreError) as error:
                _log.warning("garbage in the bucket was not collected, which is tried again later: %s", error)

    async def collect(
        self, *, dry_run: bool = False, report: Callable[[Object], None] = lambda found: None
    ) -> Collection | None:
        """Delete garbage now, or only say what would go, and `report` each; None where another node collects.

        Raises Unavailable, StoreError; what was deleted before stays so.
        """
        async with self._turn() as ours:
            if not ours:
                return None
            done = Collection()
            if dry_run:
                await self._collect(done, report, dry_run=True)
                return done
            outcome = "failed"
            try:
                await self._collect(done, report, dry_run=False)
                outcome = "done"
            finally:
                self._emit(BucketCollected(outcome, done.deleted, done.bytes, done.unknown))
            return done

    async def _collect(self, done: Collection, report: Callable[[Object], None], *, dry_run: bool) -> None:
        candidates: list[Object] = []
        unlearned: list[Object] = []
        async for page in self._bucket.pages():
            for found, standing, unknown_kind in await self._judge(page):
                done.objects += 1
                done.removed += standing == "removed"
                done.unknown += standing == "unknown"
                if standing == "garbage":
                    candidates.append(found)
                elif unknown_kind and found.size <= MAX_MANIFEST and len(unlearned) <= LEARNED_AT_ONCE:
                    unlearned.append(found)
        if candidates and not await self._learn(unlearned):
            _log.info("the garbage in the bucket waits until all manifests that other nodes stored are known here")
            return
        for found in await self._parents_first(candidates):
            if await self._is_garbage(found):
                if not dry_run:
                    await self._bucket.delete(found.digest)
                    _log.info("deleted %s from the bucket: it was removed", found.digest)
                done.deleted += 1
                done.bytes += found.size
                report(found)

    async def _judge(self, page: list[Object]) -> list[tuple[Object, wanted.Standing, bool]]:
        now, grace = self._clock(), self._grace
        return await self._catalog.read(
            lambda connection: [
                (
                    found,
                    wanted.standing(connection, found.digest, now, grace),
                    wanted.is_unlearned(connection, found.digest),
                )
                for found in page
            ]
        )

    async def _parents_first(self, candidates: list[Object]) -> list[Object]:
        """Put what names others before these: what is cut short leaves no manifest there without its blobs (P27)."""
        ranks = await self._catalog.read(
            lambda connection: [wanted.rank(connection, found.digest) for found in candidates]
        )
        return [found for _, found in sorted(zip(ranks, candidates, strict=True), key=itemgetter(0))]

    async def _learn(self, unlearned: list[Object]) -> bool:
        """Learn what the manifests name that other nodes have stored; False where more are left for the next time."""
        for found in unlearned[:LEARNED_AT_ONCE]:
            read = await self._bucket.read(found.digest, MAX_MANIFEST)
            if read is None:
                continue
            body, media_type, _ = read
            parsed = await asyncio.to_thread(_parse, found.digest, body, media_type)
            await self._catalog.learn(found.digest, len(body), parsed)
        return len(unlearned) <= LEARNED_AT_ONCE

    async def _is_garbage(self, found: Object) -> bool:
        there = await self._bucket.look(found.digest)
        now = self._clock()
        if there is None or there.modified >= now - self._grace:
            return False
        standing = await self._catalog.read(
            lambda connection: wanted.standing(connection, found.digest, now, self._grace)
        )
        return standing == "garbage"


@asynccontextmanager
async def always() -> AsyncIterator[bool]:
    """The turn of a node that is alone with its bucket."""
    yield True


def _parse(digest: Digest, body: bytes, media_type: str) -> ParsedManifest | None:
    """Return what a manifest names; None for what is none. Raises Unavailable for bytes that are not the digest's."""
    if Digest.of(body, digest.algorithm) != digest:
        raise Unavailable(f"the bucket has other bytes under {digest}: nothing is deleted before that object is")
    if media_type == OCTET_STREAM:
        return None
    try:
        return parse_manifest(body, media_type)
    except (BadContent, ManifestUnknown):
        return None
