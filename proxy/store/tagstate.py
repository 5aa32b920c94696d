"""What regions said about a tag, and how it is brought together. Plain values and pure decisions, no I/O.

A state holds one entry per digest that the tag was said to be, and one for its removal (digest None). The tag is the
digest whose entry has the greatest version. Of two entries of one digest that of the greater generation prevails, of
one generation the older: whoever sees late what others saw before says nothing new, so that an old digest never beats
what replaced it. Who saw it replaced and sees it again says so: `observe` draws the next generation. So for any number
of catalogs bringing states together is commutative, associative and idempotent, and draws no version.

The MOST_OTHERS newest besides the present one are kept. That cut is the one thing that is not associative: an entry
may be cut in one catalog while another, who knows only of a later one of that digest, keeps it. `differs` tells when
whoever said a state has to hear of ours again because of this; catalogs that do so come to rest alike.
"""

from __future__ import annotations

import msgspec

from proxy.oci.descriptor import Descriptor
from proxy.store.exchanged import Past, TagChange

MOST_OTHERS = 8

State = tuple[Past, ...]
"""Entries of different digests, the newest first; never empty."""

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(State)


def join(known: State, said: State) -> State:
    """Bring two states together; entries that say the same stay those of `known`."""
    best: dict[str | None, Past] = {}
    for entry in (*known, *said):
        other = best.get(entry.digest)
        if other is None or _order(entry) < _order(other):
            best[entry.digest] = entry
    return tuple(sorted(best.values(), key=_newness, reverse=True)[: 1 + MOST_OTHERS])


def observe(known: State | None, seen: Descriptor | None, version: int, origin: str, now: float) -> State:
    """Return what the tag is once it was seen to be another digest than it is known as; None: it was removed.

    version: a new one, greater than all that is known.
    """
    digest, media_type, size = (None, None, None) if seen is None else (str(seen.digest), seen.media_type, seen.size)
    before = next((entry for entry in known or () if entry.digest == digest), None)
    generation = 0 if before is None else before.generation + 1
    base = known[0].version if known else 0
    return join(known or (), (Past(digest, generation, version, base, origin, media_type, size, now),))


def conflicts(state: State) -> State:
    """Return the entries of which the author of the present one did not know, and that nothing followed."""
    followed = {entry.base for entry in state}
    return tuple(entry for entry in state[1:] if entry.version > state[0].base and entry.version not in followed)


def differs(joined: State, said: State) -> bool:
    """Tell whether whoever `said` that has to hear of `joined` once more, as entries may have been cut there."""
    return len(said) > MOST_OTHERS and _says(joined) != _says(said)


def state_of(change: TagChange) -> State:
    """Return the state of a record."""
    current = Past(
        change.digest,
        change.generation,
        change.version,
        change.base,
        change.origin,
        change.media_type,
        change.size,
        change.observed_at,
    )
    return (current, *change.others)


def describes(state: State) -> bool:
    """Tell whether all entries but a removal say type and size of what the tag was: without them none can be served."""
    return all(entry.digest is None or (entry.media_type and entry.size is not None) for entry in state)


def write_others(state: State) -> bytes | None:
    """Return what of a state is kept beside the present entry, for `read_others`."""
    return _encode(state[1:]) if len(state) > 1 else None


def read_others(kept: bytes | None) -> State:
    """Return all but the present entry, the newest first."""
    return _decoder.decode(kept) if kept else ()


def _order(entry: Past) -> tuple[int, int, int, str, str, int]:
    return -entry.generation, entry.version, entry.base, entry.origin, entry.media_type or "", entry.size or 0


def _newness(entry: Past) -> tuple[int, str]:
    return entry.version, entry.digest or ""


def _says(state: State) -> list[tuple[str | None, int, int, int, str]]:
    return [(entry.digest, entry.generation, entry.version, entry.base, entry.origin) for entry in state]
