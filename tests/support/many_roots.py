"""Catalogs with very many roots, made by statements of their own: what a pull records one by one takes hours."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from proxy.oci.names import Repository
from proxy.store import schema
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.records import Proof
from proxy.store.remote import RootChange
from proxy.store.roots import Marks, read_mesh

TYPE = "application/vnd.oci.image.manifest.v1+json"
BORN = 1_700_000_000.0
CLOCK = int(BORN * 1000) << 16

_TAGS = """
    SELECT upstream, path, repository, name, version, digest, media_type, size, origin, observed_at, checked_at,
        generation, base
    FROM tag JOIN repository ON repository.id = tag.repository
"""
_TAG = f"{_TAGS} WHERE repository = ? AND name = ?"
_MEMBERSHIPS = """
    SELECT upstream, path, repository, digest, version
    FROM membership JOIN repository ON repository.id = membership.repository
"""


def build(path: Path, roots: int, repositories: int) -> None:
    """Make a catalog with so many roots, a tenth of them tags, the triggers keeping what regions compare."""
    with closing(schema.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -400000")
        connection.execute("BEGIN")
        names = [(number, "docker.io", f"team/app{number:06d}") for number in range(1, repositories + 1)]
        connection.executemany("INSERT INTO repository VALUES (?, ?, ?)", names)
        tags = roots // 10
        connection.executemany(
            "INSERT INTO membership (repository, digest, proof, proved_at, seq, version, removed, root) "
            "VALUES (?, ?, 'fetched', ?, ?, ?, 0, '')",
            _memberships(roots - tags, repositories),
        )
        connection.executemany(
            """
            INSERT INTO tag (repository, name, digest, media_type, size, version, origin, observed_at, checked_at, seq)
            VALUES (?, ?, ?, ?, 500, ?, 'a', ?, ?, ?)
            """,
            _tags(roots - tags, tags, repositories),
        )
        _root(connection)
        connection.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (roots,))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'clock'", (CLOCK + roots,))
        connection.execute("COMMIT")


def twin(source: Path, target: Path, peer: str) -> None:
    """Copy a catalog to another region that has read all of it, as the peer `peer`."""
    shutil.copyfile(source, target)
    with closing(schema.connect(target)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        (epoch, seq), (mesh,) = (
            connection.execute(
                "SELECT (SELECT value FROM meta WHERE key = 'epoch'), value FROM meta WHERE key = 'seq'"
            ).fetchone(),
            connection.execute("SELECT value FROM meta WHERE key = 'mesh'").fetchone(),
        )
        connection.execute("INSERT INTO peer (id, name, mesh) VALUES (1, ?, ?)", (peer, mesh))
        connection.execute("INSERT INTO position VALUES (1, ?, ?, 0)", (epoch, seq))
        connection.execute(
            "INSERT INTO root (peer, place, repository, mark) "
            "SELECT 1, place, repository, mark FROM root WHERE peer = 0"
        )
        connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (schema.new_epoch(),))
        connection.execute("COMMIT")


def move_tags(path: Path, count: int) -> None:
    """Move so many tags without a word in the feed, as a peer that has lost its history: its epoch is another."""
    with closing(schema.connect(path)) as connection:
        connection.execute("BEGIN")
        (most,) = connection.execute("SELECT count(*) FROM tag").fetchone()
        rows = connection.execute("SELECT repository, name, version FROM tag").fetchall()[:: max(1, most // count)][
            :count
        ]
        connection.executemany(
            "UPDATE tag SET digest = ?, base = version, version = ? WHERE repository = ? AND name = ?",
            [(_digest(-number), version + (1 << 40), row, name) for number, (row, name, version) in enumerate(rows, 1)],
        )
        _mark_anew(connection, [(row, name) for row, name, _ in rows])
        connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (schema.new_epoch(),))
        connection.execute("COMMIT")


def _root(connection: sqlite3.Connection) -> None:
    """Make the rows that regions compare, in the order of their places."""
    marks = Marks(read_mesh(connection))
    rows = []
    for upstream, path, row, *values in connection.execute(_TAGS):
        record: RootChange = TagChange(0, 0, *values)
        rows.append((marks.of(Repository(upstream, path), record), row))
    for upstream, path, row, digest, version in connection.execute(_MEMBERSHIPS):
        record = MembershipChange(0, 0, digest, version, False, Proof.FETCHED, BORN, "")
        rows.append((marks.of(Repository(upstream, path), record), row))
    rows.sort(key=lambda made: made[0][1])
    connection.executemany(
        "INSERT INTO root (peer, place, repository, mark, key) VALUES (0, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        ((place, row, mark, key) for (key, place, mark), row in rows),
    )


def _mark_anew(connection: sqlite3.Connection, tags: Sequence[tuple[int, str]]) -> None:
    marks = Marks(read_mesh(connection))
    for row, name in tags:
        upstream, path, _, *values = connection.execute(_TAG, (row, name)).fetchone()
        _, place, mark = marks.of(Repository(upstream, path), TagChange(0, 0, *values))
        connection.execute("UPDATE root SET mark = ? WHERE peer = 0 AND place = ?", (mark, place))


def _memberships(count: int, repositories: int) -> Iterator[tuple[object, ...]]:
    each = -(-count // repositories)
    number = 0
    for repository in range(1, repositories + 1):
        for digest in sorted(_digest(one) for one in range(number, min(count, number + each))):
            number += 1
            yield repository, digest, BORN, number, CLOCK + number


def _tags(begin: int, count: int, repositories: int) -> Iterator[tuple[object, ...]]:
    for number in range(count):
        seq = begin + number + 1
        name = f"v{number // repositories}"
        yield number % repositories + 1, name, _digest(number), TYPE, CLOCK + seq, BORN, BORN, seq


def _digest(number: int) -> str:
    return "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
