"""Comparing what a peer has and is chosen with what is stored here, and asking anew for what is missing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store import remote
from proxy.store.catalog import Catalog
from proxy.store.exchanged import MembershipChange
from proxy.store.records import Proof
from proxy.store.remote import RootChange, Waiting
from proxy.store.roots import Marks
from proxy.store.store import Store
from proxy.store.writer import Transaction
from sync.facts import Judge
from sync.plan import Image, Step, make_plan
from sync.reports import VerifyReport
from sync.selection import Rules
from sync.walking import Body, stored_manifest, walk

PAGE = 256
MOST_TOLD = 1000

_PEER = "SELECT id, mesh FROM peer WHERE name = ?"
TAGS = """
    SELECT tag.repository, upstream, path, name FROM tag CROSS JOIN repository ON repository.id = tag.repository
    WHERE (tag.repository, name) > (?, ?) AND digest IS NOT NULL ORDER BY tag.repository, name LIMIT ?
"""
MEMBERSHIPS = """
    SELECT membership.repository, upstream, path, digest, version, proof, proved_at, root FROM membership
    CROSS JOIN repository ON repository.id = membership.repository
    WHERE (membership.repository, digest) > (?, ?) AND NOT removed AND root IS NOT NULL
    ORDER BY membership.repository, digest LIMIT ?
"""
SAID = "SELECT 1 FROM root WHERE peer = ? AND place = ?"
_ROW = "SELECT id FROM repository WHERE upstream = ? AND path = ?"


@dataclass(frozen=True, slots=True)
class _Peer:
    name: str
    number: int
    marks: Marks


async def verify(catalog: Catalog, store: Store, name: str, rules: Rules, now: float) -> VerifyReport:
    """Look at all that `name` has and is chosen; what is not here whole waits to be fetched afterwards.

    Raises OSError, as the catalog does.
    """
    counts = await catalog.read(lambda connection: remote.count_waiting(connection, name, now))
    differing = counts.images + counts.removals + counts.ahead
    found = await catalog.read(lambda connection: connection.execute(_PEER, (name,)).fetchone())
    if found is None or found[1] is None:
        return VerifyReport(peer=name, records=0, differing=differing, error="its records have not been read yet")
    peer = _Peer(name, int(found[0]), Marks(bytes(found[1])))
    judge = Judge(name, rules)
    records, missing = 0, dict[str, None]()
    for statement in (TAGS, MEMBERSHIPS):
        after: tuple[int, str] | None = (0, "")
        while after is not None:
            rows, after = await _page(catalog, peer, rules, statement, after)
            records += len(rows)
            for image in await _incomplete(catalog, store, peer, rules, judge, rows, now):
                if len(missing) < MOST_TOLD:
                    missing[str(image)] = None
    return VerifyReport(peer=name, records=records, differing=differing, missing=tuple(missing))


async def _page(
    catalog: Catalog, peer: _Peer, rules: Rules, statement: str, after: tuple[int, str]
) -> tuple[list[Waiting], tuple[int, str] | None]:
    """Return own records that the peer has too, and where to go on."""
    listed = await catalog.read(lambda connection: connection.execute(statement, (*after, PAGE)).fetchall())
    rows = []
    for _, upstream, path, key, *said in listed:
        repository = Repository(upstream, path)
        if not rules.scope.admits(repository):
            continue
        record: RootChange | None
        if said:
            version, proof, proved_at, root = said
            record = MembershipChange(0, 0, key, version, False, Proof(proof), proved_at, root)
            place = peer.marks.place(repository, f"m:{key}")
        else:
            record = await catalog.tag_change(repository, Tag(key))
            place = peer.marks.place(repository, f"t:{key}")
        if record is not None:
            rows.append(Waiting(peer.name, place, repository, record, 0.0, 0, 0.0, None))
    there = await catalog.read(lambda connection: _said(connection, peer, rows))
    return there, (listed[-1][0], listed[-1][3]) if len(listed) == PAGE else None


def _said(connection: sqlite3.Connection, peer: _Peer, rows: Sequence[Waiting]) -> list[Waiting]:
    return [row for row in rows if connection.execute(SAID, (peer.number, row.place)).fetchone() is not None]


async def _incomplete(
    catalog: Catalog,
    store: Store,
    peer: _Peer,
    rules: Rules,
    judge: Judge,
    rows: Sequence[Waiting],
    now: float,
) -> list[Image]:
    """Return the chosen images that are not here whole, and let them wait to be fetched."""

    async def fetch(repository: Repository, digest: Digest) -> Body | None:
        return await stored_manifest(catalog, store, repository, digest)

    decided = await catalog.read(lambda connection: judge.decide(connection, rows, now))
    incomplete = []
    for image in make_plan([one for one in decided if one[1].step is Step.FETCH]).images:
        parts = await walk(catalog, image.repository, image.digest, rules.platforms, fetch)
        if parts.missing:
            incomplete.append(image)
    if incomplete:
        await catalog.write(lambda transaction: _queue(transaction, peer, incomplete, now))
    return incomplete


def _queue(transaction: Transaction, peer: _Peer, images: Sequence[Image], now: float) -> None:
    for image in images:
        for row in image.rows:
            record = row.record
            key = f"m:{record.digest}" if isinstance(record, MembershipChange) else f"t:{record.name}"
            repository = transaction.repository(image.repository)
            remote.put_waiting(transaction, peer.number, row.place, repository, key, record, now)
