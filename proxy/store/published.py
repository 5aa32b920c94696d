"""Waiting for the change feed to grow, whichever process makes it grow.

A commit of this process wakes those who wait. One of another process changes a number in the table that all
share (`coherence`): who waits looks at that number every LOOK_SECONDS, which costs a memory read and no system call but
the timer's, only while somebody waits, and only where there are other processes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from proxy.store.coherence import Coherence

LOOK_SECONDS = 0.1


class Published:
    """Belongs to one event loop. State: the event that the next commit sets."""

    def __init__(self, coherence: Coherence) -> None:
        self._coherence = coherence
        self._next = asyncio.Event()

    @property
    def number(self) -> int:
        """Another number whenever the feed has grown. Take it before you read the feed, then `wait` with it."""
        return self._coherence.publications

    def tell(self) -> None:
        """Wake those who wait, in all processes."""
        self._coherence.published()
        woken, self._next = self._next, asyncio.Event()
        woken.set()

    async def wait(self, number: int, seconds: float) -> bool:
        """Return True once the feed has grown since `number` was taken, False after `seconds`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.number == number:
            left = until - loop.time()
            if left <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_SECONDS) if self._coherence.shared else left):
                    await self._next.wait()
        return True
