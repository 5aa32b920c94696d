"""404s that the nodes of a fleet tell one another. Never a 401 or 403: those are about who asked.

entrepot:1:<region>:missing:<kind>:<repository>:<reference>     the message, for as long as it may be believed
"""

from __future__ import annotations

import asyncio

from proxy.cache.near import Kind
from proxy.fleet.link import BATCH, Arguments, Keys, Link, LinkDown
from proxy.fleet.scripts import Script
from proxy.oci.names import Reference, Repository

MESSAGE_MOST = 512
WAITING_MOST = 1000

_MISSING = Script("missing", "return redis.call('GET', KEYS[1])")
_NOTE = Script("note_missing", "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")


class Answers:
    """What does not exist upstream, as a fleet knows it. `run` tells the others what is noted."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._noted: asyncio.Queue[tuple[Keys, Arguments]] = asyncio.Queue(WAITING_MOST)

    async def missing(self, kind: Kind, repository: Repository, reference: Reference) -> str | None:
        """Return the message of the 404 that a node heard lately, None where nobody did. Raises LinkDown."""
        said = await self._link.run(_MISSING, [self._key(kind, repository, reference)])
        return said.decode(errors="replace") if isinstance(said, bytes) else None

    def note_missing(
        self, kind: Kind, repository: Repository, reference: Reference, message: str, seconds: float
    ) -> None:
        """Tell the others of a 404 for so many seconds, soon; where Redis is down, or too many wait, they do not hear.

        The message is cut to MESSAGE_MOST characters.
        """
        milliseconds = round(seconds * 1000)
        if milliseconds > 0 and self._link.up and not self._noted.full():
            key = self._key(kind, repository, reference)
            self._noted.put_nowait(([key], (message[:MESSAGE_MOST], milliseconds)))

    async def run(self) -> None:
        """Tell what is noted. Runs until it is cancelled."""
        while True:
            batch = [await self._noted.get()]
            while len(batch) < BATCH and not self._noted.empty():
                batch.append(self._noted.get_nowait())
            try:
                await self._link.run_many(_NOTE, batch)
            except LinkDown:
                continue

    def _key(self, kind: Kind, repository: Repository, reference: Reference) -> str:
        return f"{self._link.prefix}missing:{kind}:{repository}:{reference}"
