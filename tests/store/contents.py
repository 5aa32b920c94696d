"""Small images for the store's tests, declared by name."""

from __future__ import annotations

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import Child, Kind, ParsedManifest, Role
from proxy.oci.names import Repository
from proxy.oci.platforms import Platform
from proxy.store.catalog import Catalog, Proof

ALPINE = Repository("docker.io", "library/alpine")
BUSYBOX = Repository("docker.io", "library/busybox")
TYPES: dict[Kind, str] = {
    "image": "application/vnd.oci.image.manifest.v1+json",
    "artifact": "application/vnd.oci.image.manifest.v1+json",
    "index": "application/vnd.oci.image.index.v1+json",
    "other": "application/vnd.example",
}


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def child(
    name: str, role: Role = "layer", *, required: bool = True, size: int | None = None, platform: Platform | None = None
) -> Child:
    descriptor = Descriptor("application/octet-stream", digest(name), len(name) if size is None else size)
    return Child(descriptor, role, platform, required)


def parsed(kind: Kind, *children: Child, subject: str | None = None) -> ParsedManifest:
    about = Descriptor(TYPES["image"], digest(subject), len(subject)) if subject else None
    return ParsedManifest(TYPES[kind], kind, children, about, None)


async def put(
    catalog: Catalog,
    name: str,
    manifest: ParsedManifest | None = None,
    *,
    repository: Repository | None = ALPINE,
    public: bool = False,
) -> Digest:
    """Record the blob `name`, as if its file were there."""
    membership = (repository, Proof.FETCHED) if repository else None
    await catalog.store_blob(digest(name), size=len(name), parsed=manifest, public=public, membership=membership)
    return digest(name)


async def lose(catalog: Catalog, name: str) -> None:
    await catalog.lose_blob(digest(name), lambda: False)
