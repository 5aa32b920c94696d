"""One at a time in this node: whoever holds the claim of a key, in whichever process, has the turn.

Fills have their claims for as long as they run, and show what they do (`lead`, `following`). Here are the short ones:
a manifest that is fetched, a tag that is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout
from proxy.oci.names import Repository, Tag
from proxy.store.claims import STALE_SECONDS, Claim
from proxy.store.inotify import Change
from proxy.store.store import Store

NODE_SECONDS = 2.0
_log = logging.getLogger(__name__)


def tag_key(repository: Repository, tag: Tag) -> Digest:
    """Return the key of a tag's turn: no content has this digest."""
    return Digest.of(f"tag {repository.upstream}/{repository.path}:{tag}".encode())


@asynccontextmanager
async def for_a_node(what: str) -> AsyncIterator[None]:
    """Let another node wait for a moment only. Raises GatewayTimeout after it."""
    try:
        async with asyncio.timeout(NODE_SECONDS):
            yield
    except TimeoutError as error:
        raise GatewayTimeout(f"this node is not done with {what} after {NODE_SECONDS:.0f} s") from error


class Turns:
    """Gives turns by the claims of `store`. One who stands still loses his."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def turn(self, key: Digest) -> AsyncIterator[bool]:
        """Hold the turn of `key`. Gives True when another had it until now: what he was for may be there.

        Where the disk refuses, all go on at once.
        """
        try:
            claim, waited = await self._claimed(key)
        except OSError as error:
            _log.warning("no turns can be taken: %s", error)
            yield False
            return
        try:
            yield waited
        finally:
            await self._store.release(claim)

    async def _claimed(self, key: Digest) -> tuple[Claim, bool]:
        waited = False
        while True:
            with self._store.watching(key) as watched:
                claim = await self._store.claim(key)
                if claim is not None:
                    return claim, waited
                waited = True
                while watched is not None and self._store.is_current(watched):
                    change = await watched.wait(STALE_SECONDS)
                    if monotonic() - watched.says().beat >= STALE_SECONDS:
                        await self._store.put_out(watched)
                        break
                    if change & ~Change.MODIFY:
                        break
