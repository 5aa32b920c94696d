"""The catalog's schema and how a connection to it is opened. No queries.

Every replicated record carries `seq`, the change feed's cursor: one counter that grows with every write and is
stamped in the same transaction. Digests are text, `algorithm:hex`; times are seconds since the epoch; sizes bytes.

    blob        a digest that is or was stored; `children` counts the distinct children it requires, `missing` those
                of them that are not complete (see `closure`); `holders` counts the present manifests that name it or,
                as it refers to them, are its subject: what nobody holds is a root that may be evicted
    edge        a manifest names a child; once per pair, required if any mention is
    referrer    a manifest has a subject
    membership  a repository is proven to contain a digest (P43); `removed`: a tombstone, which proves nothing
    tag         a digest of NULL is a tombstone; `denied_at`, when this node's upstream last said that there is none,
                and `pending`, the digest that this node saw there at `pending_at` and does not serve yet, are nobody
                else's business: they change no digest and are not stamped
    pin         kept from eviction; `removed`: a tombstone, which keeps nothing
    intent      an attempt at a blob; written before its spool exists; `reserved` bytes of the quota are kept for it
    trash       a digest that was evicted and whose file may still be in its place after a power loss
    counter     totals kept by triggers, so that nobody counts rows
    cursor      up to which `seq` of another catalog, named by its epoch, all records were taken over (see `feed`)
    upload      a digest that the bucket is still to be given; `held`: nobody may take it away before that
    root        what regions compare: the tags and the manifests at the top of `peer` (0: of this catalog, kept by
                triggers). place: a hash of repository and key, in whose order ranges are compared; mark: a hash of what
                the record says; key: `t:<tag>` or `m:<digest>`, of this catalog's own alone (see `roots`)
    fingerprint the sum of the marks of one peer's repository, as two halves, and their number; kept by triggers
    peer        other regions by name; mesh: the key of that region's hashes
    position    up to which `seq` of which epoch the feed of a peer was read
    pending     what a peer said and this catalog does not say yet: an image to be fetched before its tag may move, a
                removal that waits, a version from a clock ahead; `record` as on the wire, `error` why it was not done,
                `kind` one of `remote`'s
    conflict    the loser of two records that did not know of each other, and who won
    meta        epoch, seq, clock, mesh

What is written below as tables is version 1; each later version is a step from the one before. A new catalog takes
all steps, so that it cannot differ from one that was migrated.
"""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from proxy.store.errors import CatalogTooNew

VERSION = 5
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

_HOLDERS = """
    (SELECT count(*) FROM edge CROSS JOIN blob AS parent ON parent.digest = edge.parent
        WHERE edge.child = blob.digest AND parent.present)
    + (SELECT count(*) FROM referrer CROSS JOIN blob AS subject ON subject.digest = referrer.subject
        WHERE referrer.digest = blob.digest AND subject.present)
"""
_EVICTION = (
    "ALTER TABLE blob ADD COLUMN holders INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE intent ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0",
    "UPDATE intent SET reserved = coalesce(size, 0)",
    "CREATE TABLE trash (digest TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (digest, number)) WITHOUT ROWID",
    "CREATE INDEX referrer_digest ON referrer (digest)",
    "CREATE INDEX pin_reference ON pin (reference)",
    f"UPDATE blob SET holders = {_HOLDERS}",
    "DROP INDEX blob_last_use",
    "CREATE INDEX blob_idle ON blob (last_use) WHERE present AND holders = 0",
    f"""
    CREATE TRIGGER blob_held AFTER INSERT ON blob BEGIN
        UPDATE blob SET holders = {_HOLDERS} WHERE digest = new.digest;
        UPDATE blob SET holders = holders + new.present
            WHERE digest IN (SELECT digest FROM referrer WHERE subject = new.digest);
    END
    """,
    """
    CREATE TRIGGER blob_holds AFTER UPDATE OF present ON blob WHEN new.present <> old.present BEGIN
        UPDATE blob SET holders = holders + new.present - old.present
            WHERE digest IN (SELECT child FROM edge WHERE parent = new.digest);
        UPDATE blob SET holders = holders + new.present - old.present
            WHERE digest IN (SELECT digest FROM referrer WHERE subject = new.digest);
    END
    """,
    """
    CREATE TRIGGER edge_holds AFTER INSERT ON edge BEGIN
        UPDATE blob SET holders = holders + (SELECT present FROM blob WHERE digest = new.parent)
            WHERE digest = new.child;
    END
    """,
    f"""
    CREATE TRIGGER subject_holds AFTER INSERT ON referrer BEGIN
        UPDATE blob SET holders = {_HOLDERS} WHERE digest = new.digest;
    END
    """,
)

_FLEET = (
    "ALTER TABLE membership ADD COLUMN version INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE membership ADD COLUMN removed INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE pin ADD COLUMN version INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE pin ADD COLUMN removed INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE cursor (epoch TEXT PRIMARY KEY, node TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL)",
    "CREATE TABLE upload (digest TEXT PRIMARY KEY, since REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, "
    "next_at REAL NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
    "CREATE INDEX upload_next ON upload (next_at)",
)

_REGIONS = (
    "ALTER TABLE tag ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tag ADD COLUMN base INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tag ADD COLUMN others BLOB",
    "ALTER TABLE membership ADD COLUMN root TEXT",
    "CREATE INDEX membership_root_seq ON membership (seq) WHERE root IS NOT NULL",
    "CREATE TABLE peer (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, mesh BLOB)",
    "CREATE TABLE position (peer INTEGER NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, "
    "PRIMARY KEY (peer, epoch)) WITHOUT ROWID",
    "CREATE TABLE root (peer INTEGER NOT NULL, place INTEGER NOT NULL, repository INTEGER NOT NULL, "
    "mark INTEGER NOT NULL, key TEXT, PRIMARY KEY (peer, place)) WITHOUT ROWID",
    "CREATE TABLE fingerprint (peer INTEGER NOT NULL, repository INTEGER NOT NULL, low INTEGER NOT NULL, "
    "high INTEGER NOT NULL, records INTEGER NOT NULL, PRIMARY KEY (peer, repository)) WITHOUT ROWID",
    "CREATE TABLE pending (peer INTEGER NOT NULL, place INTEGER NOT NULL, repository INTEGER NOT NULL, "
    "key TEXT NOT NULL, kind INTEGER NOT NULL, record BLOB NOT NULL, since REAL NOT NULL, "
    "tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0, error TEXT, "
    "PRIMARY KEY (peer, place)) WITHOUT ROWID",
    "CREATE INDEX pending_next ON pending (peer, next_at)",
    "CREATE INDEX pending_repository ON pending (peer, repository, next_at)",
    "CREATE INDEX pending_kind ON pending (peer, kind, since, next_at)",
    "CREATE TABLE conflict (repository INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, "
    "version INTEGER NOT NULL, origin TEXT NOT NULL, winner TEXT NOT NULL, winner_origin TEXT NOT NULL, "
    "found_at REAL NOT NULL, PRIMARY KEY (repository, name, digest, version)) WITHOUT ROWID",
    """
    CREATE TRIGGER root_added AFTER INSERT ON root BEGIN
        INSERT INTO fingerprint (peer, repository, low, high, records)
            VALUES (new.peer, new.repository, new.mark & 0xffffffff, (new.mark >> 32) & 0xffffffff, 1)
            ON CONFLICT DO UPDATE SET low = low + excluded.low, high = high + excluded.high, records = records + 1;
    END
    """,
    """
    CREATE TRIGGER root_changed AFTER UPDATE OF mark ON root BEGIN
        UPDATE fingerprint SET low = low + (new.mark & 0xffffffff) - (old.mark & 0xffffffff),
            high = high + ((new.mark >> 32) & 0xffffffff) - ((old.mark >> 32) & 0xffffffff)
            WHERE peer = new.peer AND repository = new.repository;
    END
    """,
    """
    CREATE TRIGGER root_dropped AFTER DELETE ON root BEGIN
        UPDATE fingerprint SET low = low - (old.mark & 0xffffffff), high = high - ((old.mark >> 32) & 0xffffffff),
            records = records - 1 WHERE peer = old.peer AND repository = old.repository;
    END
    """,
)

_STEPS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE tag ADD COLUMN pending TEXT",
        "ALTER TABLE tag ADD COLUMN pending_at REAL",
    ),
    3: _EVICTION,
    4: _FLEET,
    5: _REGIONS,
}
"""The statements that make each version out of the one before it."""


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
            for statement in _STEPS[version]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
