"""Whose word on a tag counts: its home region's, the upstream's own, or for the time being nobody's.

A tag's home is the region that first saw the digest it points to. The others ask it, so that all follow one observer;
where it does not answer they ask their upstream themselves. A digest that the tag had before may be seen again because
it was brought back, or because who was asked lags behind. An upstream's main host, asked by the home, is believed at
once; of anybody else the digest is held back for RETURN_SECONDS, unless the home says so too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store.exchanged import TagChange
from proxy.store.records import TagRecord

RETURN_SECONDS = 3600.0
UNNAMED = ("", "local")
"""The origin of what a mirror saw before it had a name, or regions were: no region's, so that each asks for itself."""
_REMEMBERED = 65536


@dataclass(frozen=True, slots=True)
class Heard:
    """What a tag is said to be, and when (unix time). by_main: by the upstream's main host, asked by this process.

    record: the home's own, which is taken over as it is; None where the upstream was asked.
    """

    descriptor: Descriptor
    at: float
    by_main: bool = False
    record: TagChange | None = None


def cooldown_of(record: TagRecord | None, heard: Heard, region: str, cooldown: float) -> float:
    """Return for how many seconds what was heard must have been seen before the tag moves there."""
    if record is None or heard.descriptor.digest not in record.past or heard.record is not None:
        return cooldown
    if heard.by_main and record.origin in (*UNNAMED, region):
        return cooldown
    return max(cooldown, RETURN_SECONDS)


def described(record: TagChange) -> Descriptor | None:
    """Return what a tag's record says it is, None where it was removed."""
    if record.digest is None or record.media_type is None or record.size is None:
        return None
    return Descriptor(record.media_type, Digest.parse(record.digest), record.size)


class Certain:
    """Which tags this process heard of by an upstream's main host, and when: what other regions may rely on."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._heard: OrderedDict[tuple[Repository, Tag], tuple[Digest, float]] = OrderedDict()

    def note(self, repository: Repository, tag: Tag, heard: Heard) -> None:
        """Remember who said what a tag is."""
        self._heard.pop((repository, tag), None)
        if heard.by_main:
            self._heard[repository, tag] = (heard.descriptor.digest, self._clock())
            if len(self._heard) > _REMEMBERED:
                self._heard.popitem(last=False)

    def age(self, repository: Repository, tag: Tag, digest: Digest) -> float | None:
        """Return the seconds since the main host said that the tag is `digest`; None where it did not say so last."""
        said, at = self._heard.get((repository, tag), (None, 0.0))
        return self._clock() - at if said == digest else None
