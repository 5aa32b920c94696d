"""Manifests read, never rewritten: their true type, what they are made of, what they refer to (P18, P22-P25).

Bytes come in from anywhere, so that nothing here trusts them: every failure is a RegistryError. Digests
are verified by whoever fetched the bytes, and what makes a manifest servable is the catalog's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from proxy.oci import media
from proxy.oci.descriptor import OCTET_STREAM, Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, DigestInvalid, ManifestUnknown
from proxy.oci.platforms import Platform

MAX_MANIFEST = 4 * 1024 * 1024
"""The largest manifest that is read, in bytes (P45)."""

Kind = Literal["image", "index", "artifact", "other"]
Role = Literal["config", "layer", "manifest"]

# Types that say nothing: the body must tell what it is (P23).
_VAGUE = frozenset({None, "application/json", "text/plain", OCTET_STREAM})
# Types whose structure is known here; all others pass through unread (P25).
_READ = media.MANIFESTS | media.SCHEMA1 | {media.OCI_ARTIFACT}
_IMAGE_CONFIGS = frozenset({media.DOCKER_CONFIG, media.OCI_CONFIG})


@dataclass(frozen=True, slots=True)
class Child:
    """What a manifest names. A layer that is not `required` is kept by its vendor and never fetched (P40)."""

    descriptor: Descriptor
    role: Role
    platform: Platform | None
    required: bool


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """A manifest as far as a mirror must understand it.

    kind: `image` has a config and layers, `index` has manifests, `artifact` is an image manifest that holds
    something else (a chart, a signature, an attestation), `other` is of a type that is passed on unread (P25).
    children: in the manifest's order, the config first; a digest may occur more than once.
    artifact_type: as the referrers API lists it (distribution-spec §"Listing Referrers"): the manifest's own,
    else that of its config.
    """

    media_type: str
    kind: Kind
    children: tuple[Child, ...]
    subject: Descriptor | None
    artifact_type: str | None


class _Platform(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None


class _Descriptor(msgspec.Struct):
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    mediaType: str | None = None
    platform: _Platform | None = None
    urls: list[str] | None = None


class _Body(msgspec.Struct):
    schemaVersion: int | None = None
    mediaType: str | None = None
    artifactType: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    blobs: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None


class _Sniff(msgspec.Struct):
    """The part of a body that tells its type, of manifests that may be anything."""

    mediaType: str | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_sniff = msgspec.json.Decoder(_Sniff).decode


def parse_manifest(body: bytes, content_type: str | None) -> ParsedManifest:
    """Return what `body` is; `content_type` is the header it came with.

    A manifest type in the body counts for more than the header, as the digest covers it. Unknown types
    pass through with no children (P25). Takes some 15 ms for 1 MiB: give large bodies to a thread.

    Raises:
        ManifestUnknown: it is Docker schema 1, which is not mirrored (P22).
        BadContent: HTML, more than 4 MiB (P45), not JSON, no manifest at all, or one that contradicts itself.
    """
    declared = media.essence(content_type)
    if declared == "text/html":
        raise BadContent("the answer is a web page and no manifest: is the upstream's URL that of a registry?")
    if len(body) > MAX_MANIFEST:
        raise BadContent(f"manifest of {len(body)} bytes is larger than the {MAX_MANIFEST} that are allowed")
    if declared in media.SCHEMA1:
        raise _schema1()
    if declared not in _READ:
        inner = _sniff(body)
        unread = inner if declared in _VAGUE else declared
        if unread is not None and inner not in _READ:
            return ParsedManifest(unread, "other", (), None, None)
    return _read(_decode(body), declared)


def _sniff(body: bytes) -> str | None:
    try:
        return media.essence(_decode_sniff(body).mediaType)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode(body: bytes) -> _Body:
    try:
        return _decode_body(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadContent(f"manifest is malformed: {error}") from None


def _read(body: _Body, declared: str | None) -> ParsedManifest:
    media_type = _true_type(body, declared)
    if media_type in media.SCHEMA1:
        raise _schema1()
    subject = _descriptor(body.subject) if body.subject else None
    if media_type in media.INDEXES:
        if body.config or body.layers:
            raise BadContent(f"manifest contradicts itself: {media_type} with a config or layers")
        children = tuple(_child(entry, "manifest") for entry in body.manifests or ())
        return ParsedManifest(media_type, "index", children, subject, body.artifactType or None)
    if media_type in media.IMAGES:
        return _read_image(body, media_type, subject)
    children = tuple(_child(entry, "layer") for entry in body.blobs or ())
    return ParsedManifest(media_type, "artifact", children, subject, body.artifactType or None)


def _read_image(body: _Body, media_type: str, subject: Descriptor | None) -> ParsedManifest:
    if body.manifests:
        raise BadContent(f"manifest contradicts itself: {media_type} with manifests")
    if body.config is None:
        raise BadContent(f"manifest is malformed: {media_type} without a config")
    children = (_child(body.config, "config"), *(_child(layer, "layer") for layer in body.layers or ()))
    config_type = children[0].descriptor.media_type
    kind: Kind = "image" if config_type in _IMAGE_CONFIGS and not body.artifactType else "artifact"
    return ParsedManifest(media_type, kind, children, subject, body.artifactType or config_type)


def _true_type(body: _Body, declared: str | None) -> str:
    """Return the body's own type, else the declared one, else what the structure shows; always one of `_READ` (P23)."""
    inner = media.essence(body.mediaType)
    if inner in _READ:
        return str(inner)
    if body.schemaVersion == 1:
        return media.DOCKER_SCHEMA1
    if declared in _READ:
        return str(declared)
    if body.manifests is not None and body.config is None and body.layers is None:
        return media.OCI_INDEX
    if body.config is not None and body.layers is not None and body.manifests is None:
        return media.OCI_MANIFEST
    raise BadContent(f"the answer, declared as {declared}, is no manifest: it has neither a type nor a known structure")


def _schema1() -> ManifestUnknown:
    return ManifestUnknown("the manifest is of Docker schema 1, which is not mirrored: push the image again to convert")


def _descriptor(entry: _Descriptor) -> Descriptor:
    try:
        digest = Digest.parse(entry.digest)
    except DigestInvalid as error:
        raise BadContent(f"manifest is malformed: {error.message}") from None
    return Descriptor(entry.mediaType or OCTET_STREAM, digest, entry.size)


def _child(entry: _Descriptor, role: Role) -> Child:
    platform = None
    if entry.platform and (entry.platform.os or entry.platform.architecture):
        inner = entry.platform
        platform = Platform(inner.os or "", inner.architecture or "", inner.variant or "")
    descriptor = _descriptor(entry)
    foreign = role == "layer" and (bool(entry.urls) or media.is_nondistributable(descriptor.media_type))
    return Child(descriptor, role, platform, not foreign)
