"""A fill: one download of one digest, whoever asked for it and whoever still reads.

Theory of operation. A fill goes through generations. Each writes one spool, front to back, hashing as
it goes, from one candidate after another (`plan.Roster` says whom). A generation ends

    VERIFIED  size and digest are right: all may be read, and the store commits it; the fill is done
    CORRUPT   they are not: its readers are closed short, the spool is dropped, the next one starts
    DIED      nobody can go on: its readers are closed short, the spool is kept for a later fill

Readers hold a descriptor of their own of the generation's file and follow its `Progress`. The file they
hold outlives the rename of the commit, so a finished fill needs no hand-over. The fill runs in a task of
`Flights`; no reader's going away touches it.

State of a fill: `current` (the newest generation), `supply` (its sources, and which repositories have proved the
digest or been refused it), `finished` (the result, or the error), `readers` (how many there are).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic

from metrics.events import Emit, FillFinished, FillResumed, FillStarted, VerificationFailed
from proxy.cache.generation import Generation
from proxy.cache.plan import Candidate, Roster, releasable
from proxy.cache.progress import Signal, Verdict
from proxy.cache.supply import Delivery, SizeConflict, Supply
from proxy.cache.writer import SpoolWriter
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, NotFound, RegistryError, Unavailable
from proxy.oci.names import Repository
from proxy.store.catalog import Proof
from proxy.store.spool import Spool
from proxy.store.store import Store


class Admission(enum.Enum):
    """Whether a repository's clients may read a fill."""

    YES = "yes"
    UNPROVEN = "unproven"
    OVER = "over"


@dataclass(frozen=True)
class Committed:
    """A fill that is done: `size` bytes of the digest are in the store."""

    size: int


@dataclass(frozen=True, slots=True)
class FillStatus:
    """A running fill for people: sizes in bytes, size None while unknown."""

    digest: Digest
    repository: Repository
    size: int | None
    received: int
    readers: int
    source: str


class _Attempt:
    """What one generation has used so far."""

    def __init__(self, *, recovered: bool) -> None:
        self.recovered = recovered
        self.public = not recovered
        self.origins: set[Candidate] = set()
        self.delivery: Delivery | None = None

    def start_over(self) -> None:
        """Forget the recovered spool: it was of a size that nobody confirms."""
        self.recovered, self.public, self.delivery = False, True, None


class Fill:
    """See the module. `expected` is the size that a verified manifest gave, if any, in bytes."""

    def __init__(
        self,
        digest: Digest,
        owner: Repository,
        roster: Roster,
        store: Store,
        executor: Executor,
        emit: Emit,
        *,
        expected: int | None,
        on_mismatch: Callable[[Candidate | None], None],
    ) -> None:
        self.digest = digest
        self.owner = owner
        self.current: Generation | None = None
        self.readers = 0
        self.changed = Signal()
        self.supply = Supply(digest, roster, expected, self.changed)
        self.finished: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._store = store
        self._executor = executor
        self._emit = emit
        self._on_mismatch = on_mismatch
        self._received = 0

    def status(self) -> FillStatus:
        """Return how far it is."""
        size = self.current.progress.size if self.current else self.supply.expected
        return FillStatus(self.digest, self.owner, size, self._received, self.readers, self.supply.source)

    async def admits(self, repository: Repository) -> Admission:
        """Wait until it is known whether clients of `repository` may read along (P43).

        YES: `current` can be read. UNPROVEN: others' sources give it, the repository must be asked for itself.
        OVER: it is committed, or failed before this repository had a part in it: look again.
        Raises what the repository's own sources answered.
        """
        while True:
            if self.finished.done() and self.finished.exception() is None:
                return Admission.OVER
            if repository in self.supply.refused:
                raise self.supply.refused[repository].again()
            if self.finished.done():
                return Admission.OVER
            if not self.supply.roster.knows(repository):
                return Admission.UNPROVEN
            if self.current is not None and self.current.progress.error is None:
                return Admission.YES if repository in self.supply.proven else Admission.UNPROVEN
            await self.changed.wait()

    async def run(self) -> None:
        """Fill until committed or beyond hope; `finished` tells. Raises only what nobody foresaw."""
        started = monotonic()
        outcome = "failed"
        try:
            spool = await self._taken_up()
            while not await self._generation(spool):
                spool = None
                if self.supply.roster.hopeless:
                    raise BadContent(f"every source of {self.digest} gives bytes that do not match it")
            outcome = "committed"
        except RegistryError as error:
            outcome = "corrupt" if isinstance(error, BadContent) else "failed"
            self._end(error)
        except OSError as error:
            self._end(Unavailable(f"the store cannot take {self.digest}: {error.strerror or error}"))
        except asyncio.CancelledError:
            outcome = "abandoned"
            self._end(Unavailable("the mirror is shutting down"))
            raise
        except BaseException:
            self._end(Unavailable(f"the fill of {self.digest} failed; the log has the reason"))
            raise
        finally:
            if self.current is not None:
                self.current.close()
            seconds = monotonic() - started
            self._emit(FillFinished(self.owner.upstream, outcome, self._received, seconds))

    async def _taken_up(self) -> Spool | None:
        """Return what an earlier fill left, and tell that this one has started."""
        spool: Spool | None = None
        try:
            spool = await self._store.resume(self.digest)
        finally:
            self._emit(FillStarted(self.owner.upstream, spool.contiguous if spool is not None else 0))
        return spool

    async def _generation(self, spool: Spool | None) -> bool:
        """Run one generation, on `spool` if there is one; return whether it was committed. Raises what ended it."""
        attempt = _Attempt(recovered=spool is not None)
        generation: Generation | None = None
        writer: SpoolWriter | None = None
        try:
            spool = await self._begin(spool, attempt)
            generation = Generation(spool, spool.size)
            writer = SpoolWriter(spool, self._executor, self._follow(generation))
            self._announce(generation)
            await writer.rehash_prefix()
            if not await self._receive(generation, writer, attempt):
                await self._mismatch(generation, writer, None)
                return False
            await writer.drain()
            if not writer.matches(self.digest):
                culprit = self.supply.roster.mismatch(attempt.origins, recovered=attempt.recovered)
                await self._mismatch(generation, writer, culprit)
                return False
            generation.progress.verified(writer.written)
            await self._commit(spool, writer.written, attempt)
            return True
        except BaseException as error:
            if writer is not None:
                await writer.aclose()
            if spool is not None:
                await self._died(spool, generation, error)
            raise
        finally:
            if attempt.delivery is not None:
                await attempt.delivery.stream.aclose()

    async def _begin(self, spool: Spool | None, attempt: _Attempt) -> Spool:
        """Open a source first, so that whoever waits hears an error and not a short body; then have a spool."""
        if spool is None:
            attempt.delivery = await self.supply.open(0, None)
            stream, candidate = attempt.delivery.stream, attempt.delivery.candidate
            attempt.public = stream.anonymous
            return await self._store.begin(self.digest, stream.size, candidate.repository)
        if spool.size is None or spool.contiguous < spool.size:
            attempt.delivery = await self._resume(spool.contiguous, None)
            told = attempt.delivery.stream.size
            if spool.size is not None and told is not None and told != spool.size:
                await attempt.delivery.stream.aclose()
                await self._store.abandon(spool)
                attempt.start_over()
                return await self._begin(None, attempt)
        self.supply.proven.add(spool.repository)
        return spool

    async def _resume(self, offset: int, size: int | None) -> Delivery:
        delivery = await self.supply.open(offset, size)
        self._emit(FillResumed(self.owner.upstream, delivery.candidate.source.name, offset))
        return delivery

    async def _receive(self, generation: Generation, writer: SpoolWriter, attempt: _Attempt) -> bool:
        """Feed the writer until the blob is whole, going on wherever it breaks; False when sources contradict."""

        async def feed(chunk: bytes) -> None:
            self._received += len(chunk)
            await writer.feed(chunk)

        progress = generation.progress
        while progress.size is None or writer.received < progress.size:
            try:
                delivery = attempt.delivery or await self._resume(writer.received, progress.size)
            except SizeConflict:
                self.supply.roster.mismatches += 1
                return False
            attempt.delivery = None
            if progress.size is None:
                progress.size = delivery.stream.size
            attempt.public = attempt.public and delivery.stream.anonymous
            await self.supply.read(delivery, progress.size, writer.received, feed)
            if delivery.got:
                attempt.origins.add(delivery.candidate)
            if delivery.broken is None:
                break
        return True

    def _follow(self, generation: Generation) -> Callable[[int], None]:
        def advance(written: int) -> None:
            watermark = releasable(generation.progress.size, written, verified=False)
            generation.progress.advance(watermark)
            generation.spool.publish(generation.progress.releasable, "running")

        return advance

    def _announce(self, generation: Generation) -> None:
        if self.current is not None:
            self.current.close()
        self.current = generation
        if generation.spool.contiguous:
            self._follow(generation)(generation.spool.contiguous)
        self.changed.wake()

    async def _commit(self, spool: Spool, size: int, attempt: _Attempt) -> None:
        first, *others = self.supply.proven
        await self._store.commit(spool, size=size, repository=first, proof=Proof.FETCHED, public=attempt.public)
        for repository in others:
            await self._store.catalog.prove(repository, self.digest, Proof.FETCHED)
        self.finished.set_result(Committed(size))
        self.changed.wake()

    async def _mismatch(self, generation: Generation, writer: SpoolWriter, culprit: Candidate | None) -> None:
        name = culprit.source.name if culprit else ""
        self._emit(VerificationFailed(self.owner.upstream, name, self.digest))
        self._on_mismatch(culprit)
        await writer.aclose()
        error = BadContent(f"the bytes received for {self.digest} do not match it; they are fetched again")
        generation.progress.broken(Verdict.CORRUPT, error)
        await self._store.abandon(generation.spool)

    async def _died(self, spool: Spool, generation: Generation | None, error: BaseException) -> None:
        if generation is not None and generation.progress.verdict is Verdict.RUNNING:
            told = error if isinstance(error, RegistryError) else Unavailable(f"the fill of {self.digest} ended")
            generation.progress.broken(Verdict.DIED, told)
        keep = spool.contiguous > 0 and not isinstance(error, BadContent | OSError)
        await asyncio.shield(self._store.park(spool) if keep else self._store.abandon(spool))

    def _end(self, error: RegistryError) -> None:
        for candidate in self.supply.roster.candidates:
            refused = candidate.error if isinstance(candidate.error, NotFound) else error
            self.supply.refused.setdefault(candidate.repository, refused)
        if not self.finished.done():
            self.finished.set_exception(error)
            self.finished.exception()
        self.changed.wake()
