"""What regions compare: a place and a mark for every root, both keyed hashes. Which records are roots is `changes`'s.

place: of repository and key, in whose order ranges are compared. mark: of what the record says, besides; marks are
added up to fingerprints. The key of the hashes, the mesh key, belongs to a catalog: without it nobody can look for
records whose marks cancel out. Whoever writes a tag or a membership keeps its row here in the same transaction, with
`keep_tag` and `keep_membership`; fingerprints follow by triggers. A membership that is no root costs nothing more so.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from proxy.oci.names import Repository
from proxy.store.exchanged import MembershipChange, Past, TagChange
from proxy.store.tagstate import State, read_others, state_of

if TYPE_CHECKING:
    from proxy.store.writer import Transaction

STEP_ROWS = 4000
"""So many take some 60 ms, at a start, when nobody else writes; a sync per step costs more than they do."""
REKEYING = "rekeying"
"""The key in `meta` of how far own roots have been made anew under another mesh key."""

MESH = "SELECT value FROM meta WHERE key = 'mesh'"
CLEAR = "DELETE FROM root WHERE peer = 0 AND place IN (SELECT place FROM root WHERE peer = 0 LIMIT ?)"
KEEP = """
    INSERT INTO root (peer, place, repository, mark, key) VALUES (0, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET mark = excluded.mark
"""
TAGS = """
    SELECT seq, repository, name, digest, generation, version, base, origin, media_type, size, observed_at, others
    FROM tag INDEXED BY tag_seq WHERE seq > ? ORDER BY seq LIMIT ?
"""
MEMBERSHIPS = """
    SELECT seq, repository, digest, version, removed, root
    FROM membership INDEXED BY membership_root_seq WHERE root IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?
"""
STATEMENTS = (MESH, CLEAR, KEEP, TAGS, MEMBERSHIPS)


class Marks:
    """The hashes of one catalog's mesh key."""

    def __init__(self, mesh: bytes) -> None:
        self._mesh = mesh

    def place(self, repository: Repository, key: str) -> int:
        """Return where the record of this key is, as a signed number of 64 bits."""
        return _place(self._mesh, *repository, key)

    def of(self, repository: Repository, change: TagChange | MembershipChange) -> tuple[str, int, int]:
        """Return key, place and mark of a record; a membership must be a root."""
        if isinstance(change, TagChange):
            key, mark = f"t:{change.name}", _mark_of_state(self._mesh, *repository, change.name, state_of(change))
        else:
            key = f"m:{change.digest}"
            mark = _mark_of_membership(
                self._mesh, *repository, change.digest, change.version, change.removed, change.root
            )
        return key, self.place(repository, key), mark


def keep_tag(transaction: Transaction, repository: int, name: str, state: State) -> None:
    """Keep the row of a tag of this catalog, which is `state` now."""
    names, mesh = transaction.name(repository), transaction.mesh
    mark = _mark_of_state(mesh, *names, name, state)
    _keep(transaction, repository, _place(mesh, *names, f"t:{name}"), mark, f"t:{name}")


def keep_membership(
    transaction: Transaction, repository: int, digest: str, version: int, removed: bool, root: str | None
) -> None:
    """Keep the row of a membership of this catalog; what is no root (None) has none."""
    if root is None:
        return
    names, mesh = transaction.name(repository), transaction.mesh
    mark = _mark_of_membership(mesh, *names, digest, version, removed, root)
    _keep(transaction, repository, _place(mesh, *names, f"m:{digest}"), mark, f"m:{digest}")


def read_mesh(connection: sqlite3.Connection) -> bytes:
    """Return the mesh key of a catalog."""
    return bytes(connection.execute(MESH).fetchone()[0])


def rekey(transaction: Transaction, mesh: bytes) -> bool:
    """Give this catalog another mesh key, or go on with it: one step of STEP_ROWS rows. True while there is more.

    What is written meanwhile is under the new key; until the end own fingerprints are none.
    """
    if transaction.mesh == mesh:
        return go_on(transaction)
    transaction.connection.execute("UPDATE meta SET value = ? WHERE key = 'mesh'", (mesh,))
    _note(transaction.connection, "clear")
    transaction.mesh = mesh
    return True


def go_on(transaction: Transaction) -> bool:
    """Take the next step of what `rekey`, or a migration, began, if it was ever cut short. True while there is more."""
    connection = transaction.connection
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (REKEYING,)).fetchone()
    if found is None:
        return False
    kind, _, after = str(found[0]).partition(":")
    if kind == "clear":
        if connection.execute(CLEAR, (STEP_ROWS,)).rowcount == 0:
            _note(connection, "tags:-1")
        return True
    rows = connection.execute(TAGS if kind == "tags" else MEMBERSHIPS, (int(after), STEP_ROWS)).fetchall()
    if kind == "tags":
        for _, repository, name, *entry, others in rows:
            keep_tag(transaction, repository, name, (Past(*entry), *read_others(others)))
    else:
        for _, *membership in rows:
            keep_membership(transaction, *membership)
    if rows:
        _note(connection, f"{kind}:{rows[-1][0]}")
    elif kind == "tags":
        _note(connection, "memberships:-1")
    else:
        connection.execute("DELETE FROM meta WHERE key = ?", (REKEYING,))
        return False
    return True


def _note(connection: sqlite3.Connection, progress: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (REKEYING, progress))


def _keep(transaction: Transaction, repository: int, place: int, mark: int, key: str) -> None:
    transaction.connection.execute(KEEP, (place, repository, mark, key))


def _place(mesh: bytes, upstream: str, path: str, key: str) -> int:
    return _hash(mesh, b"place", (upstream, path, key))


def _mark_of_membership(
    mesh: bytes, upstream: str, path: str, digest: str, version: int, removed: int, root: str | None
) -> int:
    return _hash(mesh, b"membership", (upstream, path, digest, version, bool(removed), root))


def _mark_of_state(mesh: bytes, upstream: str, path: str, name: str, state: State) -> int:
    says = [(entry.digest, entry.generation, entry.version, entry.base, entry.origin) for entry in state]
    return _hash(mesh, b"tag", (upstream, path, name, says))


def _hash(mesh: bytes, kind: bytes, said: Sequence[object]) -> int:
    hashed = hashlib.blake2b(_encode(said), digest_size=8, key=mesh, person=kind)
    return int.from_bytes(hashed.digest(), "big", signed=True)


_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
