"""What an upstream said that it does not have, remembered for a while so that not every client asks it again.

Only its 404 is remembered. A refusal (401, 403) depends on a credential, and a failure says nothing about content.
The catalog comes first: who consults this has found nothing there. Nodes of a fleet tell each other what they hear.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Set
from time import monotonic
from typing import TypeVar

from proxy.cache.near import Alone, Fleet, Kind
from proxy.oci.errors import Denied, NotFound
from proxy.oci.names import Reference, Repository

MAX_ENTRIES = 10_000
ANEW_SECONDS = 300.0
MAX_SETS = 512
REFERRER_SECONDS = 30.0

Key = tuple[Kind, Repository, str]
T = TypeVar("T")

# Tags that tools attach to an image once it is pushed: cosign's, and the fallback tag of referrers (P13, P14).
_ATTACHED = re.compile(r"sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?")


class Negatives:
    """A bounded table of 404 answers, the oldest leaving first. `ttl` gives an upstream's seconds; 0: none is kept."""

    def __init__(
        self, ttl: Callable[[str], float], now: Callable[[], float] = monotonic, fleet: Fleet | None = None
    ) -> None:
        self._ttl = ttl
        self._fleet = fleet or Alone()
        self._anew: deque[tuple[float, Set[Key]]] = deque(maxlen=MAX_SETS)
        self._now = now
        self._entries: OrderedDict[Key, tuple[float, NotFound]] = OrderedDict()

    def check(self, kind: Kind, repository: Repository, reference: Reference, max_age: float = math.inf) -> None:
        """Raise the upstream's answer again if it is remembered, and no older than `max_age` seconds."""
        entry = self._entries.get((kind, repository, reference))
        if entry is None:
            return
        said_at, error = entry
        age = self._now() - said_at
        if age >= self._seconds(repository, reference):
            self.forget(kind, repository, reference)
        elif age < max_age:
            raise error.again()

    def remember(
        self, kind: Kind, repository: Repository, reference: Reference, error: NotFound, *, age: float = 0.0
    ) -> None:
        """Remember `error`, which the upstream gave `age` seconds ago, unless it stands for a refusal."""
        if isinstance(error.__cause__, Denied) or self._seconds(repository, reference) <= 0:
            return
        key = (kind, repository, reference)
        self._entries[key] = (self._now() - age, error.again())
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def forget(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Forget what was said: it is there now, or it shall be asked for again."""
        self._entries.pop((kind, repository, reference), None)

    def forget_all(self, keys: Set[Key]) -> None:
        """Forget what was said of each of `keys`, also what other nodes were told until now."""
        if not self._fleet.alone:
            self._anew.append((self._now(), keys))
        for key in keys if len(keys) < len(self._entries) else list(self._entries):
            if key in keys:
                self._entries.pop(key, None)

    async def run(
        self, kind: Kind, repository: Repository, reference: Reference, question: Callable[[], Awaitable[T]]
    ) -> T:
        """Return the answer to `question`; its NotFound is remembered and, while it is, raised without asking."""
        self.check(kind, repository, reference)
        await self._ask_fleet(kind, repository, reference)
        try:
            answer = await question()
        except NotFound as error:
            self.remember(kind, repository, reference, error)
            seconds = self._seconds(repository, reference)
            if seconds > 0 and not isinstance(error.__cause__, Denied):
                self._fleet.note_missing(kind, repository, reference, error.message, seconds)
            raise
        self.forget(kind, repository, reference)
        return answer

    async def _ask_fleet(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Raise what another node was told; what is known to have come since is asked for anew."""
        if self._fleet.alone:
            return
        while self._anew and self._now() - self._anew[0][0] > ANEW_SECONDS:
            self._anew.popleft()
        if any((kind, repository, reference) in keys for _, keys in self._anew):
            return
        told = await self._fleet.missing(kind, repository, reference)
        if told is not None:
            raise told

    def _seconds(self, repository: Repository, reference: Reference) -> float:
        seconds = self._ttl(repository.upstream)
        return min(seconds, REFERRER_SECONDS) if _ATTACHED.fullmatch(reference) else seconds
