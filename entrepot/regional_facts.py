"""What the catalog, the configuration and the sync know of other regions and one reference, for `why`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

import msgspec

from entrepot.config import Config
from entrepot.regional_reasons import Kind, PeerReason, Regional, WaitingRecord, why_unchosen
from proxy.oci.digest import Digest
from proxy.oci.names import Reference, Repository
from proxy.oci.references import format_full
from proxy.store.catalog import Catalog
from proxy.store.disputed import read_lost, read_origin
from proxy.store.exchanged import TagChange, is_ahead
from proxy.store.inventory import Inventory
from proxy.store.remote import Waiting, read_waiting
from sync.reports import ConflictReport, PeerReport

MOST_WAITING = 100_000
MOST_CONFLICTS = 5


async def gather(
    catalog: Catalog,
    config: Config,
    repository: Repository,
    reference: Reference,
    digest: Digest | None,
    reports: Sequence[PeerReport] = (),
) -> Regional | None:
    """Return what other regions have to do with a reference, None where they have nothing.

    digest: what a tag is here. reports: how the peers stand, where a sync runs.
    """
    regional = await catalog.read(lambda connection: _read(connection, config, repository, reference, digest))
    inventory = Inventory(catalog)
    waiting = []
    for one in regional.waiting:
        facts = await inventory.facts(Digest(one.digest)) if one.digest is not None else None
        if facts is not None and facts.state is not None and facts.state != "absent":
            one = msgspec.structs.replace(one, missing=facts.closure[0] - facts.closure[1])
        waiting.append(one)
    standing = {report.name: report for report in reports}
    peers = tuple(
        PeerReason(
            peer=peer.name,
            unchosen=why_unchosen(peer, repository, reference),
            held=report.held if (report := standing.get(peer.name)) else None,
            failing=report.error if report and report.state == "failing" else None,
            removals_refused=report.removals_refused if report else None,
        )
        for peer in config.peers
    )
    found = msgspec.structs.replace(regional, waiting=tuple(waiting), peers=peers)
    return None if found == Regional() else found


def _read(
    connection: sqlite3.Connection, config: Config, repository: Repository, reference: Reference, digest: Digest | None
) -> Regional:
    now = time.time()
    rows = [
        row
        for peer in config.peers
        for row in read_waiting(connection, peer.name, MOST_WAITING, repository=repository)
        if _concerns(row, reference, digest)
    ]
    waiting = tuple(_waiting(row, now) for row in rows)
    if isinstance(reference, Digest):
        return Regional(waiting=waiting)
    origin = read_origin(connection, repository, reference)
    elsewhere = origin is not None and origin[0] not in ("", config.region)
    name = format_full(repository, reference)
    conflicts = tuple(
        ConflictReport(
            reference=name,
            winner=one.winner or "its removal",
            winner_region=one.winner_region,
            loser=one.loser or "its removal",
            loser_region=one.loser_region,
            found_at=one.found_at,
        )
        for one in read_lost(connection, repository, reference, MOST_CONFLICTS)
    )
    return Regional(
        origin=origin[0] if origin is not None and elsewhere else None,
        removed=elsewhere and digest is None,
        observed_at=origin[1] if origin is not None and elsewhere else None,
        waiting=waiting,
        conflicts=conflicts,
    )


def _concerns(row: Waiting, reference: Reference, digest: Digest | None) -> bool:
    record = row.record
    if isinstance(record, TagChange) and not isinstance(reference, Digest):
        return record.name == reference
    return record.digest is not None and record.digest in (reference, digest)


def _waiting(row: Waiting, now: float) -> WaitingRecord:
    record = row.record
    removed = record.digest is None if isinstance(record, TagChange) else record.removed
    kind: Kind = "ahead" if is_ahead(record.version, now) else "removal" if removed else "image"
    return WaitingRecord(
        peer=row.peer,
        kind=kind,
        digest=record.digest,
        since=row.since,
        tries=row.tries,
        next_at=row.next_at,
        error=row.error,
    )
