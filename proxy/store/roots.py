"""What regions compare: a place and a mark for every root, both keyed hashes. Which records are roots is `changes`'s.

place: of repository and key, in whose order ranges are compared. mark: of what the record says, besides; marks are
added up to fingerprints. The key of the hashes, the mesh key, belongs to a catalog: without it nobody can look for
records whose marks cancel out. Triggers of the schema keep the rows of this catalog's own roots with the functions that
are registered here, whichever process writes; a connection that lacks them cannot write.
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

STEP_ROWS = 500
REKEYING = "rekeying"
"""The key in `meta` of how far own roots have been made anew under another mesh key."""

MESH = "SELECT value FROM meta WHERE key = 'mesh'"
CLEAR = "DELETE FROM root WHERE peer = 0 AND place IN (SELECT place FROM root WHERE peer = 0 LIMIT ?)"
TAGS = """
    INSERT INTO root (peer, place, repository, mark, key)
    SELECT 0, root_place(meta.value, upstream, path, 't:' || name), tag.repository,
        tag_mark(meta.value, upstream, path, name, digest, generation, version, base, origin, others), 't:' || name
    FROM tag INDEXED BY tag_seq CROSS JOIN repository ON repository.id = tag.repository
    CROSS JOIN meta ON meta.key = 'mesh'
    WHERE seq > :after AND seq <= :upto ON CONFLICT DO UPDATE SET mark = excluded.mark
"""
MEMBERSHIPS = """
    INSERT INTO root (peer, place, repository, mark, key)
    SELECT 0, root_place(meta.value, upstream, path, 'm:' || digest), membership.repository,
        membership_mark(meta.value, upstream, path, digest, version, removed, root), 'm:' || digest
    FROM membership INDEXED BY membership_root_seq CROSS JOIN repository ON repository.id = membership.repository
    CROSS JOIN meta ON meta.key = 'mesh'
    WHERE root IS NOT NULL AND seq > :after AND seq <= :upto ON CONFLICT DO UPDATE SET mark = excluded.mark
"""
UPTO_TAGS = "SELECT max(seq) FROM (SELECT seq FROM tag INDEXED BY tag_seq WHERE seq > ? ORDER BY seq LIMIT ?)"
UPTO_MEMBERSHIPS = (
    "SELECT max(seq) FROM (SELECT seq FROM membership INDEXED BY membership_root_seq "
    "WHERE root IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?)"
)
_FILLING = {"tags": (UPTO_TAGS, TAGS, "memberships"), "memberships": (UPTO_MEMBERSHIPS, MEMBERSHIPS, "")}


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


def register(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that the triggers call."""
    connection.create_function("root_place", 4, _place, deterministic=True)
    connection.create_function("tag_mark", 10, _mark_of_tag, deterministic=True)
    connection.create_function("membership_mark", 7, _mark_of_membership, deterministic=True)


def read_mesh(connection: sqlite3.Connection) -> bytes:
    """Return the mesh key of a catalog."""
    return bytes(connection.execute(MESH).fetchone()[0])


def rekey(transaction: Transaction, mesh: bytes) -> bool:
    """Give this catalog another mesh key, or go on with it: one step of STEP_ROWS rows. True while there is more.

    What is written meanwhile is under the new key; until the end own fingerprints are none.
    """
    connection = transaction.connection
    if read_mesh(connection) != mesh:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'mesh'", (mesh,))
        _note(connection, "clear")
        return True
    return go_on(transaction)


def go_on(transaction: Transaction) -> bool:
    """Take the next step of what `rekey` began, if it was ever cut short. True while there is more."""
    connection = transaction.connection
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (REKEYING,)).fetchone()
    if found is None:
        return False
    kind, _, after = str(found[0]).partition(":")
    if kind == "clear":
        if connection.execute(CLEAR, (STEP_ROWS,)).rowcount == 0:
            _note(connection, "tags:-1")
        return True
    upto_statement, fill, following = _FILLING[kind]
    upto = connection.execute(upto_statement, (int(after), STEP_ROWS)).fetchone()[0]
    if upto is not None:
        connection.execute(fill, {"after": int(after), "upto": upto})
        _note(connection, f"{kind}:{upto}")
    elif following:
        _note(connection, f"{following}:-1")
    else:
        connection.execute("DELETE FROM meta WHERE key = ?", (REKEYING,))
        return False
    return True


def _note(connection: sqlite3.Connection, progress: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (REKEYING, progress))


def _place(mesh: bytes, upstream: str, path: str, key: str) -> int:
    return _hash(mesh, b"place", (upstream, path, key))


def _mark_of_membership(
    mesh: bytes, upstream: str, path: str, digest: str, version: int, removed: int, root: str | None
) -> int:
    return _hash(mesh, b"membership", (upstream, path, digest, version, bool(removed), root))


def _mark_of_tag(
    mesh: bytes,
    upstream: str,
    path: str,
    name: str,
    digest: str | None,
    generation: int,
    version: int,
    base: int,
    origin: str,
    others: bytes | None,
) -> int:
    current = Past(digest, generation, version, base, origin, None, None, 0.0)
    return _mark_of_state(mesh, upstream, path, name, (current, *read_others(others)))


def _mark_of_state(mesh: bytes, upstream: str, path: str, name: str, state: State) -> int:
    says = [(entry.digest, entry.generation, entry.version, entry.base, entry.origin) for entry in state]
    return _hash(mesh, b"tag", (upstream, path, name, says))


def _hash(mesh: bytes, kind: bytes, said: Sequence[object]) -> int:
    hashed = hashlib.blake2b(_encode(said), digest_size=8, key=mesh, person=kind)
    return int.from_bytes(hashed.digest(), "big", signed=True)


_encode = msgspec.msgpack.Encoder().encode
