"""The catalog's schema and how a connection to it is opened. No queries.

Every replicated record carries `seq`, the change feed's cursor: one counter that grows with every write and is
stamped in the same transaction. Digests are text, `algorithm:hex`; times are seconds since the epoch; sizes bytes.

    blob        a digest that is or was stored; `children` counts the distinct children it requires, `missing` those
                of them that are not complete (see `closure`); `holders` counts the present manifests that name it or,
                as it refers to them, are its subject: what nobody holds is a root that may be evicted
    edge        a manifest names a child; once per pair, required if any mention is
    referrer    a manifest has a subject
    membership  a repository is proven to contain a digest (P43); `removed`: a tombstone, which proves nothing; `root`:
                regions compare it, as nothing named it when it was proven ('') or as it refers to that subject
    tag         a digest of NULL is a tombstone; `denied_at`, when this node's upstream last said that there is none,
                and `pending`, the digest that this node saw there at `pending_at` and does not serve yet, are nobody
                else's business: they change no digest and are not stamped; `others`, what else it was said to be (see
                `tagstate`)
    pin         kept from eviction; `removed`: a tombstone, which keeps nothing
    intent      an attempt at a blob; written before its spool exists; `reserved` bytes of the quota are kept for it
    trash       a digest that was evicted and whose file may still be in its place after a power loss
    counter     totals kept by triggers, so that nobody counts rows
    cursor      up to which `seq` of another catalog, named by its epoch, all records were taken over (see `feed`)
    upload      a digest that the bucket is still to be given; `held`: nobody may take it away before that
    root        what regions compare: the tags and the manifests at the top of `peer` (0: of this catalog). place: a
                hash of repository and key, in whose order ranges are compared; mark: a hash of what the record says;
                key: `t:<tag>` or `m:<digest>`, of this catalog's own alone (see `roots`)
    fingerprint the sum of the marks of one peer's repository (0: of all), as two halves, and their number; kept by
                triggers
    peer        other regions by name; mesh: the key of that region's hashes
    position    up to which `seq` of which epoch the feed of a peer was read
    pending     what a peer said and this catalog does not say yet: an image to be fetched before its tag may move, a
                removal that waits, a version from a clock ahead; `record` as on the wire, `error` why it was not done,
                `kind` one of `remote`'s
    conflict    the loser of two entries of a tag that did not know of each other, and who won; `''` is a removal
    hold        a digest that `holder` keeps from eviction until then (see `holding`)
    imported    a bundle, named by the digest of its plan, whose tags were published here
    meta        epoch, seq, clock, mesh

What is written below as tables is version 1; each later version is a step from the one before (`steps`). A new catalog
takes all steps, so that it cannot differ from one that was migrated.
"""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from proxy.store.errors import CatalogTooNew
from proxy.store.steps import STEPS

VERSION = 6
WRITER_CACHE_KIB = 32 * 1024

_TABLES = """
CREATE TABLE repository (
    id INTEGER PRIMARY KEY,
    upstream TEXT NOT NULL,
    path TEXT NOT NULL,
    UNIQUE (upstream, path)
);
CREATE TABLE blob (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    media_type TEXT,
    kind TEXT,
    present INTEGER NOT NULL,
    public INTEGER NOT NULL,
    children INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0,
    last_use REAL NOT NULL,
    stored_at REAL NOT NULL,
    seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE edge (
    parent TEXT NOT NULL REFERENCES blob (digest),
    child TEXT NOT NULL,
    position INTEGER NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    role TEXT NOT NULL,
    platform TEXT,
    required INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE TABLE referrer (
    subject TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blob (digest),
    artifact_type TEXT,
    PRIMARY KEY (subject, digest)
) WITHOUT ROWID;
CREATE TABLE membership (
    repository INTEGER NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL,
    proof TEXT NOT NULL,
    proved_at REAL NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE TABLE tag (
    repository INTEGER NOT NULL REFERENCES repository (id),
    name TEXT NOT NULL,
    digest TEXT,
    media_type TEXT,
    size INTEGER,
    version INTEGER NOT NULL,
    origin TEXT NOT NULL,
    observed_at REAL NOT NULL,
    checked_at REAL NOT NULL,
    denied_at REAL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
CREATE TABLE pin (
    repository INTEGER NOT NULL REFERENCES repository (id),
    reference TEXT NOT NULL,
    created REAL NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (repository, reference)
) WITHOUT ROWID;
CREATE TABLE intent (
    digest TEXT NOT NULL,
    generation INTEGER NOT NULL,
    size INTEGER,
    repository INTEGER NOT NULL REFERENCES repository (id),
    created REAL NOT NULL,
    PRIMARY KEY (digest, generation)
) WITHOUT ROWID;
CREATE TABLE counter (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    blobs INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    manifests INTEGER NOT NULL DEFAULT 0,
    repositories INTEGER NOT NULL DEFAULT 0,
    tags INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

_INDEXES = """
CREATE INDEX edge_child ON edge (child, size);
CREATE INDEX membership_digest ON membership (digest);
CREATE INDEX tag_digest ON tag (digest);
CREATE INDEX blob_seq ON blob (seq);
CREATE INDEX blob_last_use ON blob (last_use);
CREATE INDEX membership_seq ON membership (seq);
CREATE INDEX tag_seq ON tag (seq);
CREATE INDEX pin_seq ON pin (seq);
"""

_TRIGGERS = """
CREATE TRIGGER blob_added AFTER INSERT ON blob WHEN new.present BEGIN
    UPDATE counter SET blobs = blobs + 1, bytes = bytes + new.size,
        manifests = manifests + (new.media_type IS NOT NULL);
END;
CREATE TRIGGER blob_changed AFTER UPDATE OF present, size, media_type ON blob BEGIN
    UPDATE counter SET blobs = blobs + new.present - old.present,
        bytes = bytes + new.present * new.size - old.present * old.size,
        manifests = manifests + new.present * (new.media_type IS NOT NULL)
            - old.present * (old.media_type IS NOT NULL);
END;
CREATE TRIGGER repository_added AFTER INSERT ON repository BEGIN
    UPDATE counter SET repositories = repositories + 1;
END;
CREATE TRIGGER tag_added AFTER INSERT ON tag WHEN new.digest IS NOT NULL BEGIN
    UPDATE counter SET tags = tags + 1;
END;
CREATE TRIGGER tag_changed AFTER UPDATE OF digest ON tag BEGIN
    UPDATE counter SET tags = tags + (new.digest IS NOT NULL) - (old.digest IS NOT NULL);
END;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes, creating the schema or bringing it up to date. Blocks.

    Raises:
        CatalogTooNew: a newer version of the program has written it.
        sqlite3.DatabaseError: the file is damaged or cannot be used.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise CatalogTooNew(
                f"catalog {path} has schema {version}, this program knows up to {VERSION}: "
                "run the newer version, or give another data folder"
            )
        if version == 0:
            _create(connection)
        if version < VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read. Blocks."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA query_only = ON")
    return connection


def new_epoch() -> str:
    """Draw what names a catalog's history."""
    return secrets.token_hex(16)


def _create(connection: sqlite3.Connection) -> None:
    epoch = new_epoch()
    seed = f"""
        INSERT INTO counter (id) VALUES (1);
        INSERT INTO meta VALUES ('epoch', '{epoch}'), ('seq', 0), ('clock', 0);
        PRAGMA user_version = 1;
    """
    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} {_INDEXES} {_TRIGGERS} {seed} COMMIT;")


def _migrate(connection: sqlite3.Connection) -> None:
    """Take the steps that are missing, all or none. Whoever waited for another process's steps finds them done."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = int(connection.execute("PRAGMA user_version").fetchone()[0])
        for version in range(done + 1, VERSION + 1):
            for statement in STEPS[version]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
