"""The statements that read the catalog. Those of SERVING may not scan a table: tests read their query plans."""

from __future__ import annotations

_REPOSITORY = "(SELECT id FROM repository WHERE upstream = ? AND path = ?)"

TAG = f"""
    SELECT digest, media_type, size, version, origin, observed_at, checked_at, denied_at, pending, pending_at,
        others
    FROM tag WHERE repository = {_REPOSITORY} AND name = ? AND digest IS NOT NULL
"""
TAG_CHANGE = f"""
    SELECT 0, 0, name, version, digest, media_type, size, origin, observed_at, checked_at, generation, base, others
    FROM tag WHERE repository = {_REPOSITORY} AND name = ?
"""
TAGS = f"""
    SELECT name FROM tag
    WHERE repository = {_REPOSITORY} AND name > ? AND digest IS NOT NULL
        AND checked_at >= ? AND (denied_at IS NULL OR denied_at < checked_at)
    ORDER BY name LIMIT ?
"""
REFERRERS = f"""
    SELECT referrer.digest, media_type, size, artifact_type
    FROM referrer JOIN blob ON blob.digest = referrer.digest AND present
    CROSS JOIN membership ON membership.repository = {_REPOSITORY} AND membership.digest = referrer.digest
        AND NOT membership.removed
    WHERE subject = ? ORDER BY referrer.digest LIMIT ?
"""
REPOSITORIES = """
    SELECT upstream || '/' || path AS name FROM repository
    WHERE name > ? AND EXISTS (SELECT 1 FROM membership WHERE repository = id AND NOT removed) ORDER BY name LIMIT ?
"""
MEMBERSHIP = f"SELECT 1 FROM membership WHERE repository = {_REPOSITORY} AND digest = ? AND NOT removed"
NAMED_IN = f"""
    SELECT 1 FROM edge CROSS JOIN membership ON membership.repository = {_REPOSITORY}
        AND membership.digest = edge.parent AND NOT membership.removed
    WHERE edge.child = ? LIMIT 1
"""
BLOB = """
    SELECT size, media_type, present, public,
        present AND (missing = 0 OR (kind = 'index' AND missing < children)), present AND missing = 0
    FROM blob WHERE digest = ?
"""
EXPECTED_SIZE = """
    SELECT coalesce((SELECT size FROM blob WHERE digest = :digest),
        (SELECT CASE WHEN least = most THEN least END FROM (
            SELECT (SELECT min(size) FROM edge WHERE child = :digest) AS least,
                (SELECT max(size) FROM edge WHERE child = :digest) AS most)))
"""
CHILDREN = """
    SELECT child, media_type, size, role, platform, required FROM edge WHERE parent = ? ORDER BY position
"""
INTENTS = """
    SELECT digest, generation, size, upstream, path, created
    FROM intent JOIN repository ON repository.id = intent.repository ORDER BY generation
"""
INTENTS_OF = """
    SELECT digest, generation, size, upstream, path, created
    FROM intent JOIN repository ON repository.id = intent.repository WHERE digest = ? ORDER BY generation
"""
SHELF = "SELECT digest, size FROM blob WHERE digest >= ? AND digest < ? AND present"
META = "SELECT value FROM meta WHERE key = ?"
TOTALS = "SELECT blobs, bytes, manifests, repositories, tags FROM counter"

SERVING = (TAG, TAG_CHANGE, TAGS, REFERRERS, MEMBERSHIP, NAMED_IN, BLOB, EXPECTED_SIZE, CHILDREN, INTENTS_OF)
