"""Which repository is known to contain which digest: knowing a digest is no permission (P43)."""

from __future__ import annotations

from proxy.cache.negatives import Negatives
from proxy.cache.once import Background, SingleFlight
from proxy.cache.sources import Upstreams
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BlobUnknown, ManifestUnknown, Unavailable
from proxy.oci.names import Repository
from proxy.store.catalog import BlobRecord, Catalog, Proof

UNHEARD_SECONDS = 5.0


class Unheard(Unavailable):
    """It is known to be somewhere; who was asked has not got it, and one who may have it did not answer."""


class Membership:
    """Proofs from the catalog, or from the repository's own upstream."""

    def __init__(self, catalog: Catalog, negatives: Negatives, upstreams: Upstreams, background: Background) -> None:
        self._catalog = catalog
        self._negatives = negatives
        self._upstreams = upstreams
        self._asking: SingleFlight[tuple[Repository, Digest, bool], Descriptor] = SingleFlight(background)

    async def known(self, repository: Repository, digest: Digest, record: BlobRecord) -> bool:
        """Tell whether the catalog proves it: a proof of its own, or a public blob that a member names."""
        if await self._catalog.has_membership(repository, digest):
            return True
        return record.public and await self._catalog.named_in(repository, digest)

    async def require_blob(self, repository: Repository, digest: Digest, record: BlobRecord) -> None:
        """Return when `repository` contains the blob. Raises BlobUnknown, or Transient when nobody can say."""
        if not await self.known(repository, digest, record):
            await self.stat_blob(repository, digest)

    async def require_manifest(self, repository: Repository, digest: Digest, record: BlobRecord) -> None:
        """Return when `repository` contains the manifest. Raises ManifestUnknown or Transient."""
        if not await self.known(repository, digest, record):
            await self.stat_manifest(repository, digest)

    async def doubt(self, repository: Repository, digest: Digest, unheard: str) -> None:
        """Raise Unheard where the repository is known to contain what was found nowhere, and one was not heard.

        unheard: a region that may have it and did not say, "" for none. The upstream's no is not the last word then.
        """
        if unheard and (
            await self._catalog.has_membership(repository, digest) or await self._catalog.named_in(repository, digest)
        ):
            raise Unheard(
                f"{repository} is known to contain {digest}: its upstream does not give it, and region {unheard}, which"
                " may have it, does not answer",
                retry_after=UNHEARD_SECONDS,
            )

    async def vouch(self, repository: Repository, digest: Digest, public: bool, *, manifest: bool = False) -> None:
        """Return when `repository` contains what somebody near has of it, who may know it to be `public`.

        Where the catalog does not prove it the upstream is asked. Raises as `require_blob`.
        """
        if await self._catalog.has_membership(repository, digest):
            return
        if public and await self._catalog.named_in(repository, digest):
            return
        await self._ask(repository, digest, manifest=manifest)

    async def stat_manifest(self, repository: Repository, digest: Digest) -> Descriptor:
        """Ask upstream for the manifest by HEAD and keep the proof. Raises ManifestUnknown, Transient."""
        return await self._ask(repository, digest, manifest=True)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """Ask upstream for the blob by HEAD and keep the proof. Raises BlobUnknown, Transient."""
        return await self._ask(repository, digest, manifest=False)

    async def _ask(self, repository: Repository, digest: Digest, *, manifest: bool) -> Descriptor:
        async def work() -> Descriptor:
            if manifest:
                found = await self._upstreams.ask(repository, lambda s: s.resolve(repository, digest), ManifestUnknown)
            else:
                found = await self._upstreams.ask(repository, lambda s: s.stat_blob(repository, digest), BlobUnknown)
            await self._catalog.prove(repository, digest, Proof.HEAD)
            return found

        key = (repository, digest, manifest)
        return await self._negatives.run(
            "manifest" if manifest else "blob", repository, digest, lambda: self._asking.run(key, work)
        )
