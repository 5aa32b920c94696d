"""A fill: one download of one digest, whoever asked for it and whoever still reads.

Theory of operation. A fill goes through generations. Each writes one spool, front to back, hashing as
it goes, from one candidate after another (`plan.Roster` says whom). A generation ends

    VERIFIED  size and digest are right: all may be read, and the store commits it; the fill is done
    CORRUPT   they are not: its readers are closed short, the spool is dropped, the next one starts
    DIED      nobody can go on: its readers are closed short, the spool is kept for a later fill

Readers hold a descriptor of their own of the generation's file and follow its `Progress`. The file they
hold outlives the rename of the commit, so a finished fill needs no hand-over. The fill runs in a task of
`Flights`; no reader's going away touches it.

State of a fill: `current` (the newest generation), `proven` (repositories whose source gave this digest),
`refused` (repositories whose source said no, with the answer), `finished` (the result, or the error).
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic

from metrics.events import Emit, FillFinished, FillResumed, FillStarted, VerificationFailed
from proxy.cache import plan
from proxy.cache.progress import Progress, Signal, Verdict
from proxy.cache.writer import SpoolWriter
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, NotFound, RangeNotSatisfiable, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream
from proxy.store.catalog import Proof
from proxy.store.spool import Spool
from proxy.store.store import Store


class Generation:
    """One spool, and how far it has come. Its descriptor is its own: it stays good when the spool is closed."""

    def __init__(self, spool: Spool, size: int | None) -> None:
        self.spool = spool
        self.progress = Progress(size)
        self._fd = os.dup(spool.fd)

    @property
    def number(self) -> int:
        return self.spool.generation

    def dup(self) -> int:
        """Return a descriptor of the file that the caller owns. Raises Unavailable when the fill is over."""
        if self._fd < 0:
            raise Unavailable(f"the fill of {self.spool.digest} is over; ask again")
        return os.dup(self._fd)

    def close(self) -> None:
        """Give the descriptor back; readers keep theirs."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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


@dataclass(eq=False)
class _Attempt:
    """What one generation has used so far."""

    recovered: bool
    public: bool = True
    origins: set[plan.Candidate] = field(default_factory=set)
    stream: BlobStream | None = None
    candidate: plan.Candidate | None = None


class Fill:
    """See the module. `expected` is the size that a verified manifest gave, if any, in bytes."""

    def __init__(
        self,
        digest: Digest,
        owner: Repository,
        roster: plan.Roster,
        store: Store,
        executor: Executor,
        emit: Emit,
        *,
        expected: int | None,
        on_mismatch: Callable[[plan.Candidate | None], None],
    ) -> None:
        self.digest = digest
        self.owner = owner
        self.roster = roster
        self.current: Generation | None = None
        self.proven: set[Repository] = set()
        self.refused: dict[Repository, RegistryError] = {}
        self.readers = 0
        self.changed = Signal()
        self.finished: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._store = store
        self._executor = executor
        self._emit = emit
        self._expected = expected
        self._on_mismatch = on_mismatch
        self._received = 0
        self._source = ""

    def status(self) -> FillStatus:
        """Return how far it is."""
        size = self.current.progress.size if self.current else self._expected
        return FillStatus(self.digest, self.owner, size, self._received, self.readers, self._source)

    async def admits(self, repository: Repository) -> Admission:
        """Wait until it is known whether clients of `repository` may read along (P43).

        YES: `current` can be read. UNPROVEN: others' sources give it, the repository must be asked for itself.
        OVER: it is committed, or failed before this repository had a part in it: look again.
        Raises what the repository's own sources answered.
        """
        while True:
            if self.finished.done() and self.finished.exception() is None:
                return Admission.OVER
            if repository in self.refused:
                raise self.refused[repository]
            if self.finished.done():
                return Admission.OVER
            if self.current is not None and self.current.progress.error is None:
                return Admission.YES if repository in self.proven else Admission.UNPROVEN
            await self.changed.wait()

    async def run(self) -> None:
        """Fill until committed or beyond hope; `finished` tells. Raises only what nobody foresaw."""
        started = monotonic()
        outcome = "failed"
        try:
            while not await self._generation():
                if self.roster.hopeless:
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

    async def _generation(self) -> bool:
        """Run one generation; return whether it was committed. Raises what ended the fill."""
        spool = await self._store.resume(self.digest)
        attempt = _Attempt(recovered=spool is not None)
        generation: Generation | None = None
        writer: SpoolWriter | None = None
        try:
            if spool is None:
                stream, candidate = await self._open(0, None)
                attempt.stream, attempt.candidate = stream, candidate
                spool = await self._store.begin(self.digest, stream.size, candidate.repository)
            else:
                self.proven.add(spool.repository)
                if spool.size is None or spool.contiguous < spool.size:
                    attempt.stream, attempt.candidate = await self._open(spool.contiguous, spool.size)
                    source = attempt.candidate.source.name
                    self._emit(FillResumed(self.owner.upstream, source, spool.contiguous))
            generation = Generation(spool, spool.size if spool.size is not None else self._expected)
            writer = SpoolWriter(spool, self._executor, self._follow(generation))
            self._emit(FillStarted(self.owner.upstream, spool.contiguous))
            self._announce(generation)
            await writer.rehash_prefix()
            await self._receive(generation, writer, attempt)
            await writer.drain()
            if not writer.matches(self.digest):
                await self._mismatch(generation, writer, attempt)
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
            if attempt.stream is not None:
                await attempt.stream.aclose()

    async def _open(self, offset: int, known: int | None) -> tuple[BlobStream, plan.Candidate]:
        """Open the blob at `offset` from the best candidate; raise the error to give up with.

        `known` is the size that another source gave.
        """
        while True:
            step = self.roster.next(monotonic())
            if isinstance(step, plan.GiveUp):
                raise step.error
            if isinstance(step, plan.Wait):
                await self._sleep(step.seconds)
                continue
            candidate = step.candidate
            self._source = candidate.source.name
            try:
                span = ByteRange(offset, None) if offset else None
                stream = await candidate.source.open_blob(candidate.repository, self.digest, span)
            except RangeNotSatisfiable:
                lied = BadContent(f"{candidate.source.name} says that {self.digest} ends before byte {offset}")
                self.roster.broke(candidate, lied, 0, monotonic(), random.random())
            except Transient as error:
                self.roster.broke(candidate, error, 0, monotonic(), random.random())
            except RegistryError as error:
                self._refuse(candidate, error)
            else:
                if self._plausible(stream, candidate, known):
                    self.proven.add(candidate.repository)
                    self.changed.wake()
                    return stream, candidate
                await stream.aclose()

    def _plausible(self, stream: BlobStream, candidate: plan.Candidate, known: int | None) -> bool:
        for size, certain in ((self._expected, True), (known, False)):
            if size is None or stream.size is None or stream.size == size:
                continue
            error = BadContent(f"{candidate.source.name} says {stream.size} bytes for {self.digest}, not {size}")
            if certain:
                candidate.blamed, candidate.error = True, error
                self._emit(VerificationFailed(candidate.repository.upstream, candidate.source.name, self.digest))
            else:
                self.roster.broke(candidate, error, 0, monotonic(), random.random())
            return False
        return True

    def _refuse(self, candidate: plan.Candidate, error: RegistryError) -> None:
        self.roster.refuse(candidate, error)
        same = [other for other in self.roster.candidates if other.repository == candidate.repository]
        if not any(other.usable for other in same):
            self.refused[candidate.repository] = error
            self.changed.wake()

    async def _receive(self, generation: Generation, writer: SpoolWriter, attempt: _Attempt) -> None:
        """Feed the writer until the blob is whole, going on wherever it breaks."""
        while generation.progress.size is None or writer.received < generation.progress.size:
            if attempt.stream is None:
                attempt.stream, attempt.candidate = await self._open(writer.received, generation.progress.size)
                self._emit(FillResumed(self.owner.upstream, attempt.candidate.source.name, writer.received))
                if generation.progress.size is None:
                    generation.progress.size = attempt.stream.size
            stream, candidate = attempt.stream, attempt.candidate
            assert candidate is not None
            attempt.public = attempt.public and stream.anonymous
            error = await self._drink(stream, candidate, generation, writer, attempt)
            attempt.stream = None
            if error is None:
                return
            self.roster.broke(candidate, error[0], error[1], monotonic(), random.random())

    async def _drink(
        self,
        stream: BlobStream,
        candidate: plan.Candidate,
        generation: Generation,
        writer: SpoolWriter,
        attempt: _Attempt,
    ) -> tuple[RegistryError, int] | None:
        """Read one stream to its end; return how it broke and after how many bytes, or None at the blob's end."""
        got = 0
        size = generation.progress.size
        try:
            async for chunk in stream:
                if size is not None and writer.received + len(chunk) > size:
                    raise BadContent(f"{candidate.source.name} gives more than the {size} bytes of {self.digest}")
                attempt.origins.add(candidate)
                await writer.feed(chunk)
                got += len(chunk)
                self._received += len(chunk)
                self.roster.progressed(monotonic())
        except Transient as error:
            return error, got
        finally:
            await stream.aclose()
        if size is None or writer.received == size:
            return None
        return Unavailable(f"{candidate.source.name} stopped at byte {writer.received} of {size}"), got

    def _follow(self, generation: Generation) -> Callable[[int], None]:
        def advance(written: int) -> None:
            watermark = plan.releasable(generation.progress.size, written, verified=False)
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
        public = attempt.public and not attempt.recovered
        first, *others = self.proven
        await self._store.commit(spool, size=size, repository=first, proof=Proof.FETCHED, public=public)
        for repository in others:
            await self._store.catalog.prove(repository, self.digest, Proof.FETCHED)
        self.finished.set_result(Committed(size))
        self.changed.wake()

    async def _mismatch(self, generation: Generation, writer: SpoolWriter, attempt: _Attempt) -> None:
        culprit = self.roster.mismatch(attempt.origins, recovered=attempt.recovered)
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
        await asyncio.shield(self._store.park(spool) if spool.contiguous else self._store.abandon(spool))

    def _end(self, error: RegistryError) -> None:
        for candidate in self.roster.candidates:
            refused = candidate.error if isinstance(candidate.error, NotFound) else error
            self.refused.setdefault(candidate.repository, refused)
        if not self.finished.done():
            self.finished.set_exception(error)
            self.finished.exception()
        self.changed.wake()

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next try, or for a joiner that brings a source."""
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            return
