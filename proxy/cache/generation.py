"""One attempt at a blob as its readers see it: a file, and how far it has come."""

from __future__ import annotations

import os

from proxy.cache.progress import Progress
from proxy.oci.errors import Unavailable
from proxy.store.spool import Spool


class Generation:
    """One spool, and how far it has come. Its descriptor is its own: it stays good when the spool is closed."""

    def __init__(self, spool: Spool, size: int | None) -> None:
        self.spool = spool
        self.progress = Progress(size)
        self._fd = os.dup(spool.fd)

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
