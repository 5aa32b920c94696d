"""Where the bytes of a fill come from: first who is near (`near.Flight` says whom), then the roster's candidates.

State: `roster`, `proven` (repositories whose source gave this digest, or that proved it otherwise), `refused`
(repositories whose sources all said no, with the answer), `source` (the name of the last one asked), `lender`
(whose running download is read), `public` (all that came so far was given anonymously), `outcome` (for the log:
miss | neighbour | bucket | region, by who was asked last), `unheard` (whom of those who may have it nobody heard),
`waits` (when a source had been asked and not answered).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Self

from proxy.cache.near import Flight, NearSource, NearStream
from proxy.cache.plan import PROGRESS, UNSIZED_LIMIT, Ask, Candidate, GiveUp, Roster, Wait
from proxy.cache.progress import Signal
from proxy.cache.waiting import Waits
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, RangeNotSatisfiable, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream
from proxy.store.claims import Lender
from proxy.upstream.failures import BrokeOff

HEDGE_SECONDS = 2.0
SLOWEST = 1024
WINDOW = 20.0


class Ended:
    """The stream of a blob that has no byte after those that are already here."""

    anonymous = False

    def __init__(self, digest: Digest, size: int) -> None:
        self.digest = digest
        self.size = self.start = self.end = size

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Nothing is open."""


class SizeConflict(BadContent):
    """Two sources of one digest give different sizes: what one of them gave so far cannot be believed."""


class Withdrawn(BadContent):
    """Somebody near, whose bytes are among those so far, says now that they were wrong."""


class Delivery:
    """An open stream and who gives it: `near`, or a source. `broken` is set when it ended before the blob did."""

    def __init__(self, stream: BlobStream, candidate: Candidate, near: NearSource | None = None) -> None:
        self.stream = stream
        self.candidate = candidate
        self.near = near
        self.got = 0
        self.broken: RegistryError | None = None


class _Pace:
    """Notices a source that drips (P45): less than `SLOWEST` bytes a second over `WINDOW` seconds."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._got = 0

    def too_slow(self, got: int, now: float) -> bool:
        self._got += got
        if now - self._since < WINDOW:
            return False
        slow = self._got < SLOWEST * (now - self._since)
        self._since, self._got = now, 0
        return slow


Witness = Callable[[Repository, Digest, bool], Awaitable[object]]
"""Returns when a repository is proven to contain a digest that somebody near has (is it public?), raises otherwise."""


class Supply:
    """The sources of one digest. `expected` is the size in bytes that manifests give, dropped when it is belied.

    `owner` is the repository that near sources are asked for; they prove nothing, `witness` does (P43).
    """

    def __init__(
        self,
        digest: Digest,
        owner: Repository,
        roster: Roster,
        expected: int | None,
        changed: Signal,
        witness: Witness,
    ) -> None:
        self.digest = digest
        self.roster = roster
        self.expected = expected
        self.proven: set[Repository] = set()
        self.refused: dict[Repository, RegistryError] = {}
        self.source = ""
        self.lender = Lender.NOBODY
        self.outcome = "miss"
        self.public = False
        self.unheard = ""
        self.waits = Waits()
        self.flight: Flight | None = None
        self.tell_lender: Callable[[Lender], object] = bool
        self._owner = owner
        self._near: dict[str, Candidate] = {}
        self._gave: set[Candidate] = set()
        self._changed = changed
        self._witness = witness

    def borrows(self, lender: Lender) -> None:
        """Note whose download is read now: some may not wait for it here."""
        if lender is not self.lender:
            self.lender = lender
            self.tell_lender(lender)
            self._changed.wake()

    async def open(self, offset: int, known: int | None) -> Delivery:
        """Open the blob at `offset` from whoever is near, else from the best candidate.

        `known` is the size that another source gave. Raises the error to give up with; SizeConflict, Withdrawn.
        """
        with self.waits.asking():
            return await self._open(offset, known)

    async def _open(self, offset: int, known: int | None) -> Delivery:
        if offset == 0:
            self._gave.clear()
        while True:
            near = await self._ask_near(offset, known)
            if near is not None:
                return near
            step = self.roster.next(monotonic())
            if isinstance(step, GiveUp):
                if self.flight is not None and self.flight.last_resort():
                    continue
                self._note_unheard()
                raise step.error
            if isinstance(step, Wait):
                await self._wait(step.seconds)
                continue
            delivery = await self._ask(step, offset, known)
            if delivery is not None:
                return delivery

    async def read(
        self, delivery: Delivery, size: int | None, start: int, feed: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Feed a delivery that begins at `start` to its end, which is the blob's unless `broken` is set then."""
        name = delivery.candidate.source.name
        most = UNSIZED_LIMIT if size is None else size
        pace = _Pace(monotonic())
        mark = PROGRESS if self.roster.begun else 0
        try:
            async for chunk in delivery.stream:
                if delivery.near is None and self.flight is not None and self.flight.lost:
                    raise Unavailable(f"another node leads the download of {self.digest} now")
                if start + delivery.got + len(chunk) > most:
                    raise BadContent(f"{name} gives more than the {most} bytes of {self.digest}")
                await feed(chunk)
                delivery.got += len(chunk)
                now = monotonic()
                if delivery.got >= mark:
                    self.roster.progressed(now)
                    mark = delivery.got + PROGRESS
                if pace.too_slow(len(chunk), now):
                    raise BrokeOff(
                        f"{name} gives less than {SLOWEST} bytes a second of {self.digest}", reason="timeout"
                    )
        except Transient as error:
            delivery.broken = error
        finally:
            await delivery.stream.aclose()
        if delivery.broken is None and size is not None and start + delivery.got < size:
            delivery.broken = BrokeOff(f"{name} stopped at byte {start + delivery.got} of {size}")
        if delivery.broken is None:
            return
        if delivery.near is not None:
            if delivery.got:
                self._gave.add(delivery.candidate)
            if self.flight is not None:
                self.flight.failed(delivery.near, delivery.broken, delivery.got)
        elif self.flight is None or not self.flight.lost:  # else the source was left, and has not failed
            self._broke(delivery.candidate, delivery.broken, delivery.got)

    async def _ask_near(self, offset: int, known: int | None) -> Delivery | None:
        """Open the blob from the first near source that gives it, None when nobody does.

        What is near has been verified there, so its size is believed, until another source contradicts.
        """
        while self.flight is not None:
            source = await self.flight.next()
            of_region = source is not None and source.kind == "region"
            self.borrows(Lender.NODE if self.flight.following else Lender.REGION if of_region else Lender.NOBODY)
            if source is None:
                return None
            candidate = self._near.setdefault(source.name, Candidate(self._owner, source))
            if candidate.blamed:
                self.flight.failed(source, BadContent(f"{source.name} gave wrong bytes of {self.digest}"), 0)
                continue
            self.source, self.outcome = source.name, source.kind
            try:
                return await self._opened(source, candidate, offset, known)
            except RegistryError as error:
                if isinstance(error, RangeNotSatisfiable) and error.size == offset and self.proven:
                    return Delivery(Ended(self.digest, offset), candidate, source)
                self.flight.failed(source, error, 0)
                if isinstance(error, BadContent) and candidate in self._gave:
                    raise Withdrawn(f"what {source.name} gave of {self.digest} so far is wrong") from error
        return None

    def doubt_near(self) -> None:
        """Ask nobody near again: a source contradicts the size, so what they have may be wrong."""
        for candidate in self._near.values():
            candidate.blamed = True

    async def _opened(self, source: NearSource, candidate: Candidate, offset: int, known: int | None) -> Delivery:
        stream = await source.open_blob(candidate.repository, self.digest, ByteRange(offset, None) if offset else None)
        usable = False
        try:
            if None not in (stream.size, known) and stream.size != known:
                raise BadContent(f"{source.name} says {stream.size} bytes for {self.digest}, another said {known}")
            await self._prove(candidate.repository, stream)
            usable = True
        finally:
            if not usable:
                await stream.aclose()
        return Delivery(stream, candidate, source)

    async def _prove(self, repository: Repository, stream: NearStream) -> None:
        if repository not in self.proven and not stream.proven:
            await self._witness(repository, self.digest, stream.anonymous)
        self.proven.add(repository)
        self._changed.wake()

    async def _ask(self, step: Ask, offset: int, known: int | None) -> Delivery | None:
        candidate = step.candidate
        self.source, self.outcome = candidate.source.name, "miss"
        stream: BlobStream
        try:
            opened = await self._open_or_move_on(candidate, ByteRange(offset, None) if offset else None)
            if opened is None:
                candidate.slow = True
                return None
            stream = opened
        except RangeNotSatisfiable as error:
            if error.size == offset:
                self.proven.add(candidate.repository)
                return Delivery(Ended(self.digest, offset), candidate)
            self._broke(candidate, BadContent(f"{self.source} says that {self.digest} ends before byte {offset}"), 0)
        except Transient as error:
            self._broke(candidate, error, 0)
        except RegistryError as error:
            self._refuse(candidate, error)
        else:
            plausible = False
            try:
                plausible = self._plausible(stream, candidate, known)
            finally:
                if not plausible:
                    await stream.aclose()
            if plausible:
                self.proven.add(candidate.repository)
                self._changed.wake()
                return Delivery(stream, candidate)
        return None

    async def _open_or_move_on(self, candidate: Candidate, span: ByteRange | None) -> BlobStream | None:
        """Open the blob; None when the source takes its time and there is another to ask first."""
        asking = asyncio.create_task(candidate.source.open_blob(candidate.repository, self.digest, span))
        taken = False
        try:
            await self._answered(asking, candidate)
            if not asking.done():
                return None
            taken = True
            return asking.result()
        finally:
            if not taken:
                await _withdraw(asking)

    async def _answered(self, asking: asyncio.Task[BlobStream], candidate: Candidate) -> None:
        """Wait for the answer; with an alternative at hand, or as one comes, not longer than `HEDGE_SECONDS`."""
        while not asking.done():
            if self.roster.has_alternative(candidate):
                await asyncio.wait([asking], timeout=HEDGE_SECONDS)
                return
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([asking, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    def _plausible(self, stream: BlobStream, candidate: Candidate, known: int | None) -> bool:
        """Compare sizes with those that manifests give; on a difference another source is asked, if there is one.

        A manifest is only as good as who wrote it: a size that no other source contradicts is believed, and the digest
        has the last word. Raises SizeConflict where another source gave the bytes so far.
        """
        told = stream.size
        if told is None or told == (self.expected if known is None else known):
            return True
        if known is not None:
            raise SizeConflict(f"{candidate.source.name} says {told} bytes for {self.digest}, another said {known}")
        if self.expected is None or not self.roster.has_alternative(candidate):
            self.expected = None
            return True
        error = BadContent(f"{candidate.source.name} says {told} bytes for {self.digest}, not {self.expected}")
        self._broke(candidate, error, 0)
        return False

    def _broke(self, candidate: Candidate, error: RegistryError, got: int) -> None:
        self.roster.broke(candidate, error, got, monotonic(), random.random())

    def _refuse(self, candidate: Candidate, error: RegistryError) -> None:
        self.roster.refuse(candidate, error)
        if candidate.repository == self._owner and self.flight is not None and self.flight.more:
            return  # those who are asked last may give it yet
        self._note_unheard()
        same = [other for other in self.roster.candidates if other.repository == candidate.repository]
        if not any(other.usable for other in same):
            # As the main source says: an alternate's 404 is told to others, a refusal or a failure is not.
            self.refused[candidate.repository] = same[0].error or error
            self._changed.wake()

    def _note_unheard(self) -> None:
        self.unheard = self.flight.unheard if self.flight is not None else ""

    async def _wait(self, seconds: float) -> None:
        """Wait for the next try, or for a joiner that brings a source."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return


async def _withdraw(asking: asyncio.Task[BlobStream]) -> None:
    """End a question whose answer is no longer wanted."""
    asking.cancel()
    await asyncio.wait([asking])
    if not asking.cancelled() and asking.exception() is None:
        await asking.result().aclose()
