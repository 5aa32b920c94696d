"""Where the bytes of a fill come from: candidates opened and read in the order that `plan.Roster` decides.

State: `roster`, `proven` (repositories whose source gave this digest, or that proved it otherwise), `refused`
(repositories whose sources all said no, with the answer), `source` (the name of the last one asked).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic

from metrics.events import Emit, VerificationFailed
from proxy.cache.plan import Ask, Candidate, GiveUp, Roster, Wait
from proxy.cache.progress import Signal
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, RangeNotSatisfiable, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream


class Delivery:
    """An open stream and who gives it. `broken` is set when it ended before the blob did."""

    def __init__(self, stream: BlobStream, candidate: Candidate) -> None:
        self.stream = stream
        self.candidate = candidate
        self.got = 0
        self.broken: RegistryError | None = None


class Supply:
    """The sources of one digest. `expected` is the size that a verified manifest gave, in bytes."""

    def __init__(self, digest: Digest, roster: Roster, expected: int | None, changed: Signal, emit: Emit) -> None:
        self.digest = digest
        self.roster = roster
        self.expected = expected
        self.proven: set[Repository] = set()
        self.refused: dict[Repository, RegistryError] = {}
        self.source = ""
        self._changed = changed
        self._emit = emit

    async def open(self, offset: int, known: int | None) -> Delivery:
        """Open the blob at `offset` from the best candidate. `known` is the size that another source gave.

        Raises the error to give up with.
        """
        while True:
            step = self.roster.next(monotonic())
            if isinstance(step, GiveUp):
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
        try:
            async for chunk in delivery.stream:
                if size is not None and start + delivery.got + len(chunk) > size:
                    raise BadContent(f"{name} gives more than the {size} bytes of {self.digest}")
                await feed(chunk)
                delivery.got += len(chunk)
                self.roster.progressed(monotonic())
        except Transient as error:
            delivery.broken = error
        finally:
            await delivery.stream.aclose()
        if delivery.broken is None and size is not None and start + delivery.got < size:
            delivery.broken = Unavailable(f"{name} stopped at byte {start + delivery.got} of {size}")
        if delivery.broken is not None:
            self._broke(delivery.candidate, delivery.broken, delivery.got)

    async def _ask(self, step: Ask, offset: int, known: int | None) -> Delivery | None:
        candidate = step.candidate
        self.source = candidate.source.name
        try:
            span = ByteRange(offset, None) if offset else None
            stream = await candidate.source.open_blob(candidate.repository, self.digest, span)
        except RangeNotSatisfiable:
            self._broke(candidate, BadContent(f"{self.source} says that {self.digest} ends before byte {offset}"), 0)
        except Transient as error:
            self._broke(candidate, error, 0)
        except RegistryError as error:
            self._refuse(candidate, error)
        else:
            if self._plausible(stream, candidate, known):
                self.proven.add(candidate.repository)
                self._changed.wake()
                return Delivery(stream, candidate)
            await stream.aclose()
        return None

    def _plausible(self, stream: BlobStream, candidate: Candidate, known: int | None) -> bool:
        """Compare sizes. A verified manifest's is certain; between two sources either may be wrong."""
        told = stream.size
        for size, certain in ((self.expected, True), (known, False)):
            if size is None or told is None or told == size:
                continue
            error = BadContent(f"{candidate.source.name} says {told} bytes for {self.digest}, not {size}")
            if certain:
                candidate.blamed, candidate.error = True, error
                self._emit(VerificationFailed(candidate.repository.upstream, candidate.source.name, self.digest))
            else:
                self._broke(candidate, error, 0)
            return False
        return True

    def _broke(self, candidate: Candidate, error: RegistryError, got: int) -> None:
        self.roster.broke(candidate, error, got, monotonic(), random.random())

    def _refuse(self, candidate: Candidate, error: RegistryError) -> None:
        self.roster.refuse(candidate, error)
        same = [other for other in self.roster.candidates if other.repository == candidate.repository]
        if not any(other.usable for other in same):
            self.refused[candidate.repository] = error
            self._changed.wake()

    async def _wait(self, seconds: float) -> None:
        """Wait for the next try, or for a joiner that brings a source."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
