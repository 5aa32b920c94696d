"""Reading what regions compare: the roots in the order of the feed, and by ranges of their places. Statements only.

A place is told as a number from 0 to SPAN - 1; a range is named by the hexadecimal digits that all its places begin
with. Everything is read for a `peer` by its id, 0 being this catalog, and for the repositories that `ids` contains,
None being all. One call reads a bounded number of rows, whatever `ids` hides: what is longer goes on with the next
call, in another snapshot. That is sound since what changes between two calls comes again: whoever compares reads the
feed from where it stood at the first answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.feed import POSITION
from proxy.store.reading import Reading
from proxy.store.records import Proof
from proxy.store.remote import RootChange
from proxy.store.tagstate import read_others

SPAN = 1 << 64
OWN = 0
FANOUT = 16
MOST_ROWS = 100_000
"""So many rows are summed in one call, some 30 ms; a range that is longer is summed in one call all the same."""
COMPARED_ROWS = 20_000
MOST_LOOKED_UP = 1000
"""So many repositories are looked up; of more than that all are read."""
_ALL = 0
_HALF = 1 << 63
_WORD = 0xFFFFFFFF

_TAG = """seq, name, version, digest, media_type, size, origin, observed_at, checked_at, generation, base, others"""
_MEMBERSHIP = """seq, digest, version, removed, proof, proved_at, root"""
TAGS = f"""
    SELECT repository, {_TAG} FROM tag INDEXED BY tag_seq WHERE seq > ? ORDER BY seq LIMIT ?
"""
MEMBERSHIPS = f"""
    SELECT repository, {_MEMBERSHIP} FROM membership INDEXED BY membership_root_seq
    WHERE root IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?
"""
TAG = f"SELECT {_TAG} FROM tag WHERE repository = ? AND name = ?"
MEMBERSHIP = f"SELECT {_MEMBERSHIP} FROM membership WHERE repository = ? AND digest = ? AND root IS NOT NULL"
REPOSITORY = "SELECT upstream, path FROM repository WHERE id = ?"
REPOSITORIES = "SELECT id, upstream, path FROM repository WHERE id > ? ORDER BY id LIMIT ?"
FINGERPRINTS = "SELECT repository, low, high, records FROM fingerprint WHERE peer = ? AND repository > 0"
FINGERPRINT = "SELECT low, high, records FROM fingerprint WHERE peer = ? AND repository = ?"
SUM = """
    SELECT coalesce(sum(mark & 0xffffffff), 0), coalesce(sum((mark >> 32) & 0xffffffff), 0), count(*)
    FROM root WHERE peer = ? AND place BETWEEN ? AND ?
"""
MARKED = "SELECT repository, mark FROM root WHERE peer = ? AND place BETWEEN ? AND ?"
MARKS = "SELECT place, mark FROM root WHERE peer = ? AND place BETWEEN ? AND ? ORDER BY place LIMIT ?"
ROOTS = """
    SELECT place, mark, repository, key FROM root WHERE peer = 0 AND place BETWEEN ? AND ? ORDER BY place LIMIT ?
"""
STATEMENTS = (
    TAGS,
    MEMBERSHIPS,
    TAG,
    MEMBERSHIP,
    REPOSITORY,
    REPOSITORIES,
    FINGERPRINT,
    FINGERPRINTS,
    SUM,
    MARKED,
    MARKS,
    ROOTS,
)


class Sum(NamedTuple):
    """The sum of marks, as the lower words of its two halves, and how many they are."""

    low: int = 0
    high: int = 0
    records: int = 0

    @classmethod
    def of(cls, low: int, high: int, records: int) -> Sum:
        return cls(low & _WORD, high & _WORD, records)


class Interval(NamedTuple):
    """Places from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class RootPage:
    """Roots that changed; their `at` is an index into `repositories`. Position and restart as in `exchanged.Page`."""

    epoch: str
    head: int
    next: int
    more: bool
    restart: bool
    repositories: list[tuple[str, str]]
    records: list[RootChange]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs in the first `done` ranges that were asked for, and, with `upto`, in the next one up to there.

    records: those that are none or others with the asker; their `at` is an index into `repositories`. gone: places
    where this catalog has nothing.
    """

    repositories: list[tuple[str, str]]
    records: list[RootChange]
    gone: list[int]
    done: int
    upto: int | None


def split(prefix: str, levels: int) -> list[Interval]:
    """Return the ranges, `levels` digits deeper, that the range named `prefix` consists of."""
    depth = len(prefix) + levels
    size = SPAN >> 4 * depth
    begin = (int(prefix, 16) if prefix else 0) * (size << 4 * levels)
    return [Interval(begin + number * size, begin + (number + 1) * size - 1) for number in range(FANOUT**levels)]


def told(place: int) -> int:
    """Return a place of the catalog, a signed number, as it is told; the order stays."""
    return place + _HALF


def kept(place: int) -> int:
    """Return a place that was told as the catalog keeps it."""
    return place - _HALF


def read_roots(
    connection: sqlite3.Connection, positions: Mapping[str, int], ids: Container[int] | None, limit: int
) -> RootPage:
    """Return roots that changed after the position of this catalog's epoch, among the next `limit` rows of each kind.

    To be called in a transaction. `next` passes over what `ids` hides.
    """
    own, head = connection.execute(POSITION).fetchone()
    since = positions.get(own, head + 1)
    if since > head:
        return RootPage(own, head, 0, False, True, [], [])
    names = _Names(connection)
    found: list[tuple[int, int, RootChange | None]] = []
    full = False
    if since < head:
        for row, *values in connection.execute(TAGS, (since, limit)).fetchall():
            found.append((values[0], row, _tag(values) if ids is None or row in ids else None))
        full = len(found) >= limit
        tags = len(found)
        for row, *values in connection.execute(MEMBERSHIPS, (since, limit)).fetchall():
            found.append((values[0], row, _membership(values) if ids is None or row in ids else None))
        full = full or len(found) - tags >= limit
        found.sort(key=_seq)
    full = full or len(found) > limit
    del found[limit:]
    records = [names.place(row, record) for _, row, record in found if record is not None]
    return RootPage(own, head, found[-1][0] if full else head, full, False, names.told, records)


def read_fingerprint(connection: sqlite3.Connection, peer: int, ids: AbstractSet[int] | None) -> Sum:
    """Return the sum over the repositories. Reads one row of each; of everything one row."""
    if ids is None or len(ids) <= MOST_LOOKED_UP:
        wanted = (_ALL,) if ids is None else tuple(ids)
        found = [connection.execute(FINGERPRINT, (peer, one)).fetchone() or (0, 0, 0) for one in wanted]
    else:
        found = [parts for row, *parts in connection.execute(FINGERPRINTS, (peer,)) if row in ids]
    low, high, records = (sum(column) for column in zip((0, 0, 0), *found, strict=True))
    return Sum.of(low, high, records)


def read_sums(
    connection: sqlite3.Connection, peer: int, intervals: Sequence[Interval], ids: Container[int] | None
) -> list[Sum]:
    """Return the sums of the first of `intervals`: as many as MOST_ROWS rows make up, one at least."""
    sums: list[Sum] = []
    rows = 0
    for low, high in intervals:
        where = (peer, kept(low), kept(high))
        if ids is None:
            found = Sum.of(*connection.execute(SUM, where).fetchone())
            rows += found.records
        else:
            marks: list[int] = []
            for repository, mark in connection.execute(MARKED, where):
                rows += 1
                if repository in ids:
                    marks.append(mark)
            found = Sum.of(sum(mark & _WORD for mark in marks), sum(mark >> 32 & _WORD for mark in marks), len(marks))
        sums.append(found)
        if rows >= MOST_ROWS:
            break
    return sums


async def sums(
    catalog: Reading, peer: int, intervals: Sequence[Interval], ids: Container[int] | None = None
) -> list[Sum]:
    """Return the sum of each of `intervals`, giving the reader's thread to others now and then."""
    found: list[Sum] = []

    def more(connection: sqlite3.Connection) -> list[Sum]:
        return read_sums(connection, peer, intervals[len(found) :], ids)

    while len(found) < len(intervals):
        found += await catalog.read(more)
    return found


def read_marks(connection: sqlite3.Connection, peer: int, interval: Interval, limit: int) -> dict[int, int]:
    """Return up to `limit` marks of a range by their places."""
    rows = connection.execute(MARKS, (peer, kept(interval.low), kept(interval.high), limit))
    return {told(place): mark & SPAN - 1 for place, mark in rows}


def read_difference(
    connection: sqlite3.Connection,
    asked: Sequence[tuple[Interval, Mapping[int, int]]],
    ids: Container[int] | None,
    limit: int,
) -> Difference:
    """Return up to `limit` own records of ranges whose marks the asker does not have, by place within each.

    Reads up to COMPARED_ROWS rows; to be called in a transaction.
    """
    names = _Names(connection)
    records: list[RootChange] = []
    gone: list[int] = []
    left = COMPARED_ROWS
    for done, (interval, known) in enumerate(asked):
        seen: set[int] = set()
        upto: int | None = None
        where = (kept(interval.low), kept(interval.high), left)
        for at, mark, repository, key in connection.execute(ROOTS, where):
            left -= 1
            if ids is None or repository in ids:
                seen.add(told(at))
                if known.get(told(at)) != mark & SPAN - 1:
                    record = read_root(connection, repository, key)
                    if record is not None:
                        records.append(names.place(repository, record))
            if left <= 0 or len(records) >= limit:
                upto = told(at)
                break
        gone += [place for place in known if place not in seen and (upto is None or place <= upto)]
        if upto is not None:
            return Difference(names.told, records, gone, done, upto)
    return Difference(names.told, records, gone, len(asked), None)


def read_root(connection: sqlite3.Connection, repository: int, key: str) -> RootChange | None:
    """Return this catalog's record with a key (see `roots`); `at` is 0. None: there is none."""
    kind, _, name = key.partition(":")
    row = connection.execute(TAG if kind == "t" else MEMBERSHIP, (repository, name)).fetchone()
    if row is None:
        return None
    return _tag(row) if kind == "t" else _membership(row)


class _Names:
    """Numbers repositories in the order in which they come up."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._numbers: dict[int, int] = {}
        self.told: list[tuple[str, str]] = []

    def place(self, repository: int, record: RootChange) -> RootChange:
        number = self._numbers.get(repository)
        if number is None:
            number = self._numbers[repository] = len(self.told)
            self.told.append(self._connection.execute(REPOSITORY, (repository,)).fetchone())
        return msgspec.structs.replace(record, at=number)


def _tag(row: Sequence[Any]) -> TagChange:
    seq, *values, others = row
    return TagChange(seq, 0, *(*values, read_others(others)))


def _membership(row: Sequence[Any]) -> MembershipChange:
    seq, digest, version, removed, proof, proved_at, root = row
    return MembershipChange(seq, 0, digest, version, bool(removed), Proof(proof), proved_at, root)


def _seq(found: tuple[int, int, RootChange | None]) -> int:
    return found[0]
