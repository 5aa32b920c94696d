"""What a region lacked lately: who asks it for one layer after the other of an image that it has not waits each time.

A region that lacked the last IN_A_ROW things of a repository that it was asked for is not asked for its blobs for
SECONDS. Manifests are asked for all the same, one an image, and the first thing it has ends it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

from proxy.oci.names import Repository

IN_A_ROW = 3
SECONDS = 10.0
_REMEMBERED = 1024


class Misses:
    """How often in a row one region lacked something, by repository; `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._missed: OrderedDict[Repository, tuple[int, float]] = OrderedDict()

    def lacks(self, repository: Repository) -> bool:
        """Tell whether it is not worth asking for a blob of the repository now."""
        return self._in_a_row(repository) >= IN_A_ROW

    def missed(self, repository: Repository) -> None:
        """Note that it lacked something of the repository."""
        self._missed[repository] = (self._in_a_row(repository) + 1, self._clock())
        self._missed.move_to_end(repository)
        if len(self._missed) > _REMEMBERED:
            self._missed.popitem(last=False)

    def has(self, repository: Repository) -> None:
        """Note that it has something of the repository."""
        self._missed.pop(repository, None)

    def _in_a_row(self, repository: Repository) -> int:
        times, at = self._missed.get(repository, (0, 0.0))
        return times if self._clock() - at < SECONDS else 0
