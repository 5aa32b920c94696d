"""Byte ranges (RFC 9110 §14, P4, P5): what a client asks for, what that means on a blob of a known size, and how
an answer says what it holds. Whether a range applies at all (`If-Range`) is in `conditional`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.oci.errors import RangeNotSatisfiable

_RANGE_SET = re.compile(r"[ \t]*bytes=(.+)", re.IGNORECASE)
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_BEYOND_EVERY_BLOB = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ByteRange:
    """One range as asked: `first-last`, `first-` (last None) or `-last` (first None: the last `last` bytes)."""

    first: int | None
    last: int | None

    def resolve(self, size: int) -> tuple[int, int]:
        """Return (start, end), end exclusive, on a blob of `size` bytes.

        Raises:
            RangeNotSatisfiable: no byte of it exists (P4). A zero-length blob is the caller's case (P6).
        """
        if self.first is None:
            length = self.last or 0
            start, end = max(0, size - length), size
        else:
            start, end = self.first, size if self.last is None else min(self.last + 1, size)
        if start >= end:
            raise RangeNotSatisfiable(f"range {self} has no byte of the {size} that there are", size=size)
        return start, end

    def __str__(self) -> str:
        return f"{'' if self.first is None else self.first}-{'' if self.last is None else self.last}"


def parse_range(header: str) -> tuple[ByteRange, ...] | None:
    """Return the ranges of a `Range` header in their order; None where the header must be ignored.

    Another unit and broken syntax are ignored (RFC 9110 §14.2). `500-0` is kept, although the RFC lets it
    be ignored: no blob has a byte of it, so it resolves to a 416 (P4).
    """
    match = _RANGE_SET.fullmatch(header)
    if match is None:
        return None
    ranges = []
    for item in match[1].split(","):
        item = item.strip(" \t")
        if not item:
            continue
        spec = _RANGE.fullmatch(item)
        if spec is None or item == "-":
            return None
        ranges.append(ByteRange(_position(spec[1]), _position(spec[2])))
    return tuple(ranges) or None


def format_content_range(start: int, end: int, size: int) -> str:
    """Return the `Content-Range` of the bytes `start` to `end` (exclusive) of `size`, which is never `*` (P4)."""
    return f"bytes {start}-{end - 1}/{size}"


def _position(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return min(int(digits[:20]), _BEYOND_EVERY_BLOB) if len(digits) <= 20 else _BEYOND_EVERY_BLOB
