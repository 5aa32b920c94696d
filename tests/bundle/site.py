"""A site that bundles are imported into, in this process, and what its catalog says afterwards."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from entrepot.config import Config, load
from entrepot.importing import ImportEvent, ImportReport, ImportRequest, import_bundles
from sync.bundle.plan import Base, Plan, Required

_TAGS = """
    SELECT upstream || '/' || path || ':' || name, tag.digest FROM tag JOIN repository ON repository.id = tag.repository
"""
_HALF = """
    SELECT name FROM tag LEFT JOIN blob ON blob.digest = tag.digest
    WHERE tag.digest IS NOT NULL AND (blob.present IS NOT 1 OR blob.missing > 0)
"""
_MEMBERS = """
    SELECT upstream || '/' || path, membership.digest FROM membership
    JOIN repository ON repository.id = membership.repository WHERE NOT removed
"""


class Site:
    """A data folder and its configuration; `told` is what the last import reported on the way."""

    def __init__(self, folder: Path, **flags: object) -> None:
        self.data = folder / "data"
        self.config: Config = load(None, {}, {"data": str(self.data), **flags})
        self.told: list[ImportEvent] = []

    def configure(self, **changes: Any) -> None:
        """Change the configuration."""
        self.config = msgspec.structs.replace(self.config, **changes)

    async def take(self, *paths: Path, **request: Any) -> ImportReport:
        """Import volumes. Raises as `import_bundles`."""
        self.told = []
        return await import_bundles(self.config, ImportRequest(paths=paths, **request), self.told.append)

    async def take_again(self, *paths: Path, **request: Any) -> ImportReport:
        """As `take`, with `told` as it is."""
        return await import_bundles(self.config, ImportRequest(paths=paths, **request), self.told.append)

    def tags(self) -> dict[str, str | None]:
        """Return what every tag is, None for one that was removed."""
        return dict(self._read(_TAGS))

    def half(self) -> list[Any]:
        """Return the tags that are shown and not whole."""
        return self._read(_HALF)

    def members(self) -> set[tuple[str, str]]:
        """Return which repository is proven to contain what."""
        return set(self._read(_MEMBERS))

    def stored(self) -> set[str]:
        """Return the digests that are stored."""
        return {digest for (digest,) in self._read("SELECT digest FROM blob WHERE present")}

    def holders(self) -> dict[str, int]:
        """Return who holds how many digests."""
        return dict(self._read("SELECT holder, count(*) FROM hold GROUP BY holder"))

    def seq(self) -> Any:
        """Return the number of the last write."""
        return self._read("SELECT value FROM meta WHERE key = 'seq'")

    def leftovers(self) -> list[Path]:
        """Return what an import that is over must not leave."""
        spools = [path for path in (self.data / "ingest").glob("*") if path.suffix != ".lock"]
        return [*spools, *(self.data / "bundles" / "imports").glob("*"), *self.data.rglob("*.partial")]

    def _read(self, statement: str) -> list[Any]:
        if not (self.data / "catalog.sqlite").exists():
            return []
        with closing(sqlite3.connect(f"file:{self.data / 'catalog.sqlite'}?mode=ro", uri=True)) as catalog:
            return catalog.execute(statement).fetchall()


def without(plan: Plan, digests: set[str], label: str = "the bundle before") -> Plan:
    """Return the plan as that of a thin bundle, which requires these digests."""
    return msgspec.structs.replace(
        plan,
        blobs=tuple(blob for blob in plan.blobs if blob.digest not in digests),
        requires=tuple(Required(one.digest, one.size, one.repository) for one in plan.blobs if one.digest in digests),
        bases=(Base("bundle", "sha256:" + "ab" * 32, label),),
    )


def flipped(path: Path, at: int, target: Path) -> Path:
    """Write a copy with one bit turned."""
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    target.write_bytes(body)
    return target
