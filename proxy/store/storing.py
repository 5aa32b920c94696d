"""Recording a verified, durable blob in the catalog: what it is and names, who contains it, whether it is uploaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Repository
from proxy.store import changes, closure, uploading
from proxy.store.records import Proof
from proxy.store.writer import Transaction


@dataclass(frozen=True, slots=True)
class Storing:
    """What is recorded, `size` in bytes. generation: of the intent that ends by it. As `Catalog.store_blob` says."""

    digest: Digest
    size: int
    parsed: ParsedManifest | None
    public: bool
    membership: tuple[Repository, Proof] | None
    generation: int | None = None
    shared: bool = False


def store(
    transaction: Transaction,
    blob: Storing,
    now: float,
    changed: Callable[[list[str]], None],
    queued: Callable[[], None],
) -> None:
    """Record it. Idempotent. changed: hears of digests whose records are others now; queued: of something to upload."""
    digest = blob.digest
    imported = blob.membership is not None and blob.membership[1] is Proof.IMPORTED
    wanted = uploading.wants(transaction, digest, public=blob.public, shared=blob.shared, imported=imported)
    closure.record_blob(
        transaction, digest, size=blob.size, parsed=blob.parsed, public=blob.public, now=now, changed=changed
    )
    if blob.parsed is not None:
        changes.mark_roots(transaction, digest)
    if blob.membership is not None:
        changes.prove(transaction, blob.membership[0], digest, blob.membership[1], now)
    if blob.generation is not None:
        changes.drop_intent(transaction, digest, blob.generation)
    if uploading.recorded(transaction, digest, now, wanted=wanted, held=imported):
        transaction.on_commit(queued)
