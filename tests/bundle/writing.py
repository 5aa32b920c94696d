"""Volumes written straight from a plan and its blobs in memory, for tests: no store, no threads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.manifests import parse_manifest
from sync.bundle import layout
from sync.bundle.keys import SIGNATURE_SIZE, PrivateKey, sign
from sync.bundle.layout import BlobPart, DocumentPart, OffsetsPart, Part, PlanPart, SignaturePart, VolumePart
from sync.bundle.making import Choice, Manifest, Top, make, manifest_of
from sync.bundle.plan import Plan, Sealed, Tagged
from tests.support.contents import Image

CREATED = 1_700_000_000


def write_bundle(
    folder: Path,
    plan: Plan,
    blobs: Mapping[str, bytes],
    documents: Mapping[str, bytes],
    *,
    split: int | None = None,
    key: PrivateKey | None = None,
    stem: str = "site",
) -> list[Path]:
    """Write all volumes of a plan, which is cut anew, and the file of their hashes; return the volumes' paths."""
    sealed = seal_for(plan, blobs, split=split, key=key)
    signature = sign(sealed, key) if key else None
    paths = []
    for number in range(1, len(sealed.plan.volumes) + 1):
        path = folder / (f"{stem}.tar" if split is None else f"{stem}.{number:03}.tar")
        path.write_bytes(volume_bytes(sealed, signature, number, blobs, documents))
        paths.append(path)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / f"{stem}.sha256").write_text("".join(lines))
    return paths


def make_bundle(
    folder: Path,
    images: Sequence[tuple[str, Image]],
    *,
    split: int | None = None,
    key: PrivateKey | None = None,
    stem: str = "site",
    series: str = "default",
    created: int = CREATED,
    version: int = 1 << 40,
) -> list[Path]:
    """Write a bundle of images under full references (`docker.io/library/alpine:3.20`, or with `@sha256:…`)."""
    plan, blobs, documents = plan_of(images, series=series, created=created, version=version)
    return write_bundle(folder, plan, blobs, documents, split=split, key=key, stem=stem)


def seal_for(
    plan: Plan, blobs: Mapping[str, bytes], *, split: int | None = None, key: PrivateKey | None = None
) -> Sealed:
    """Cut a plan, hash its slices, and seal it."""
    plan = layout.cut(plan, split, SIGNATURE_SIZE if key else 0)
    slices = tuple(
        msgspec.structs.replace(
            one, sha256=hashlib.sha256(_part(plan, blobs, one.blob, one.offset, one.size)).hexdigest()
        )
        for one in plan.slices
    )
    return layout.seal(msgspec.structs.replace(plan, slices=slices))


def volume_bytes(
    sealed: Sealed, signature: bytes | None, number: int, blobs: Mapping[str, bytes], documents: Mapping[str, bytes]
) -> bytes:
    """Return a volume as bytes."""
    plan, size = sealed.plan, len(signature or b"")

    def content(part: Part, size_of_part: int) -> bytes:
        match part:
            case PlanPart():
                return sealed.body
            case SignaturePart():
                return signature or b""
            case VolumePart():
                return layout.volume_document(sealed, number)
            case DocumentPart(index):
                return documents[plan.documents[index].name]
            case BlobPart(place, offset, _):
                return _part(plan, blobs, place, offset, size_of_part)
            case OffsetsPart():
                return layout.offsets_document(sealed, size, number)

    written = bytearray()
    for entry in layout.entries(sealed, size, number):
        body = content(entry.part, entry.size)
        assert len(body) == entry.size
        written += layout.header(entry, plan.created) + body + bytes(-len(body) % layout.BLOCK)
    return bytes(written + bytes(layout.END))


def plan_of(
    images: Sequence[tuple[str, Image]], *, series: str = "default", created: int = CREATED, version: int = 1 << 40
) -> tuple[Plan, dict[str, bytes], dict[str, bytes]]:
    """Return the plan of images that are brought whole, its blobs, and its documents."""
    bodies: dict[str, bytes] = {}
    manifests: dict[str, Manifest] = {}

    def gather(image: Image) -> None:
        bodies[str(image.digest)] = image.body
        manifests[str(image.digest)] = manifest_of(parse_manifest(image.body, image.media_type), len(image.body))
        bodies.update((str(Digest.of(data)), data) for data in image.blobs)
        for child in image.children:
            gather(child)

    tops = []
    for reference, image in images:
        gather(image)
        name, tag = _named(reference)
        tops.append(Top(name, str(image.digest), Tagged(tag, version, "eu-west", float(created)) if tag else None))
    draft = make(Choice(series, "eu-west", created, tops, manifests))
    documents = {one.name: body for one, body in zip(draft.plan.documents, draft.documents, strict=True)}
    return draft.plan, bodies, documents


def _named(reference: str) -> tuple[str, str | None]:
    if "@" in reference:
        return reference.partition("@")[0], None
    name, _, tag = reference.rpartition(":")
    return name, tag


def _part(plan: Plan, blobs: Mapping[str, bytes], place: int, offset: int, size: int) -> bytes:
    return blobs[plan.blobs[place].digest][offset : offset + size]
