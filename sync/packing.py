"""What is packed into messages between catalogs: sums, places and marks as numbers of fixed width. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from proxy.store.ranges import Interval, Sum

_SUM = struct.Struct("<III")
_MARK = struct.Struct("<QQ")
_PLACE = struct.Struct("<Q")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading bytes raises that are no message: of another type, no text, or nested without end."""
SUM_BYTES, MARK_BYTES, PLACE_BYTES = _SUM.size, _MARK.size, _PLACE.size


def pack_sums(sums: Iterable[Sum]) -> bytes:
    return b"".join(_SUM.pack(*one) for one in sums)


def unpack_sums(packed: bytes) -> list[Sum]:
    return [Sum(*one) for one in _SUM.iter_unpack(packed)]


def pack_marks(marks: Mapping[int, int]) -> bytes:
    return b"".join(_MARK.pack(place, mark) for place, mark in marks.items())


def unpack_marks(packed: bytes) -> dict[int, int]:
    return dict(_MARK.iter_unpack(packed))


def pack_places(places: Iterable[int]) -> bytes:
    return b"".join(_PLACE.pack(place) for place in places)


def unpack_places(packed: bytes) -> list[int]:
    return [place for (place,) in _PLACE.iter_unpack(packed)]


def asked(compare: Sequence[Interval], marks: Sequence[Mapping[int, int]]) -> list[tuple[int, int, bytes]]:
    """Return intervals, and what the asker has there, as a question holds them."""
    return [(low, high, pack_marks(known)) for (low, high), known in zip(compare, marks, strict=True)]
