"""Hosts that said when to come back (`Retry-After` of a 429 or 503): they are not asked before. Pure state.

A hold is on one kind of question (manifest, blob, …) of one host: a pull quota on manifests stops no blob. Whoever asks
meanwhile is told at once, with the seconds that are left (P16, P35). A 503 is everybody's; a 429 is about whose
credential was used, and one caller's quota is not another's, nor the mirror's own. What another node was told is
learned, and not told on as if this one had heard it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from proxy.oci.errors import RegistryError, TooManyRequests, Unavailable

LONGEST = 3600.0
REMEMBERED = 4096
OWN = b"mirror"
_SAME = 0.5


class Hold(NamedTuple):
    """What holds back questions of one kind, until a moment of the clock. learned: another node was told so."""

    until: float
    error: RegistryError
    learned: bool = False


class Heard(NamedTuple):
    """A hold that this process was told of for itself. everybody: a 503, else a 429 for the mirror's own credential."""

    kind: str
    everybody: bool
    until: float
    message: str


class Holds:
    """The holds of one host. `clock` gives monotonic seconds."""

    def __init__(self, host: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._held: OrderedDict[tuple[str, bytes | None], Hold] = OrderedDict()

    def note(self, kind: str, error: RegistryError, asker: bytes = OWN) -> None:
        """Keep what `error` asks of `asker` for, an hour at most; without `retry_after` it asks for nothing."""
        if error.retry_after:
            key = (kind, asker if isinstance(error, TooManyRequests) else None)
            self._keep(key, Hold(self._clock() + min(error.retry_after, LONGEST), error))

    def learn(self, kind: str, seconds: float, message: str, *, everybody: bool) -> None:
        """Another node was told so; it counts where it holds for longer than what is known here."""
        key = (kind, None if everybody else OWN)
        until = self._clock() + min(seconds, LONGEST)
        known = self._held.get(key)
        if seconds > 0 and (known is None or until > known.until + _SAME):
            error = Unavailable(message) if everybody else TooManyRequests(message)
            self._keep(key, Hold(until, error, learned=True))

    def heard(self) -> Iterator[Heard]:
        """Give what this process was told itself and is not over, callers' credentials apart."""
        now = self._clock()
        for (kind, asker), hold in self._held.items():
            if asker in (None, OWN) and not hold.learned and hold.until > now:
                yield Heard(kind, asker is None, hold.until, hold.error.message)

    def remaining(self) -> dict[str, float]:
        """Return the kinds of question that are held back for the mirror itself, with the seconds left."""
        now, left = self._clock(), dict[str, float]()
        for (kind, asker), hold in self._held.items():
            if hold.until > now and asker in (None, OWN):
                left[kind] = max(hold.until - now, left.get(kind, 0.0))
        return left

    def check(self, kind: str, asker: bytes = OWN) -> None:
        """Raise the error that was kept for `kind` and `asker`, with the seconds that are left of it."""
        for key in ((kind, None), (kind, asker)):
            hold = self._held.get(key)
            if hold is None:
                continue
            left = hold.until - self._clock()
            if left <= 0:
                del self._held[key]
                continue
            again = hold.error.again()
            again.retry_after = left
            again.message = f"{self._host} is not asked again for {left:.0f} s: {hold.error.message}"
            again.args = (again.message,)
            raise again

    def _keep(self, key: tuple[str, bytes | None], hold: Hold) -> None:
        self._held[key] = hold
        self._held.move_to_end(key)
        if len(self._held) > REMEMBERED:
            self._held.popitem(last=False)
