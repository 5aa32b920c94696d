"""Whether a client is sent to the bucket itself for a blob, and where: a URL that is a secret for as long as it holds.

Only for blobs that are not on this disk, of more than 1 MiB, that the bucket has, and that the repository is proven to
contain by the catalog alone (P43): whatever else is the case, the mirror serves. What the client then gets was verified
when it was uploaded, and is verified by the client; this disk stays as cold as it was.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from proxy.bucket.objects import Bucket, Object
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository
from proxy.store.store import Store

SMALL = 1 << 20
URL_SECONDS = 900.0
FOUND_SECONDS = 60.0
MISSING_SECONDS = 2.0
HEARD_SECONDS = 0.5
"""A bucket that has answered nobody for so long is asked before a client is sent there, who would hang with it."""
REMEMBERED = 10_000


class Redirects:
    """State: what the bucket lately said that it has, bounded. `clock` gives monotonic seconds."""

    def __init__(self, store: Store, bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._bucket = bucket
        self._clock = clock
        self._seen: OrderedDict[Digest, tuple[float, Object | None]] = OrderedDict()

    async def location(self, repository: Repository, digest: Digest) -> str | None:
        """Return the URL to send a client to, to be written nowhere else; None where the mirror serves the blob."""
        catalog = self._store.catalog
        record = await catalog.blob(digest)
        if (record is not None and record.present) or self._store.doubted(digest):
            return None
        proven = await catalog.has_membership(repository, digest)
        if not proven and not await catalog.named_in(repository, digest):
            return None
        try:
            there = await self._look(digest)
            if there is None or there.size <= SMALL or not (proven or there.public):
                return None
            known = record.size if record is not None else await catalog.expected_size(digest)
            if known not in (None, there.size):  # something is wrong there: a fill finds out, and mends it
                return None
            return await self._bucket.sign(digest, URL_SECONDS)
        except Unavailable:
            return None

    async def _look(self, digest: Digest) -> Object | None:
        until, there = self._seen.get(digest, (0.0, None))
        if self._clock() < until and (there is None or self._bucket.heard_within(HEARD_SECONDS)):
            return there
        there = await self._bucket.look(digest)
        self._seen[digest] = (self._clock() + (MISSING_SECONDS if there is None else FOUND_SECONDS), there)
        self._seen.move_to_end(digest)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return there
