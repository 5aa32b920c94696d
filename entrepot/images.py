"""The images that are known, and one of them in full: what `ls` and `inspect` tell, on the socket and without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Set
from dataclasses import dataclass

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.errors import BadRequest, ManifestUnknown
from proxy.oci.globs import Glob
from proxy.oci.names import DOCKER_HUB, Reference, Repository, Tag, find_upstream, repository_under
from proxy.oci.references import format_full
from proxy.store.inventory import DigestFacts, ImageRecord, Inventory, NodeRecord, State


class ImageLine(msgspec.Struct, frozen=True, tag_field="event", tag="image"):
    """An image, by tag or, if it has none, by digest. Fields as in `proxy.store.inventory.ImageRecord`."""

    reference: str
    digest: str
    media_type: str | None
    state: State
    size: int
    stored: int
    pinned: bool
    last_use: float | None
    seen: float
    origin: str | None = None


class ListEnd(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """All images have been listed: so many."""

    images: int


class Node(msgspec.Struct, frozen=True):
    """A manifest or blob below an image; `size` in bytes, `required` False for what its vendor alone gives (P40)."""

    digest: str
    role: str
    media_type: str
    size: int
    platform: str | None
    required: bool
    state: State
    children: tuple[Node, ...] = ()


class Membership(msgspec.Struct, frozen=True):
    """A repository that is proven to contain the digest: how, and when (seconds since the epoch)."""

    repository: str
    proof: str
    proved_at: float


class Inspection(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """One image or blob in full.

    size: bytes of its closure, stored: how many of them are here. seen: when it was stored first. `cut`: the tree
    has more parts than are shown. origin: of a tag, the region that saw it as it is.
    """

    reference: str
    digest: str
    media_type: str | None
    kind: str | None
    state: State
    size: int
    stored: int
    public: bool
    pinned: bool
    last_use: float | None
    stored_at: float | None
    tags: tuple[str, ...]
    memberships: tuple[Membership, ...]
    children: tuple[Node, ...]
    cut: bool
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which images are meant: globs over repositories, and over tags or digests."""

    repositories: Glob
    tags: Glob | None
    digests: Glob | None

    @classmethod
    def parse(cls, text: str, upstreams: Set[str], default: str) -> Pattern:
        """Return what `text` means, shorthands as in references: `*`, `alpine`, `ghcr.io/**`, `library/*:3.*`.

        Raises BadRequest for what is no pattern.
        """
        path, at, digest = text.partition("@")
        colon = path.rfind(":")
        path, tag = (path[:colon], path[colon + 1 :]) if colon > path.rfind("/") else (path, "")
        try:
            return cls(
                Glob.parse(_full(path, upstreams, default)),
                Glob.parse(tag) if tag else None,
                Glob.parse(digest) if at else None,
            )
        except ValueError as error:
            raise BadRequest(f"{text[:160]!r} names no images: {error}") from None

    def wants(self, repository: Repository) -> bool:
        return self.repositories.matches(str(repository))

    def shows(self, tag: str | None, digest: str) -> bool:
        """Tell whether an image of a wanted repository is meant; without tag and digest all of its images are."""
        if self.digests is not None:
            return self.digests.matches(digest)
        return self.tags is None or (tag is not None and self.tags.matches(tag))


def _full(path: str, upstreams: Set[str], default: str) -> str:
    if path in ("*", "**"):
        return path
    first, slash, rest = path.partition("/")
    known = find_upstream(first, upstreams)
    if known is not None:
        return f"{known}/{rest}" if slash else f"{known}/**"
    if "*" not in path:
        return str(repository_under(path, upstreams, default))
    if slash and "*" in first:
        return path
    return f"{default}/{path}" if slash or default != DOCKER_HUB else f"{default}/library/{path}"


async def list_images(inventory: Inventory, pattern: Pattern) -> AsyncIterator[list[ImageLine]]:
    """Give the images that `pattern` means, page by page, by repository and tag."""
    async for page in inventory.images(pattern.wants, pattern.shows):
        yield [_line(image) for image in page]


def _line(image: ImageRecord) -> ImageLine:
    reference: Reference = Tag(image.tag) if image.tag is not None else Digest(image.digest)
    return ImageLine(
        reference=format_full(image.repository, reference),
        digest=image.digest,
        media_type=image.media_type,
        state=image.state,
        size=image.size,
        stored=image.stored,
        pinned=image.pinned,
        last_use=image.last_use,
        seen=image.seen,
        origin=image.origin,
    )


async def digest_of(inventory: Inventory, repository: Repository, reference: Reference) -> Digest:
    """Return the digest that `reference` means here. Raises ManifestUnknown for a tag that is not known."""
    if isinstance(reference, Digest):
        return reference
    found = await inventory.tag(repository, reference)
    if found is None or found.digest is None:
        name = format_full(repository, reference)
        raise ManifestUnknown(f"{name} is not known here; fetch it with: entrepot pull {name}")
    return Digest(found.digest)


async def inspect(inventory: Inventory, repository: Repository, reference: Reference) -> Inspection:
    """Return all about an image that is, or was, here. Raises ManifestUnknown for what never was, known of or not."""
    digest = await digest_of(inventory, repository, reference)
    name = format_full(repository, reference)
    facts = await inventory.facts(digest)
    if facts.state is None and (facts.tags or facts.proofs):
        raise ManifestUnknown(
            f"{name} is known of, and not here yet: it is fetched when it is asked for, or with: entrepot pull {name}"
        )
    if facts.state is None:
        raise ManifestUnknown(f"{name} was never stored here; fetch it with: entrepot pull {name}")
    tree = await inventory.tree(digest)
    size, stored = facts.closure
    return Inspection(
        reference=name,
        digest=str(digest),
        media_type=facts.media_type,
        kind=facts.kind,
        state=facts.state,
        size=size,
        stored=stored,
        public=facts.public,
        pinned=await is_pinned(inventory, repository, reference, digest),
        last_use=facts.last_use,
        stored_at=facts.stored_at,
        tags=facts.tags,
        memberships=memberships(facts),
        children=tuple(map(_node, tree.children)),
        cut=tree.cut,
    )


async def is_pinned(inventory: Inventory, repository: Repository, reference: Reference, digest: Digest | None) -> bool:
    """Tell whether the reference is pinned, by its tag or by its digest."""
    return await inventory.pinned(repository, reference) or (
        digest is not None and await inventory.pinned(repository, digest)
    )


def memberships(facts: DigestFacts) -> tuple[Membership, ...]:
    """Return the proofs among `facts`."""
    return tuple(Membership(*proof) for proof in facts.proofs)


def _node(record: NodeRecord) -> Node:
    return Node(
        digest=record.digest,
        role=record.role,
        media_type=record.media_type,
        size=record.size,
        platform=record.platform,
        required=record.required,
        state=record.state,
        children=tuple(map(_node, record.children)),
    )
