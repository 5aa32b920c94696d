"""What a catalog's roots ought to be, told from its tags and memberships alone."""

from __future__ import annotations

import sqlite3

from proxy.oci.names import Repository
from proxy.store.feed import membership_change, tag_change
from proxy.store.records import Proof
from proxy.store.roots import Marks, read_mesh

TAGS = """
    SELECT repository, upstream, path, name, version, digest, media_type, size, origin, observed_at, checked_at,
        generation, base, others
    FROM tag JOIN repository ON repository.id = tag.repository
"""
MEMBERSHIPS = """
    SELECT repository, upstream, path, digest, version, removed, root
    FROM membership JOIN repository ON repository.id = membership.repository WHERE root IS NOT NULL
"""


def agree(connection: sqlite3.Connection) -> int:
    """Compare rows and fingerprints with the records; return how many roots there are."""
    marks = Marks(read_mesh(connection))
    told: set[tuple[int, str, int, int]] = set()
    for row, upstream, path, name, version, *says in connection.execute(TAGS):
        record = tag_change(0, 0, name, version, *says)
        told.add((row, *marks.of(Repository(upstream, path), record)))
    for row, upstream, path, digest, version, removed, root in connection.execute(MEMBERSHIPS):
        member = membership_change(0, 0, digest, version, removed, Proof.FETCHED, 0.0, root)
        told.add((row, *marks.of(Repository(upstream, path), member)))
    assert set(connection.execute("SELECT repository, key, place, mark FROM root WHERE peer = 0")) == told
    for row, *said in connection.execute("SELECT repository, low, high, records FROM fingerprint WHERE peer = 0"):
        mine = [mark for repository, _, _, mark in told if row in (0, repository)]
        assert said == [sum((mark >> shift) & 0xFFFFFFFF for mark in mine) for shift in (0, 32)] + [len(mine)]
    return len(told)
