"""Making room now: what `entrepot gc` does, in the mirror's process or in its own, and the lines that tell of it.

On the disk by evicting, or, with `--bucket`, in the bucket by deleting what was removed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from entrepot.config import Config
from metrics.events import Emit
from proxy.store.feed import read_cursors
from proxy.store.store import Store
from proxy.store.sweep import Sweeper

if TYPE_CHECKING:
    from proxy.bucket.collector import Turn


class Gone(msgspec.Struct, frozen=True, tag_field="event", tag="evicted"):
    """An image, or what was left of one, that went or would go. `last_use` in seconds since the epoch."""

    repository: str
    reference: str
    digest: str
    reason: str
    blobs: int
    bytes: int
    last_use: float


class Collected(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """The end. Bytes: `freed` now, `used` after that, and the watermarks. With `dry_run` nothing was done."""

    dry_run: bool
    closures: int
    freed: int
    used: int
    high: int
    low: int


class CollectError(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """It did not come to its end."""

    message: str


class Deleted(msgspec.Struct, frozen=True, tag_field="event", tag="deleted"):
    """An object of the bucket that went or would go."""

    digest: str
    bytes: int


class BucketCollected(msgspec.Struct, frozen=True, tag_field="event", tag="collected"):
    """The end of a collection in the bucket, of `objects` there. With `dry_run` nothing was done.

    removed: those that go when their grace is over. unknown: those that no record speaks of, which stay.
    """

    dry_run: bool
    objects: int
    deleted: int
    freed: int
    removed: int
    unknown: int


CollectLine = Gone | Collected | Deleted | BucketCollected | CollectError


class CollectFailed(Exception):
    """It cannot be done; the message says why."""


async def collect(
    store: Store, quota: int | None, emit: Emit, report: Callable[[Gone], None], *, dry_run: bool
) -> Collected:
    """Evict down to the low watermark, drop orphans older than an hour and empty the trash; or only say what would go.

    `report` is told of each closure, in the order of their going.
    """
    sweeper = Sweeper(store, quota, emit)
    evicted = await (sweeper.foresee() if dry_run else sweeper.collect())
    for one in evicted:
        report(Gone(one.repository, one.reference, one.root, one.reason, one.blobs, one.bytes, one.last_use))
    space = await sweeper.measure()
    freed = sum(one.bytes for one in evicted)
    return Collected(dry_run, len(evicted), freed, space.stored + space.reserved, space.high, space.low)


async def collect_bucket(
    config: Config, store: Store, emit: Emit, turn: Turn | None, report: Callable[[Deleted], None], *, dry_run: bool
) -> BucketCollected:
    """Delete from the bucket what was removed longer than its grace ago; or only say what would go.

    turn: the right to, None where no mirror runs. Raises CollectFailed where it may not or cannot be done, Unavailable.
    """
    if config.store is None:
        raise CollectFailed("no store is configured: name the bucket in the configuration, or in ENTREPOT_STORE")
    alone = config.redis is None and not await store.catalog.read(read_cursors)
    if turn is None and not alone and not dry_run:
        raise CollectFailed(
            "this node is one of a fleet and does not run, so it may not know what the others want: run it where a "
            "mirror of the fleet runs"
        )
    from proxy.bucket.collector import Collector, always
    from proxy.bucket.connecting import BucketUnusable
    from proxy.bucket.objects import open_bucket

    try:
        async with open_bucket(config.store, emit) as bucket:
            collector = Collector(store.catalog, bucket, emit, config.store_grace, turn or always)
            done = await collector.collect(
                dry_run=dry_run, report=lambda found: report(Deleted(str(found.digest), found.size))
            )
    except BucketUnusable as error:
        raise CollectFailed(str(error)) from None
    if done is None:
        raise CollectFailed("another node collects in the bucket now, or Redis does not answer: try again later")
    return BucketCollected(dry_run, done.objects, done.deleted, done.bytes, done.removed, done.unknown)
