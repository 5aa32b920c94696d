"""Which process of a node fills a digest: flock(2) on `ingest/<digest>.lock`, a file that is never renamed.

The holder writes into it which generation it fills and when it was last alive, which wakes those who watch. It goes
with its process: the kernel drops the lock and tells of the close. Every attempt that ends removes the name, so the
next one has another inode; whoever gets a lock therefore looks whether the name still leads to it. A process that
stands still keeps its lock: others then remove the name (`put_out`), and it fills on for nobody but its own readers.
What was filled before the lock was taken is for the caller to look up after.
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from proxy.oci.digest import Digest
from proxy.store.disk import FILE_MODE
from proxy.store.inotify import Change, Inotify
from proxy.store.layout import Layout

BEAT_SECONDS = 1.0
STALE_SECONDS = 5.0
WITHOUT_INOTIFY_SECONDS = 0.2
GUARD_SECONDS = 1.0
_GUARD_LOOK_SECONDS = 0.01
_STATE = struct.Struct("<QQBd")
_log = logging.getLogger(__name__)


class Lender(enum.IntEnum):
    """Whose running download the bytes come from, for which some may not wait here: nobody's, another region's (other
    regions may not), another node's (other nodes may not either)."""

    NOBODY = 0
    REGION = 1
    NODE = 2


@dataclass(frozen=True, slots=True)
class Leading:
    """What a holder says: the generation it fills (0 before there is one), and monotonic seconds of its last beat.

    copied: the generation that its first bytes were copied from, 0 for none. lender: whose download is read.
    """

    generation: int
    copied: int
    lender: Lender
    beat: float


class Claim:
    """The right to fill a digest, until `release`."""

    def __init__(self, claims: Claims, digest: Digest, lock: int, fd: int) -> None:
        self.digest = digest
        self._claims = claims
        self._lock = lock
        self._fd = fd
        self._generation = self._copied = 0
        self._lender = Lender.NOBODY
        self._timer: asyncio.TimerHandle | None = None
        self._tell()

    def beat(self) -> None:
        """Tell from now on, every second, that this process is alive. Call it in the event loop."""
        self.tick()
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self.beat)

    def fills(self, generation: int, copied: int) -> None:
        """Tell which generation is filled now, and which one it was copied from."""
        self._generation, self._copied = generation, copied
        self.tick()

    def borrows(self, lender: Lender) -> None:
        """Tell whose download is read now."""
        if lender is not self._lender:
            self._lender = lender
            self.tick()

    def tick(self) -> None:
        """Wake those who watch: there is more."""
        if self._fd >= 0:
            with suppress(OSError):  # the disk fails: they find out by themselves
                self._tell()

    def _tell(self) -> None:
        os.pwrite(self._fd, _STATE.pack(self._generation, self._copied, self._lender, monotonic()), 0)

    def stop(self) -> None:
        """Beat no more. Call it in the event loop, before `release`."""
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> None:
        """Let others have it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._claims.release(self.digest, self._lock, fd)


class Watched:
    """A lock that another holds, or held: what it says, and `wait`, which returns what happened to it."""

    def __init__(self, path: Path, fd: int, wait: Callable[[float], Awaitable[Change]]) -> None:
        self.path = path
        self.fd = fd
        self.wait = wait
        self._since = monotonic()

    def says(self) -> Leading:
        """Return what the holder last wrote; one that never did was alive when the watch began."""
        data = os.pread(self.fd, _STATE.size, 0)
        if len(data) != _STATE.size:
            return Leading(0, 0, Lender.NOBODY, self._since)
        generation, copied, lender, beat = _STATE.unpack(data)
        return Leading(generation, copied, Lender(lender), beat)


class Claims:
    """The claims of one process. State: its inotify. `take`, `release` and `put_out` belong in threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._inotify = Inotify()

    def take(self, digest: Digest) -> Claim | None:
        """Return the right to fill `digest`, None while another has it. Raises OSError."""
        path = self._layout.claim(digest)
        while True:
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _leads_to(path, lock):
                    # Only who fills has it open to write, so a close of that kind is news.
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                    try:
                        return Claim(self, digest, lock, fd)
                    except BaseException:
                        os.close(fd)
                        raise
            except BlockingIOError:
                os.close(lock)
                return None
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def release(self, digest: Digest, lock: int, fd: int) -> None:
        """Remove the name, if it is still this claim's, and close both."""
        path = self._layout.claim(digest)
        with self._guard() as held:
            if held and _leads_to(path, lock):
                path.unlink()
        os.close(fd)
        os.close(lock)

    def put_out(self, watched: Watched) -> bool:
        """Take the name from a holder that has stood still; True when it did, and `take` may be tried."""
        with self._guard() as held:
            fresh = monotonic() - watched.says().beat < STALE_SECONDS
            if not held or fresh or not _leads_to(watched.path, watched.fd):
                return False
            watched.path.unlink()
            return True

    def is_current(self, watched: Watched) -> bool:
        """Tell whether the name still leads to this lock."""
        return _leads_to(watched.path, watched.fd)

    @contextmanager
    def watching(self, digest: Digest) -> Iterator[Watched | None]:
        """Give the lock that is there now, None when there is none."""
        path = self._layout.claim(digest)
        with ExitStack() as stack:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                yield None
                return
            stack.callback(os.close, fd)
            try:
                watch = stack.enter_context(self._inotify.watching(Path(f"/proc/self/fd/{fd}")))
            except OSError as error:
                _log.warning("fills of other workers are looked at 5 times a second: %s", error)
                yield Watched(path, fd, _wait_a_little)
            else:
                yield Watched(path, fd, watch.wait)

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()

    @contextmanager
    def _guard(self) -> Iterator[bool]:
        """Keep names as they are for a moment, for all processes; False where one stands still that does so.

        A name that is left does no harm: whoever takes the claim next takes that one.
        """
        fd = os.open(self._layout.claims_guard, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            yield _locked_within(fd, GUARD_SECONDS)
        finally:
            os.close(fd)


async def _wait_a_little(seconds: float) -> Change:
    await asyncio.sleep(min(seconds, WITHOUT_INOTIFY_SECONDS))
    return Change.MODIFY | Change.CLOSE_WRITE


def _locked_within(fd: int, seconds: float) -> bool:
    deadline = monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic() > deadline:
                return False
            sleep(_GUARD_LOOK_SECONDS)


def _leads_to(path: Path, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
