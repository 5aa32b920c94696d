"""Who has a digest: the hints in Redis, and where those say nothing, a question to all at once.

Hints end after some hours, and with Redis; a question costs a moment, and finds what no hint tells of any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

from proxy.fleet.leases import Leases
from proxy.fleet.link import LinkDown
from proxy.fleet.neighbour import HAS_SECONDS, Neighbour
from proxy.fleet.neighbours import Neighbours
from proxy.oci.digest import Digest
from proxy.oci.names import Repository

ASKED_MOST = 16
ASK_SECONDS = 0.15
SILENT_SECONDS = 5.0
HINTED_MOST = 3


class Holders:
    """Finds who has what. `others` are the URLs of the nodes there are now, `look` finds out anew."""

    def __init__(
        self,
        leases: Leases,
        neighbours: Neighbours,
        others: Callable[[], Sequence[str]],
        look: Callable[[], Awaitable[object]],
    ) -> None:
        self._look = look
        self._leases = leases
        self._neighbours = neighbours
        self._others = others
        self._silent: dict[str, float] = {}

    async def ask(self, repository: Repository, digest: Digest) -> list[str]:
        """Return which of at most `ASKED_MOST` nodes say within `ASK_SECONDS` that they have stored the digest.

        Who did not answer is not asked for the next `SILENT_SECONDS`.
        """
        now = monotonic()
        others = [url for url in self._others() if self._silent.get(url, 0.0) < now]
        asked = self._nodes(random.sample(others, min(len(others), ASKED_MOST)))
        answers = await asyncio.gather(*(node.has(repository, digest, ASK_SECONDS) for node in asked))
        self._silent = {url: until for url, until in self._silent.items() if until > now}
        self._silent |= {
            node.url: now + SILENT_SECONDS for node, has in zip(asked, answers, strict=True) if has is None
        }
        return [node.url for node, has in zip(asked, answers, strict=True) if has]

    async def present(self, urls: Sequence[str]) -> Sequence[str]:
        """Return those of `urls` whose nodes are there now, as far as that is known: others cost a second each."""
        if any(url not in self._others() for url in urls):
            await self._look()  # it may have come a moment ago
        others = self._others()
        return [url for url in urls if url in others] if others else urls

    async def who_have(self, repository: Repository, digest: Digest) -> list[Neighbour]:
        """Return nodes that say that they have stored the digest."""
        hinted = self._nodes((await self._hinted(digest))[:HINTED_MOST])
        answers = await asyncio.gather(*(node.has(repository, digest, HAS_SECONDS) for node in hinted))
        found = [node for node, has in zip(hinted, answers, strict=True) if has]
        return found or self._nodes(await self.ask(repository, digest))

    async def of_image(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether a node has the manifest and its blobs."""
        found = await self._hinted(digest) or await self.ask(repository, digest)
        asked = self._nodes(found[:HINTED_MOST])
        return any(await asyncio.gather(*(node.has_image(repository, digest) for node in asked)))

    async def _hinted(self, digest: Digest) -> Sequence[str]:
        try:
            return await self.present(await self._leases.holders(str(digest)))
        except LinkDown:
            return ()

    def _nodes(self, urls: Sequence[str]) -> list[Neighbour]:
        nodes = []
        for url in urls:
            with suppress(ValueError):  # what Redis holds may be anything
                nodes.append(self._neighbours.at(url, held=True, still=None))
        return nodes
