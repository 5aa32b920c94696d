"""The other regions as the cache sees them (`near.Regions`): who may have what, the nearest first; a tag's home."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from proxy.cache.near import NearSource, TagAtHome
from proxy.oci.errors import RegistryError
from proxy.oci.names import Repository, Tag
from proxy.regions.peer import PeerClient
from proxy.store.records import TagRecord

HOME_SECONDS = 2.0
_NEAR_STEP = 0.005
log = logging.getLogger(__name__)


class Peers:
    """`clients` in the order of the configuration, asked by the region `region`."""

    def __init__(self, clients: Sequence[PeerClient], region: str) -> None:
        self._clients = clients
        self._region = region

    def sources(self, repository: Repository, *, start: bool) -> Sequence[NearSource]:
        """Return those that answer and are asked for the repository, the nearest first.

        Of those that are about as near the first in the configuration comes first; where one is not known yet, last.
        """
        asked = [one for one in self._clients if one.available and one.scope.admits(repository)]
        return [one.source(start) for one in sorted(asked, key=_distance)]

    def silent(self, repository: Repository) -> str:
        """Return the name of one that is asked for the repository and is left alone now, else ""."""
        names = (one.name for one in self._clients if not one.available and one.scope.admits(repository))
        return next(names, "")

    async def tag(self, repository: Repository, tag: Tag, known: TagRecord | None, max_age: float) -> TagAtHome | None:
        """Return what the tag is at its home, which gave the record that is `known`; within 2 s.

        None: that is this region or none that is asked, it does not know, or knows only what is older.
        """
        if known is None or known.origin in ("", self._region):
            return None
        home = next((one for one in self._clients if one.name == known.origin), None)
        if home is None or not home.available or not home.scope.admits(repository):
            return None
        try:
            said = await home.tag(repository, tag, max_age, HOME_SECONDS)
        except RegistryError as error:
            log.debug("a tag's home does not tell", extra={"peer": home.name, "why": error.message})
            return None
        record = said.record
        if said.region != home.name or record.name != tag:
            return None
        return said if record.digest == known.digest or record.version >= known.version else None


def _distance(client: PeerClient) -> float:
    return math.inf if client.rtt is None else round(client.rtt / _NEAR_STEP)
