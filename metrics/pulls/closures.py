"""What manifests name: made once of each, shared by all pulls of it, kept within a bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from metrics.pulls.model import Part

MOST_PARTS = 100_000
UNKNOWN_PLATFORM = "unknown/unknown"
"""What an index says of the platform of attestations."""


class Closure:
    """What one manifest names, by digest. It never changes; an empty one is of a manifest that cannot be looked into.

    layers: how many of its parts are layers; layer_bytes: their sizes.
    """

    __slots__ = ("is_index", "layer_bytes", "layers", "parts")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts = {part.digest: part for part in parts}
        layers = [part.size for part in self.parts.values() if part.role == "layer"]
        self.layers = len(layers)
        self.layer_bytes = sum(layers)
        self.is_index = any(part.role == "manifest" for part in self.parts.values())


class Closures:
    """State: the closures that were asked for latest, bounded by the number of parts."""

    def __init__(self, most: int = MOST_PARTS) -> None:
        self._most = most
        self._known: OrderedDict[str, Closure] = OrderedDict()
        self._held = 0

    def get(self, digest: str) -> Closure | None:
        """Return what a manifest names, None where nobody has said."""
        closure = self._known.get(digest)
        if closure is not None:
            self._known.move_to_end(digest)
        return closure

    def put(self, digest: str, closure: Closure) -> None:
        """Keep what a manifest names."""
        if digest in self._known:
            return
        self._known[digest] = closure
        self._held += len(closure.parts) + 1
        while self._held > self._most:
            self._held -= len(self._known.popitem(last=False)[1].parts) + 1
