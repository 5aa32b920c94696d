"""Taking in the volumes of a bundle that are at hand: every byte verified, blobs by fills, slices set aside.

Nothing is shown to anybody by this (`publishing` does that), and all of it may be ended at any moment: the fills leave
spools, the state its journal, and whoever comes next goes on. Entries are begun in the order of the volume, several at
once, and the journal follows the last one before which all are done.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from proxy.cache.readthrough import ReadThrough
from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import ParsedManifest, parse_manifest
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.store.records import Proof, Verified
from proxy.store.store import Store
from sync.bundle.errors import BundleError, Damaged, Interrupted, Refused
from sync.bundle.gathering import read_blob, read_here, read_untouched
from sync.bundle.layout import END, BlobPart, Entry, digest_at, entries, slice_at, slices_of
from sync.bundle.opened import Bundle, Readable
from sync.bundle.preflight import digests_of
from sync.bundle.reading import BundleBlob, Reading
from sync.bundle.small import is_small, read_small, turns
from sync.bundle.source import BundleSource
from sync.bundle.staging import CHECKPOINT_BYTES, StagedSlice, State
from sync.bundle.volume import Volume

AT_ONCE = 8
LARGE = 2 << 20
LARGE_AT_ONCE = 2
"""So many fills of blobs larger than that run at once: each takes some 12 MiB, and two keep cores and a disk busy."""
SMALL_AT_ONCE = 3
"""So many turns of small blobs: one is read while others are synced."""

T = TypeVar("T")
Told = Callable[[int], None]
"""Hears in the event loop of so many more bytes of a volume that were read."""


class _Counted(Reading):
    """Tells how much was read."""

    def __init__(self, executor: Executor, told: Told) -> None:
        super().__init__(executor)
        self._tell = told
        self._loop = asyncio.get_running_loop()

    def read(self, file: Readable, offset: int, length: int) -> bytes:
        body = super().read(file, offset, length)
        self._loop.call_soon_threadsafe(self._tell, len(body))
        return body


class Medium(BundleSource):
    """The bundle as the source of fills. `asked`: the blobs that were opened by now; `told` hears what was read."""

    def __init__(self, bundle: Bundle, executor: Executor, told: Told) -> None:
        super().__init__([bundle], threads=executor)
        self.reading = _Counted(executor, told)
        self.asked: set[Digest] = set()

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> BundleBlob:
        self.asked.add(digest)
        return await super().open_blob(repository, digest, span)


class Intake:
    """Takes in one bundle. State: what is here, and the blobs that were filled out of all their volumes by now."""

    def __init__(
        self, store: Store, cache: ReadThrough, medium: Medium, state: State, executor: Executor, told: Told
    ) -> None:
        (self._bundle,) = medium.bundles
        self._plan = self._bundle.plan
        self._store = store
        self._cache = cache
        self._medium = medium
        self._state = state
        self._executor = executor
        self._told = told
        self._here: set[str] = set()
        self._filled: set[int] = set()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._small = asyncio.Semaphore(SMALL_AT_ONCE)
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Take in all volumes at hand.

        Raises Damaged that names volume and blob, Refused where the store has no room, BundleError, Interrupted.
        """
        self._here, _ = await self._store.catalog.read(lambda c: read_here(c, digests_of(self._plan)))
        for _, volume in sorted(self._bundle.volumes.items()):
            try:
                await self._take(volume)
            except BaseExceptionGroup as failed:
                raise _first(failed) from None

    async def missing(self) -> list[int]:
        """Return the numbers of the volumes that are still to be given, as what they bring is not, or no more, here."""
        self._here, _ = await self._store.catalog.read(lambda c: read_here(c, digests_of(self._plan)))
        return await self._threaded(lambda: [one for one in self._bundle.missing if not self._is_done(one)])

    def _is_done(self, number: int) -> bool:
        done, end = self._state.done.get(number, 0), 0
        for entry in entries(self._bundle.sealed, len(self._bundle.signature or b""), number):
            end = entry.end
            if end > done or not self._kept(entry):
                return False
        return end + END <= done

    async def _take(self, volume: Volume) -> None:
        done = self._state.done.get(volume.number, 0)
        synced = done
        slots = asyncio.Semaphore(AT_ONCE)
        under_way: deque[tuple[Entry, asyncio.Task[None]]] = deque()
        async with asyncio.TaskGroup() as group:
            for turn in turns(self._unkept(volume, done)):
                await slots.acquire()
                task = group.create_task(self._turn(volume, turn, slots), name=f"take in {turn[0].name}")
                under_way.append((turn[-1], task))
                synced = await self._note(volume, under_way, synced)
        await self._note(volume, under_way, synced)
        await self._threaded(volume.check_end)
        if self._state.done.get(volume.number, 0) < volume.size:
            await self._threaded(lambda: self._state.note(volume.number, volume.size, durable=True))

    def _unkept(self, volume: Volume, done: int) -> Iterator[Entry]:
        """Yield the entries that have to be read."""
        for entry in volume.walk():
            if entry.end <= done and self._kept(entry):
                self._told(entry.size)
            else:
                yield entry

    def _kept(self, entry: Entry) -> bool:
        """Tell whether what was done with an entry before is still there."""
        part = entry.part
        if not isinstance(part, BlobPart):
            return True
        stored = part.blob in self._filled or self._plan.blobs[part.blob].digest in self._here
        return stored or (part.blob, part.offset) in self._bundle.staged

    async def _note(self, volume: Volume, under_way: deque[tuple[Entry, asyncio.Task[None]]], synced: int) -> int:
        """Write down the last entry before which all are done; return up to where that will survive a power loss."""
        end = 0
        while under_way and under_way[0][1].done() and not under_way[0][1].cancelled():
            if under_way[0][1].exception() is not None:
                break
            end = under_way.popleft()[0].end
        if end <= self._state.done.get(volume.number, 0):
            return synced
        if end - synced < CHECKPOINT_BYTES:
            self._state.note(volume.number, end, durable=False)
            return synced
        await self._threaded(lambda: self._state.note(volume.number, end, durable=True))
        return end

    async def _turn(self, volume: Volume, turn: Sequence[Entry], slots: asyncio.Semaphore) -> None:
        try:
            rest = await self._together(volume, turn) if is_small(turn[0]) else turn
            for entry in rest:
                await self._alone(volume, entry)
        finally:
            slots.release()

    async def _together(self, volume: Volume, turn: Sequence[Entry]) -> Sequence[Entry]:
        """Take in small blobs that lie one behind the other; return those that need a turn of their own."""
        places = [entry.part.blob for entry in turn if isinstance(entry.part, BlobPart)]
        digests = [digest_at(self._plan, place) for place in places]
        untouched = await self._store.catalog.read(lambda connection: read_untouched(connection, digests))

        def read() -> list[Verified]:
            found = []
            for place, entry in zip(places, turn, strict=True):
                self._going_on(0)
                if self._plan.blobs[place].digest in untouched:
                    found.append(read_small(volume, place, entry))
            return found

        async with self._small:
            blobs = await self._threaded(read)
            try:
                if blobs:
                    await self._store.put_all(blobs, Proof.IMPORTED, public=False)
            except OSError:
                return turn  # each tells its own reason, if it has one
        rest = []
        for place, entry in zip(places, turn, strict=True):
            if self._plan.blobs[place].digest in untouched:
                self._filled.add(place)
                self._told(entry.size)
            else:
                rest.append(entry)
        return rest

    async def _alone(self, volume: Volume, entry: Entry) -> None:
        try:
            await self._threaded(lambda: _check(volume, entry))
            if not isinstance(entry.part, BlobPart):
                self._told(entry.size)
            elif self._plan.blobs[entry.part.blob].size <= LARGE:
                await self._blob(volume, entry, entry.part)
            else:
                async with self._large:
                    await self._blob(volume, entry, entry.part)
        except RegistryError as error:
            raise BundleError(f"{volume.label}: {entry.name} cannot be taken in: {error.message}") from error

    async def _blob(self, volume: Volume, entry: Entry, part: BlobPart) -> None:
        blob = self._plan.blobs[part.blob]
        record = await self._store.catalog.blob(Digest(blob.digest))
        stored = record is not None and record.present
        if stored and blob.media_type is not None:
            stored = record is not None and record.media_type is not None
        if stored:
            if part.blob not in self._filled:
                await self._threaded(lambda: volume.check_blob(entry, self._heard))
            return
        at_hand = (part.blob, part.offset) in self._bundle.staged or self._bundle.extents(part.blob) is not None
        if not at_hand:
            await self._stage(volume, entry, part)
        if self._bundle.extents(part.blob) is None:
            return
        if blob.media_type is not None:
            await self._manifest(part.blob)
        else:
            await self._fill(part.blob)
        self._filled.add(part.blob)
        staged = [self._bundle.staged.pop((one.blob, one.offset), None) for one in slices_of(self._plan, part.blob)]
        slices = [one for one in staged if isinstance(one, StagedSlice)]
        await self._threaded(lambda: self._state.drop(slices))

    async def _stage(self, volume: Volume, entry: Entry, part: BlobPart) -> None:
        cut = slice_at(self._plan, part.blob, part.offset)
        assert cut is not None, "a part of a blob is a slice"
        staged = await self._threaded(lambda: self._state.stage(volume, entry, cut, self._heard))
        self._bundle.staged[part.blob, part.offset] = staged

    async def _fill(self, place: int) -> None:
        blob = self._plan.blobs[place]
        digest = Digest(blob.digest)
        try:
            await self._cache.ensure_blob(self._plan.names[blob.repository], digest)
        except RegistryError as error:
            await self._blame(place)
            raise Refused(
                f"{digest} of {self._plan.repositories[blob.repository]} cannot be stored: {error.message}. What was "
                "taken in stays: put that right and import again, it goes on"
            ) from None
        if digest not in self._medium.asked:  # somebody else has brought it meanwhile
            await self._blame(place)

    async def _manifest(self, place: int) -> None:
        blob = self._plan.blobs[place]

        def read() -> tuple[bytes, ParsedManifest]:
            body = read_blob(self._bundle, place)
            assert body is not None, "all parts are at hand"
            return body, parse_manifest(body, blob.media_type)

        body, parsed = await self._threaded(read)
        repository = self._plan.names[blob.repository]
        digest = Digest(blob.digest)
        await self._end_others(digest)
        try:
            await self._store.put_manifest(
                body, parsed=parsed, repository=repository, proof=Proof.IMPORTED, public=False, digest=digest
            )
        except OSError as error:
            raise Refused(
                f"the manifest {digest} of {repository} cannot be stored: {error.strerror or error}. What was taken in "
                "stays: put that right and import again, it goes on"
            ) from None
        self._told(len(body))

    async def _end_others(self, digest: Digest) -> None:
        """Remove, or carry to its end, what a process that was killed has left of an attempt at a manifest."""
        if not await self._store.catalog.intents(digest):
            return
        claim = await self._store.claim(digest)
        if claim is None:
            return
        try:
            spool = await self._store.resume(digest)
            if spool is not None:
                await self._store.abandon(spool)
        finally:
            await self._store.release(claim)

    async def _blame(self, place: int) -> None:
        """Hash the parts of a blob that are at hand. Raises Damaged for the one that is wrong."""

        def check() -> None:
            for volume in self._bundle.volumes.values():
                for entry in volume.walk():
                    if isinstance(entry.part, BlobPart) and entry.part.blob == place:
                        volume.check_blob(entry, self._going_on)

        await self._threaded(check)

    async def _threaded(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread, which is over before this returns or raises. Raises BundleError where a read fails."""
        job = self._loop.run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            self._stop.set()
            await asyncio.wait([job])
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refused(
                    "the volume of the data folder is full. What was taken in stays: make room and import again"
                ) from None
            raise BundleError(
                f"the bundle cannot be read: {error.strerror or error}; is its drive still there?"
            ) from None

    def _heard(self, count: int) -> None:
        """From a thread: so much more was read."""
        self._going_on(count)
        self._loop.call_soon_threadsafe(self._told, count)

    def _going_on(self, count: int) -> None:
        if self._stop.is_set():
            raise Interrupted("the import was stopped: begin it again, it goes on")


def _check(volume: Volume, entry: Entry) -> None:
    volume.check_frame(entry)
    if not isinstance(entry.part, BlobPart):
        volume.check_small(entry)


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the failure that is told: bytes that are wrong before whatever else came of that."""
    flat: list[BaseException] = []
    for error in failed.exceptions:
        flat.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in flat if isinstance(error, Damaged)), flat[0])
