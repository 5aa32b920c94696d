"""The steps that make each version of the catalog's schema out of the one before it. What they make is in `schema`."""

from __future__ import annotations

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
    "INSERT INTO meta VALUES ('mesh', randomblob(32))",
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
    "CREATE INDEX conflict_found ON conflict (found_at)",
    """
    CREATE TRIGGER root_added AFTER INSERT ON root BEGIN
        INSERT INTO fingerprint (peer, repository, low, high, records)
            VALUES (new.peer, 0, new.mark & 0xffffffff, (new.mark >> 32) & 0xffffffff, 1),
                (new.peer, new.repository, new.mark & 0xffffffff, (new.mark >> 32) & 0xffffffff, 1)
            ON CONFLICT DO UPDATE SET low = low + excluded.low, high = high + excluded.high, records = records + 1;
    END
    """,
    """
    CREATE TRIGGER root_changed AFTER UPDATE OF mark ON root BEGIN
        UPDATE fingerprint SET low = low + (new.mark & 0xffffffff) - (old.mark & 0xffffffff),
            high = high + ((new.mark >> 32) & 0xffffffff) - ((old.mark >> 32) & 0xffffffff)
            WHERE peer = new.peer AND repository IN (0, new.repository);
    END
    """,
    """
    CREATE TRIGGER root_dropped AFTER DELETE ON root BEGIN
        UPDATE fingerprint SET low = low - (old.mark & 0xffffffff), high = high - ((old.mark >> 32) & 0xffffffff),
            records = records - 1 WHERE peer = old.peer AND repository IN (0, old.repository);
    END
    """,
    """
    UPDATE membership SET root = coalesce((SELECT max(subject) FROM referrer WHERE digest = membership.digest), '')
        WHERE EXISTS (SELECT 1 FROM blob WHERE digest = membership.digest AND media_type IS NOT NULL)
        AND (EXISTS (SELECT 1 FROM referrer WHERE digest = membership.digest)
            OR NOT EXISTS (SELECT 1 FROM edge WHERE child = membership.digest))
    """,
    "CREATE INDEX membership_root_seq ON membership (seq) WHERE root IS NOT NULL",
    # Other nodes of a fleet know of roots that this one does not, and tell it without a new `seq`.
    "DELETE FROM cursor",
    # The rows are made by steps, as after another mesh key.
    "INSERT INTO meta SELECT 'rekeying', 'tags:-1' WHERE EXISTS (SELECT 1 FROM tag) "
    "OR EXISTS (SELECT 1 FROM membership)",
)

_BUNDLES = (
    "CREATE TABLE hold (digest TEXT NOT NULL, holder TEXT NOT NULL, until REAL NOT NULL, "
    "PRIMARY KEY (digest, holder)) WITHOUT ROWID",
    "CREATE INDEX hold_holder ON hold (holder, digest)",
    "CREATE INDEX hold_until ON hold (until)",
    "CREATE TABLE imported (plan TEXT PRIMARY KEY, series TEXT NOT NULL, created INTEGER NOT NULL, "
    "at REAL NOT NULL) WITHOUT ROWID",
)

STEPS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE tag ADD COLUMN pending TEXT",
        "ALTER TABLE tag ADD COLUMN pending_at REAL",
    ),
    3: _EVICTION,
    4: _FLEET,
    5: _REGIONS,
    6: _BUNDLES,
}
"""The statements that make each version out of the one before it."""
