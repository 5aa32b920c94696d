"""What the catalog and the store give back: plain values, no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Repository, Tag


class Proof(enum.StrEnum):
    """Why a repository is known to contain a digest (P43)."""

    FETCHED = "fetched"
    HEAD = "head"
    IMPORTED = "imported"
    SYNCED = "synced"


@dataclass(frozen=True, slots=True)
class TagRecord:
    """A tag as last seen.

    version: hybrid logical clock, changes only when the digest does. observed_at: when this digest was first
    seen there, checked_at: when it was last confirmed, denied_at: when it was last refused, by 401, 403 or 404; all in
    seconds since the epoch. origin: the region that observed it, empty where that was before regions had names.
    pending: the digest that the upstream has there since `pending_at`, and that has not matured yet (cooldown). past:
    other digests that it was said to be lately, the newest first.
    """

    descriptor: Descriptor
    version: int
    origin: str
    observed_at: float
    checked_at: float
    denied_at: float | None = None
    pending: Digest | None = None
    pending_at: float = 0.0
    past: tuple[Digest, ...] = ()

    @property
    def gone(self) -> bool:
        """The upstream's last word was that there is no such tag, or that it is not ours to see (P44)."""
        return self.denied_at is not None and self.denied_at >= self.checked_at

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two regions moved a tag without knowing of each other: what lost, by which region, and what won.

    A digest of None: the region had removed the tag. found_at: seconds since the epoch.
    """

    repository: Repository
    tag: Tag
    digest: Digest | None
    version: int
    origin: str
    winner: Digest | None
    winner_origin: str
    found_at: float


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A blob or manifest that is, or once was, stored; `size` in bytes.

    media_type: None for what is no manifest. public: it was once fetched anonymously. complete: it and all that it
    requires is here. servable: complete or, of an index, at least one child is complete (or it has none).
    """

    digest: Digest
    size: int
    media_type: str | None
    present: bool
    public: bool
    servable: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """Bytes that fit their digest, and the repository that contains them. parsed: what they are, if a manifest."""

    digest: Digest
    body: bytes
    repository: Repository
    parsed: ParsedManifest | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """An attempt at a blob that has not ended: `contiguous` of `size` (None while unknown) bytes are there."""

    digest: Digest
    generation: int
    size: int | None
    repository: Repository
    created: float
    contiguous: int = 0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is stored. `bytes` counts blobs and manifests, `spools` the attempts that run or wait to be resumed."""

    blobs: int
    bytes: int
    manifests: int
    repositories: int
    tags: int
    spools: int


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far a verification is: `checked` of about `total` blobs, `bytes` read."""

    checked: int
    total: int
    bytes: int


@dataclass(slots=True)
class VerifyReport:
    """What a verification found.

    corrupt: set aside, as their bytes do not match. missing: in the catalog but not on the disk; now marked absent.
    unknown: on the disk but not in the catalog; `adopted` are those of them that are whole, the others are set aside.
    """

    checked: int = 0
    bytes: int = 0
    corrupt: list[Digest] = field(default_factory=list)
    missing: list[Digest] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    adopted: list[Digest] = field(default_factory=list)
