"""Small blobs of a volume, taken in many at once: which ones, and their bytes, read and verified. Blocks: for threads.

To store one blob costs some syncs and two transactions; many that lie one behind the other share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import parse_manifest
from proxy.store.records import Verified
from proxy.store.together import MOST
from sync.bundle.errors import BundleError, Damaged
from sync.bundle.layout import BlobPart, Entry, digest_at
from sync.bundle.volume import Volume

SMALL = 256 << 10
MOST_BYTES = 2 << 20


def turns(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Cut the entries of a volume into what is done at once: whole small blobs together, everything else alone."""
    gathered: list[Entry] = []
    size = 0
    for entry in entries:
        if not is_small(entry):
            if gathered:
                yield gathered
            gathered, size = [], 0
            yield [entry]
            continue
        if len(gathered) >= MOST or size + entry.size > MOST_BYTES:
            yield gathered
            gathered, size = [], 0
        gathered.append(entry)
        size += entry.size
    if gathered:
        yield gathered


def is_small(entry: Entry) -> bool:
    """Tell whether an entry is a whole blob that is stored together with others."""
    return isinstance(entry.part, BlobPart) and entry.part.whole and entry.size <= SMALL


def read_small(volume: Volume, place: int, entry: Entry) -> Verified:
    """Return a small blob, the plan's one at `place`. Raises Damaged that names it, BundleError, OSError."""
    plan = volume.sealed.plan
    blob, digest = plan.blobs[place], digest_at(plan, place)
    volume.check_frame(entry)
    body = volume.read(entry.data, entry.size)
    if Digest.of(body, digest.algorithm) != digest:
        volume.check_blob(entry)
        raise Damaged(f"{volume.label}: {volume.describe(entry)} was right when it was read again: copy it again")
    try:
        parsed = parse_manifest(body, blob.media_type) if blob.media_type is not None else None
    except RegistryError as error:
        raise BundleError(f"{volume.label}: {entry.name} cannot be taken in: {error.message}") from error
    return Verified(digest, body, plan.names[blob.repository], parsed)
