"""After a start: what became of the attempts that the last run left. Looks at intents and `ingest/`, never at blobs.

commit begun (its note is in the record)    finished: renamed if need be, the catalog told
older than 24 h, or no certain byte         removed
some bytes are certain                      kept, for `resume`
files without an intent                     removed
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import MAX_MANIFEST, ParsedManifest, parse_manifest
from proxy.oci.names import Repository
from proxy.store.catalog import Catalog
from proxy.store.files import CommitNote, Files
from proxy.store.records import Intent

MAX_AGE = 24 * 3600

_log = logging.getLogger(__name__)


async def recover(files: Files, catalog: Catalog, now: float) -> list[Intent]:
    """Return the attempts that can go on, oldest first, having ended all others."""
    interrupted: list[Intent] = []
    for intent in await catalog.intents():
        note = await asyncio.to_thread(files.note, intent)
        if note is not None:
            await finish(files, catalog, intent, note)
            continue
        contiguous = await asyncio.to_thread(files.trusted, intent)
        if contiguous and now - intent.created < MAX_AGE:
            interrupted.append(replace(intent, contiguous=contiguous))
            continue
        await asyncio.to_thread(files.remove_spool, intent.digest, intent.generation)
        await catalog.drop_intent(intent.digest, intent.generation)
    strays = await asyncio.to_thread(files.sweep_ingest, interrupted)
    if interrupted or strays:
        _log.info("%d interrupted fills can go on, %d files without one were removed", len(interrupted), strays)
    return interrupted


async def finish(files: Files, catalog: Catalog, intent: Intent, note: CommitNote) -> None:
    """Carry a commit that a crash cut to its end."""
    parsed: ParsedManifest | None = None
    await asyncio.to_thread(files.install, (intent.digest, intent.generation))
    if note.media_type is not None:
        parsed = await asyncio.to_thread(read_manifest, files, intent.digest, note.media_type)
    await catalog.store_blob(
        intent.digest,
        size=note.size,
        parsed=parsed,
        public=note.public,
        membership=(Repository(*note.repository), note.proof),
        generation=intent.generation,
    )
    await asyncio.to_thread(files.remove_spool, intent.digest, intent.generation)


def read_manifest(files: Files, digest: Digest, media_type: str | None) -> ParsedManifest | None:
    """Return the stored blob as a manifest, None if it is none. Blocks."""
    path = files.layout.blob(digest)
    if path.stat().st_size > MAX_MANIFEST:
        return None
    try:
        return parse_manifest(path.read_bytes(), media_type)
    except RegistryError:
        return None
