"""From images and what they are made of to a plan: what is brought and in which order, and the documents. Pure.

Images come from `choosing`; where volumes are cut is `layout`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import msgspec

from proxy.oci import media
from proxy.oci.manifests import Child, ParsedManifest
from proxy.oci.platforms import Platform
from sync.bundle.errors import Refused
from sync.bundle.plan import (
    FORMAT,
    MAX_BLOBS,
    MAX_IMAGES,
    Base,
    Blob,
    Cut,
    Document,
    Image,
    Plan,
    Required,
    Tagged,
    reference_of,
)

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_PREFERRED = Platform("linux", "amd64")
_REF_NAME = "org.opencontainers.image.ref.name"
_SEVERAL = "export them in several bundles, by repository"
_CONTAINERD_NAME = "io.containerd.image.name"


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a manifest names. role: `manifest`, `config` or `layer`; platform: `os/architecture/variant`, or empty.

    required: False for what its vendor alone has (P40); wanted: it belongs into the bundle.
    """

    digest: str
    size: int
    role: str
    platform: str
    required: bool
    wanted: bool


class Manifest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A manifest as far as a bundle must know it: `size` in bytes.

    kind: a ParsedManifest's, but `artifact` also of what has an image's config and no file systems for layers, as a
    signature by cosign.
    """

    media_type: str
    size: int
    kind: str
    parts: tuple[Part, ...]
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Top:
    """An image that was chosen: in the repository `UPSTREAM/path`, under a tag or its digest alone."""

    repository: str
    digest: str
    tag: Tagged | None = None

    @property
    def order(self) -> tuple[str, bool, str]:
        """By repository and tag; what has none comes last, by digest."""
        return self.repository, self.tag is None, self.digest if self.tag is None else self.tag.name


@dataclass(frozen=True, slots=True)
class Choice:
    """All that a plan follows from. manifests: of the closures of all `tops`, by digest. created: seconds."""

    series: str
    region: str
    created: int
    tops: Sequence[Top]
    manifests: Mapping[str, Manifest]
    platforms: tuple[str, ...] = ()
    bases: tuple[Base, ...] = ()
    base: Container[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan of one volume, still to be cut, and the bodies of its documents."""

    plan: Plan
    documents: tuple[bytes, ...]


def manifest_of(parsed: ParsedManifest, size: int, wanted: Container[str] | None = None) -> Manifest:
    """Return what a bundle must know of a manifest; wanted: the digests to bring of an index, None: all."""

    def part(child: Child) -> Part:
        digest = str(child.descriptor.digest)
        chosen = child.required and (wanted is None or digest in wanted)
        platform = "" if child.platform is None else str(child.platform)
        return Part(digest, child.descriptor.size, child.role, platform, child.required, chosen)

    subject = None if parsed.subject is None else str(parsed.subject.digest)
    layers = (child.descriptor.media_type for child in parsed.children if child.role == "layer")
    artifact = parsed.kind == "image" and not all(map(media.is_file_system, layers))
    kind = "artifact" if artifact else parsed.kind
    return Manifest(parsed.media_type, size, kind, tuple(map(part, parsed.children)), subject)


def closure(manifests: Mapping[str, Manifest], top: str) -> Iterator[tuple[str, int, str]]:
    """Yield (digest, size, role) of all that an image wants, from the top down, each digest once."""
    seen = {top}
    waiting = [top]
    yield top, manifests[top].size, "manifest"
    while waiting:
        for part in manifests[waiting.pop(0)].parts:
            if not part.wanted or part.digest in seen:
                continue
            seen.add(part.digest)
            yield part.digest, part.size, part.role
            if part.role == "manifest":
                waiting.append(part.digest)


def make(choice: Choice) -> Draft:
    """Return the plan: manifests, then configs, then layers, each in the order in which images need them.

    What the base has goes to `requires`. Raises Refused for more images or blobs than a bundle may have.
    """
    tops = sorted(choice.tops, key=lambda top: top.order)
    if len(tops) > MAX_IMAGES:
        raise Refused(f"these are {len(tops)} images, more than the {MAX_IMAGES} of a bundle: {_SEVERAL}")
    repositories = tuple(sorted({top.repository for top in tops}))
    places = {name: place for place, name in enumerate(repositories)}
    blobs: dict[str, list[Blob]] = {"manifest": [], "config": [], "layer": []}
    requires: dict[str, list[Required]] = {kind: [] for kind in blobs}
    seen: set[str] = set()
    for top in tops:
        place = places[top.repository]
        for digest, size, role in closure(choice.manifests, top.digest):
            if digest in seen:
                continue
            seen.add(digest)
            manifest = choice.manifests.get(digest)
            kind = role if manifest is None else "manifest"
            if digest in choice.base:
                requires[kind].append(Required(digest, size, place))
            else:
                blobs[kind].append(Blob(digest, size, place, None if manifest is None else manifest.media_type))
    if len(seen) > MAX_BLOBS:
        raise Refused(
            f"the images have {len(seen)} blobs and manifests, more than the {MAX_BLOBS} of a bundle: {_SEVERAL}"
        )
    del seen
    plan = Plan(
        format=FORMAT,
        series=choice.series,
        region=choice.region,
        created=choice.created,
        repositories=repositories,
        images=tuple(_image(top, places[top.repository], choice.manifests[top.digest]) for top in tops),
        blobs=tuple(chain.from_iterable(blobs.values())),
        documents=(),
        volumes=(Cut(0, 0),),
        requires=tuple(chain.from_iterable(requires.values())),
        bases=choice.bases,
        platforms=choice.platforms,
    )
    bodies = documents(plan, choice.manifests)
    named = tuple(Document(name, len(body), hashlib.sha256(body).hexdigest()) for name, body in bodies.items())
    return Draft(msgspec.structs.replace(plan, documents=named), tuple(bodies.values()))


def documents(plan: Plan, manifests: Mapping[str, Manifest]) -> dict[str, bytes]:
    """Return the files of the OCI layout beside the blobs, by name; `manifests`: at least those that are brought."""
    brought = {blob.digest for blob in plan.blobs}
    return {
        "oci-layout": LAYOUT,
        "index.json": _index(plan, brought),
        "manifest.json": b"[%b]" % b",".join(map(msgspec.json.encode, _loadable(plan, brought, manifests))),
    }


def _image(top: Top, place: int, manifest: Manifest) -> Image:
    return Image(
        repository=place,
        digest=top.digest,
        media_type=manifest.media_type,
        size=manifest.size,
        tag=top.tag,
        subject=manifest.subject,
    )


def _index(plan: Plan, brought: Container[str]) -> bytes:
    entries = b",".join(map(msgspec.json.encode, _listed(plan, brought)))
    return b'{"schemaVersion":2,"mediaType":"%b","manifests":[%b]}' % (media.OCI_INDEX.encode(), entries)


def _listed(plan: Plan, brought: Container[str]) -> Iterator[dict[str, Any]]:
    """Yield the entries of `index.json`."""
    for image in plan.images:
        if image.digest not in brought:
            continue
        entry: dict[str, Any] = {"mediaType": image.media_type, "digest": image.digest, "size": image.size}
        if image.tag is not None or image.subject is None:
            name = reference_of(plan, image)
            entry["annotations"] = {_REF_NAME: name, _CONTAINERD_NAME: name}
        yield entry


def _loadable(plan: Plan, brought: Container[str], manifests: Mapping[str, Manifest]) -> Iterator[dict[str, Any]]:
    """Yield the entries of `manifest.json`: the tagged images that docker and podman can load from this bundle."""
    for image in plan.images:
        if image.tag is None or image.digest not in brought:
            continue
        chosen = _runnable(manifests, image.digest, brought)
        if chosen is None or not all(part.required and part.digest in brought for part in chosen.parts):
            continue
        config, *layers = (_path(part.digest) for part in chosen.parts)
        yield {"Config": config, "RepoTags": [reference_of(plan, image)], "Layers": layers}


def _runnable(manifests: Mapping[str, Manifest], digest: str, brought: Container[str]) -> Manifest | None:
    """Return the image that a digest is, or the one of an index that most hosts run; None where there is none."""
    top = manifests[digest]
    if top.kind == "image":
        return top
    if top.kind != "index":
        return None
    offered = [part for part in top.parts if part.digest in brought and part.digest in manifests]
    runnable = [part for part in offered if manifests[part.digest].kind == "image" and not _unknown(part.platform)]
    preferred = [part for part in runnable if part.platform and _PREFERRED.matches(_platform(part.platform))]
    chosen = next(iter(preferred or runnable), None)
    return None if chosen is None else manifests[chosen.digest]


def _unknown(platform: str) -> bool:
    return platform.startswith("unknown/unknown")


def _platform(text: str) -> Platform:
    return Platform(*text.split("/", 2))


def _path(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


class _Config(msgspec.Struct):
    created: str | None = None


_decode_config = msgspec.json.Decoder(_Config).decode


def created_of(config: bytes) -> int:
    """Return when an image was made, by its config: seconds since the epoch, 0 where it does not say."""
    try:
        created = datetime.fromisoformat(_decode_config(config).created or "")
        moment = (created if created.tzinfo is not None else created.replace(tzinfo=UTC)).timestamp()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return 0
    return int(min(max(moment, 0), 1 << 33))
