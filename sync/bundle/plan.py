"""The plan of a bundle: what it brings, what it stands on, and where its volumes are cut. Plain values, no I/O.

A plan is one JSON document (docs/bundle-format.md), repeated in every volume and named by the digest of its bytes. All
other bytes of a bundle but the signature follow from it and from the blobs; `layout` says which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Self

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import MAX_MANIFEST
from proxy.oci.names import Repository, parse_path
from proxy.store.exchanged import Past, TagChange
from sync.bundle.errors import Damaged, Refused

FORMAT = "entrepot-bundle/1"
MAX_PLAN = 24 << 20
"""The largest plan that is read, in bytes. It and the next four keep all that handles bundles below 150 MiB."""
MAX_BLOBS = 40_000
"""Of blobs that are brought and those that are required together."""
MAX_IMAGES = 8_000
MAX_VOLUMES = 9_999
MAX_VALUES = 1 << 20
"""Of arrays, objects and what is in them: a plan of many tiny ones would take hundreds of megabytes to decode."""
MAX_BLOB = 1 << 44

_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=1 << 33)]
_DIGEST = r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z"
_Digest = Annotated[str, msgspec.Meta(pattern=_DIGEST)]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_TagName = Annotated[str, msgspec.Meta(pattern=r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")]
# A person is shown these: no characters that a terminal would obey, or that turn the direction of what follows.
_SHOWN = r"\A[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z"
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=_SHOWN)]
# As the configuration names upstreams.
_UPSTREAM = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_Index = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOBS)]
_SMALLER = "ask for several bundles with fewer images each, by repository"
_FAMILY = FORMAT.partition("/")[0] + "/"


class Tagged(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A tag with its version, as regions exchange it (`proxy.store.exchanged.TagChange`)."""

    name: _TagName
    version: _Number
    origin: Annotated[str, msgspec.Meta(max_length=255, pattern=_SHOWN)]
    observed_at: _Time
    generation: _Number = 0
    base: _Number = 0
    others: Annotated[tuple[Past, ...], msgspec.Meta(max_length=16)] = ()


class Image(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An image at the top: `repository` is a place in the plan's `repositories`; `size` is that of its manifest.

    tag None: it is brought under its digest alone. subject: what it refers to, where it is a referrer.
    """

    repository: _Index
    digest: _Digest
    media_type: _Text
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_MANIFEST)]
    tag: Tagged | None = None
    subject: _Digest | None = None


class Blob(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Bytes that the bundle brings, in the order of the volumes. repository: the first one that contains it.

    media_type: of a manifest; None for any other blob.
    """

    digest: _Digest
    size: _Size
    repository: _Index
    media_type: _Text | None = None


class Required(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Bytes that the images need and the bundle does not bring: its base has them. As `Blob`."""

    digest: _Digest
    size: _Size
    repository: _Index


class Base(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What a thin bundle stands on. kind: how it is known; name: its plan's digest, or the inventory's.

    label: what a person calls it: the series and the date, or the site.
    """

    kind: Annotated[str, msgspec.Meta(pattern=r"\A(bundle|receipt|inventory)\Z")]
    name: _Text
    label: _Text


class Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A file of the OCI layout beside the blobs (`oci-layout`, `index.json`, `manifest.json`): name, size, hash."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A(oci-layout|index\.json|manifest\.json)\Z")]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_PLAN)]
    sha256: _Sha256


class Cut(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Where a volume begins: at this byte of this place in `blobs`; `len(blobs)` and 0 where it brings nothing."""

    blob: _Index
    offset: _Size


class Slice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The part of a blob that one volume has of it, where the blob is cut, and the hash of that part."""

    blob: _Index
    offset: _Size
    size: _Size
    sha256: _Sha256


class Plan(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """What a bundle is. Make one of bytes with `read_plan`, which checks what the types do not.

    series: bundles of one series follow each other. region: where it was made. created: seconds since the epoch
    (SOURCE_DATE_EPOCH, else the newest image's date), the time of all entries. platforms: those of indexes that were
    chosen, none: all. volumes: where each begins; the first at (0, 0). slices: of all blobs that are cut, in order.
    """

    format: Annotated[str, msgspec.Meta(max_length=64)]
    series: _Text
    region: _Text
    created: Annotated[int, msgspec.Meta(ge=0, le=1 << 33)]
    repositories: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=MAX_IMAGES)]
    images: Annotated[tuple[Image, ...], msgspec.Meta(max_length=MAX_IMAGES)]
    blobs: Annotated[tuple[Blob, ...], msgspec.Meta(max_length=MAX_BLOBS)]
    documents: Annotated[tuple[Document, ...], msgspec.Meta(max_length=3)]
    volumes: Annotated[tuple[Cut, ...], msgspec.Meta(min_length=1, max_length=MAX_VOLUMES)]
    requires: Annotated[tuple[Required, ...], msgspec.Meta(max_length=MAX_BLOBS)] = ()
    bases: Annotated[tuple[Base, ...], msgspec.Meta(max_length=16)] = ()
    platforms: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)] = ()
    slices: Annotated[tuple[Slice, ...], msgspec.Meta(max_length=2 * MAX_VOLUMES)] = ()

    @cached_property
    def names(self) -> tuple[Repository, ...]:
        """The repositories, parsed."""
        return tuple(repository_of(text) for text in self.repositories)

    @property
    def size(self) -> int:
        """The bytes of all blobs that are brought."""
        return sum(blob.size for blob in self.blobs)


class Sealed(msgspec.Struct, frozen=True):
    """A plan as its exact bytes, which may end in spaces. name: what it is known by, the digest of those bytes."""

    plan: Plan
    body: bytes
    name: Digest

    @classmethod
    def of(cls, plan: Plan, body: bytes) -> Self:
        return cls(plan, body, Digest.of(body))


class _Named(msgspec.Struct, frozen=True):
    """What a plan of any version says of itself."""

    format: str


_decode = msgspec.json.Decoder(Plan).decode
_decode_named = msgspec.json.Decoder(_Named).decode


def write_plan(plan: Plan) -> bytes:
    """Return the plan as JSON, without spaces at its end; equal plans give equal bytes."""
    return msgspec.json.encode(plan)


def read_plan(body: bytes) -> Sealed:
    """Return the plan that `body` is. Takes some 200 ms for 10 MiB: give it to a thread.

    Raises Damaged for what is no plan, or contradicts itself; Refused for what a newer version wrote, or is too large.
    """
    if len(body) > MAX_PLAN:
        raise Refused(f"the plan has {len(body)} bytes, more than the {MAX_PLAN} that are allowed; {_SMALLER}")
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise Refused(f"the plan has more than {MAX_VALUES} values; {_SMALLER}")
    try:
        plan = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _refuse_newer(body)
        raise Damaged(f"the plan cannot be read: {error}") from None
    if plan.format != FORMAT:
        _refuse_newer(body)
        raise Damaged(f"the plan is of the format {plan.format[:80]!r}; this version of entrepot reads {FORMAT}")
    _check(plan)
    return Sealed.of(plan, body)


def _refuse_newer(body: bytes) -> None:
    try:
        named = _decode_named(body).format
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if named != FORMAT and named.startswith(_FAMILY) and named.removeprefix(_FAMILY).isdecimal():
        raise Refused(
            f"the bundle was written by a newer version of entrepot: its format is {named[:80]}, and this one reads "
            f"{FORMAT}; update entrepot here, or export it with an older one"
        )


def repository_of(text: str) -> Repository:
    """Return the repository `UPSTREAM/path`. Raises Damaged."""
    upstream, slash, path = text.partition("/")
    try:
        if not slash or not _UPSTREAM.fullmatch(upstream):
            raise Damaged(f"the plan names the repository {text[:160]!r}, which has no upstream")
        return parse_path(upstream, path)
    except RegistryError as error:
        raise Damaged(f"the plan names a repository that can be none: {error.message}") from None


def change_of(image: Image) -> TagChange | None:
    """Return an image's tag as regions exchange it; None where it has none."""
    tag = image.tag
    if tag is None:
        return None
    return TagChange(
        seq=0,
        at=0,
        name=tag.name,
        version=tag.version,
        digest=image.digest,
        media_type=image.media_type,
        size=image.size,
        origin=tag.origin,
        observed_at=tag.observed_at,
        checked_at=tag.observed_at,
        generation=tag.generation,
        base=tag.base,
        others=tag.others,
    )


def tagged_of(change: TagChange) -> Tagged:
    """Return what a plan says of a tag. The time of its last check is left out: it changes while nothing else does."""
    return Tagged(
        name=change.name,
        version=change.version,
        origin=change.origin,
        observed_at=change.observed_at,
        generation=change.generation,
        base=change.base,
        others=change.others,
    )


def reference_of(plan: Plan, image: Image) -> str:
    """Return the full reference of an image: `docker.io/library/alpine:3.20`, or with `@` and its digest."""
    name = plan.repositories[image.repository]
    return f"{name}@{image.digest}" if image.tag is None else f"{name}:{image.tag.name}"


def _check(plan: Plan) -> None:
    known = len(plan.repositories)
    _ = plan.names
    if len(set(plan.repositories)) != known:
        raise Damaged("the plan names a repository twice")
    places: Sequence[Image | Blob | Required] = (*plan.images, *plan.blobs, *plan.requires)
    if any(one.repository >= known for one in places):
        raise Damaged("the plan speaks of a repository that it does not name")
    brought = {blob.digest: blob for blob in plan.blobs}
    needed = {one.digest: one for one in plan.requires}
    if len(brought) + len(needed) > MAX_BLOBS:
        raise Refused(f"the plan names {len(brought) + len(needed)} blobs, more than {MAX_BLOBS}; {_SMALLER}")
    if len(brought) != len(plan.blobs) or len(needed) != len(plan.requires) or not needed.keys().isdisjoint(brought):
        raise Damaged("the plan names a blob twice")
    for image in plan.images:
        found = brought.get(image.digest) or needed.get(image.digest)
        if found is None:
            raise Damaged(f"the plan names the image {reference_of(plan, image)} and does not bring its manifest")
        if found.size != image.size or (isinstance(found, Blob) and found.media_type != image.media_type):
            raise Damaged(f"the plan tells the manifest of {reference_of(plan, image)} in two ways")
        told = image.tag.others if image.tag else ()
        if not all(past.origin.isprintable() and (past.media_type or "").isprintable() for past in told):
            raise Damaged(f"the plan names what nobody can be shown in the past of {reference_of(plan, image)}")
    named = [(image.repository, image.tag.name if image.tag else image.digest) for image in plan.images]
    if len(set(named)) != len(named):
        raise Damaged("the plan names an image twice")
    if any(blob.media_type is not None and blob.size > MAX_MANIFEST for blob in plan.blobs):
        raise Damaged(f"the plan names a manifest of more than {MAX_MANIFEST} bytes")
    if len({document.name for document in plan.documents}) != len(plan.documents):
        raise Damaged("the plan names a document twice")
    _check_cuts(plan)


def _check_cuts(plan: Plan) -> None:
    count = len(plan.blobs)
    begins = [(cut.blob, cut.offset) for cut in plan.volumes]
    if begins[0] != (0, 0) or begins != sorted(begins):
        raise Damaged("the plan's volumes are not in order")
    if any(blob > count or (offset and (blob == count or offset >= plan.blobs[blob].size)) for blob, offset in begins):
        raise Damaged("the plan cuts a volume outside of its blobs")
    if [(one.blob, one.offset, one.size) for one in plan.slices] != list(cut_slices(plan)):
        raise Damaged("the plan's slices are not those of its volumes")


def cut_slices(plan: Plan) -> list[tuple[int, int, int]]:
    """Return (blob, offset, size) of every part of a blob that is cut by volumes, in order."""
    inner: dict[int, list[int]] = {}
    for cut in plan.volumes:
        if cut.offset:
            inner.setdefault(cut.blob, []).append(cut.offset)
    found = []
    for blob in sorted(inner):
        edges = [0, *sorted(set(inner[blob])), plan.blobs[blob].size]
        found += [(blob, begin, end - begin) for begin, end in pairwise(edges)]
    return found
