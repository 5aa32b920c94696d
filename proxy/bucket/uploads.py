"""Gives the bucket what this node has stored: the worker of the catalog's queue, in the process that owns the folder.

What waits lies in the catalog (see `proxy.store.uploading`), so a killed process forgets nothing; putting an object
twice is harmless. An object that is there counts, unless it is so old that a collector could be about to take it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random

from metrics.events import Emit, UploadsQueued
from proxy.bucket.objects import Bucket, Object
from proxy.oci.errors import BadContent, RegistryError, Unavailable
from proxy.store import uploading
from proxy.store.errors import StoreError
from proxy.store.store import Store
from proxy.store.stored import StoredFile
from proxy.store.uploading import Job
from proxy.store.writer import Transaction

AT_ONCE = 4
IDLE_SECONDS = 2.0
"""How often an idle queue is looked at: other processes of this node fill it too, without a word."""
TROUBLE_SECONDS = 10.0
READ = 1 << 20
LONGEST = 300.0
PAUSE = 30.0
"""At most for so long nothing is begun while whatever is uploaded fails."""
TELL_SHARE = 0.01
"""Of the time spent in counting a queue, which takes 0.1 s where it has a million rows."""

_log = logging.getLogger(__name__)


class Uploader:
    """`run` it. `grace` is for how long the collector spares what nobody wants, in seconds; `clock` gives unix time."""

    def __init__(
        self,
        store: Store,
        bucket: Bucket,
        emit: Emit,
        grace: float,
        *,
        clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self._store = store
        self._catalog = store.catalog
        self._bucket = bucket
        self._emit = emit
        self._grace = grace
        self._clock = clock
        self._random = random or Random()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tell_at = float("-inf")
        self._failures = 0
        self._go_on_at = float("-inf")

    async def run(self) -> None:
        """Upload what is queued, for as long as it is not cancelled. The catalog must aim at the bucket (`aim`)."""
        self._bucket.when_back(self._back)
        while True:
            try:
                await self._work_off()
            except* StoreError as errors:
                _log.error("the queue of uploads cannot be read or written now: %s", errors.exceptions[0])
            await asyncio.sleep(TROUBLE_SECONDS)

    def _back(self) -> None:
        self._failures, self._go_on_at = 0, float("-inf")
        self._catalog.queued.set()

    async def _work_off(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._queue_all(), name="queue what was stored before")
            while True:
                self._catalog.queued.clear()
                await self._start_due(tasks)
                await self._tell()
                await self._wait()

    async def _queue_all(self) -> None:
        while await self._catalog.write(lambda transaction: uploading.queue_some(transaction, self._clock())):
            self._catalog.queued.set()

    async def _start_due(self, tasks: asyncio.TaskGroup) -> None:
        full = len(self._running) >= AT_ONCE
        if full or self._bucket.failing is not None or time.monotonic() < self._go_on_at:
            return
        most = AT_ONCE + len(self._running)
        jobs = await self._catalog.read(lambda connection: uploading.due(connection, self._clock(), most))
        for job in jobs:
            if job.digest not in self._running and len(self._running) < AT_ONCE:
                task = tasks.create_task(self._work(job), name=f"upload of {job.digest}")
                self._running[job.digest] = task
                task.add_done_callback(partial(self._ended, job))

    def _ended(self, job: Job, _: asyncio.Task[None]) -> None:
        del self._running[job.digest]
        self._catalog.queued.set()

    async def _wait(self) -> None:
        seconds = IDLE_SECONDS
        if not self._running and self._bucket.failing is None:
            due = await self._catalog.read(uploading.next_due)
            seconds = IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(0.0, due - self._clock()))
        try:
            async with asyncio.timeout(seconds):
                await self._catalog.queued.wait()
        except TimeoutError:
            return

    async def _tell(self) -> None:
        begun = time.monotonic()
        if begun < self._tell_at:
            return
        self._emit(UploadsQueued(*await self._catalog.read(lambda found: uploading.backlog(found, self._clock()))))
        ended = time.monotonic()
        self._tell_at = ended + max(IDLE_SECONDS / 2, (ended - begun) / TELL_SHARE)

    async def _work(self, job: Job) -> None:
        try:
            settle = await self._upload(job)
            self._failures = 0
        except BadContent as error:
            _log.error("%s; it is not uploaded: `entrepot verify` sets it aside, and it is fetched again", error)
            settle = partial(uploading.gave_up, digest=job.digest)
        except Exception as error:
            settle = partial(uploading.failed, digest=job.digest, until=self._failed(job, error))
        await self._catalog.write(settle)

    def _failed(self, job: Job, error: Exception) -> float:
        """Tell of a failure; return when that blob is to be tried again, in unix time."""
        if isinstance(error, RegistryError | OSError):
            _log.warning("%s could not be uploaded, which is tried again: %s", job.digest, error)
        else:
            _log.error("%s could not be uploaded, which is tried again", job.digest, exc_info=error)
        self._failures += 1
        if self._failures >= AT_ONCE:
            self._go_on_at = time.monotonic() + min(PAUSE, 0.5 * 2.0 ** min(self._failures - AT_ONCE, 10))
        if self._bucket.failing:  # altogether: nothing is begun before it is back
            return self._clock()
        return self._clock() + min(LONGEST, 2.0 ** min(job.tries, 10)) * self._random.uniform(0.5, 1.0)

    async def _upload(self, job: Job) -> Callable[[Transaction], None]:
        """Upload a blob if that is to be, and return what is to be written in the queue then."""
        digest, now = job.digest, self._clock()
        if not job.present:
            return partial(uploading.dropped, digest=digest)
        if not job.ready:
            return partial(uploading.waits, digest=digest, until=now + uploading.WAIT_SECONDS)
        file = await self._store.open_blob(digest)
        if file is None:
            return partial(uploading.dropped, digest=digest)
        try:
            there = await self._bucket.look(digest)
            # Wrong bytes of it were met lately, which may have been those of the bucket: it is put again.
            if self._store.doubted(digest) or wants_upload(job, there, now, self._grace):
                public = job.public or (there is not None and there.public)
                await self._bucket.put(digest, checked(file), size=file.size, media_type=job.media_type, public=public)
        finally:
            file.close()
        return partial(uploading.finished, digest=digest, now=self._clock(), public=job.public)


def wants_upload(job: Job, there: Object | None, now: float, grace: float) -> bool:
    """Tell whether a blob is to be put, given what is there: nothing, something else, or what may go soon."""
    if there is None or there.size != job.size or (job.public and not there.public):
        return True
    return there.modified < now - grace / 2


async def checked(file: StoredFile) -> AsyncIterator[bytes]:
    """Give a stored blob in chunks of 1 MiB. Raises BadContent at its end where it does not match its digest."""
    hasher = file.digest.hasher()
    at = 0
    while at < file.size:
        chunk = await asyncio.to_thread(_read, file.fd, at, hasher)
        if not chunk:
            break
        at += len(chunk)
        yield chunk
    if at != file.size or not file.digest.matches(hasher):
        raise BadContent(f"the stored blob {file.digest} has other bytes")


def _read(fd: int, at: int, hasher: hashlib._Hash) -> bytes:
    try:
        chunk = os.pread(fd, READ, at)
    except OSError as error:
        raise Unavailable(f"its file cannot be read at byte {at}: {error.strerror}") from None
    hasher.update(chunk)
    return chunk
