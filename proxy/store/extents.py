"""Which bytes of a file are there: pure, no I/O.

Bytes arrive in order today and may one day arrive in segments, so progress is a set of spans and
never a file's size (DESIGN: the fill).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """Sorted, disjoint, non-adjacent spans [start, end) of byte offsets."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in spans:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add [start, end), merging what it overlaps or touches; an empty span adds nothing.

        Raises:
            ValueError: a negative start, or an end before the start.
        """
        if start < 0 or end < start:
            raise ValueError(f"span [{start}, {end}) is not a span")
        if start == end:
            return
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def contiguous(self) -> int:
        """Return how many bytes from offset 0 on are there without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, size: int) -> list[tuple[int, int]]:
        """Return the spans of [0, size) that are not there."""
        gaps: list[tuple[int, int]] = []
        position = 0
        for start, end in self:
            if start >= size:
                break
            if start > position:
                gaps.append((position, start))
            position = end
        if position < size:
            gaps.append((position, size))
        return gaps

    def bounds(self, limit: int) -> list[int]:
        """Return start and end of the first `limit` spans, one after the other."""
        bounds = [0] * (2 * min(limit, len(self._starts)))
        bounds[::2], bounds[1::2] = self._starts[:limit], self._ends[:limit]
        return bounds

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extents) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Extents({list(self)})"
