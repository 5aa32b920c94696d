"""What keeps the caches of several processes right: a mapped table that says which keys have changed.

Every key falls into one of `SLOTS` slots. Whoever commits a change writes a number never used before into the slots of
the keys it concerns; whoever keeps a value remembers what the slot held before it was read, and believes the
value for as long as the slot holds the same. Numbers are never compared by size, so no write needs a lock: of two
at once either may stay, and both are news to everybody else. One process alone uses memory of its own.

Behind them lie as many slots for what is suspected, in every process: until when, in monotonic milliseconds. Two
keys in one slot are suspected together.
"""

from __future__ import annotations

import mmap
import os
import secrets
from itertools import count
from time import monotonic
from typing import Self
from zlib import crc32

SLOTS = 1 << 15
DOUBT_SECONDS = 600.0
_MOVES = SLOTS
_PUBLICATIONS = SLOTS + 1
_SUSPECTS = SLOTS + 8
_BYTES = (_SUSPECTS + SLOTS) * 8


class Coherence:
    """See the module. `moves` is another number whenever an answer that was given may not be given again.

    `shared`: other processes may write it too. `publications` is another number whenever the change feed has grown.
    """

    def __init__(self, shared: int | None = None) -> None:
        self.shared = shared is not None
        self._map = mmap.mmap(-1 if shared is None else shared, _BYTES)
        self._slots = memoryview(self._map).cast("Q")
        self._numbers = count(secrets.randbits(32) << 32 | 1)

    @classmethod
    def create(cls, fd: int) -> Self:
        """Make a table in the empty file `fd`."""
        os.posix_fallocate(fd, 0, _BYTES)
        return cls(fd)

    @property
    def moves(self) -> int:
        return self._slots[_MOVES]

    def moved(self) -> None:
        """Let nobody give an answer again that was given before."""
        self._slots[_MOVES] = next(self._numbers)

    @property
    def publications(self) -> int:
        return self._slots[_PUBLICATIONS]

    def published(self) -> None:
        """Tell everybody that there is more in the change feed."""
        self._slots[_PUBLICATIONS] = next(self._numbers)

    def stamp(self, key: str) -> int:
        """Return what `key`'s slot holds."""
        return self._slots[_slot(key)]

    def changed(self, key: str) -> None:
        """Tell everybody that what they keep under `key` is old."""
        self._slots[_slot(key)] = next(self._numbers)

    def all_changed(self) -> None:
        """Tell everybody that whatever they keep may be old: somebody may have died before telling what changed."""
        self._slots[:SLOTS] = memoryview(os.urandom(SLOTS * 8)).cast("Q")
        self.moved()
        self.published()

    def suspect(self, key: str, seconds: float) -> None:
        """Suspect `key` from now on, for so many seconds."""
        now = monotonic()
        self._slots[_SUSPECTS + _slot(key)] = int((now + seconds) * 1000)
        self._slots[_SUSPECTS + _slot(f"{key} elsewhere")] = int((now + DOUBT_SECONDS) * 1000)

    def suspected(self, key: str) -> bool:
        """Tell whether `key` is suspected, by whichever process."""
        return self._slots[_SUSPECTS + _slot(key)] > monotonic() * 1000

    def doubted(self, key: str) -> bool:
        """Tell whether `key` was suspected lately: others may have it wrong for longer than anybody is served it."""
        return self.suspected(f"{key} elsewhere")

    def close(self) -> None:
        """Give the memory back."""
        self._slots.release()
        self._map.close()


def _slot(key: str) -> int:
    return crc32(key.encode()) % SLOTS
