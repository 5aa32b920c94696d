"""Media types of manifests and layers, and what `Accept` says about them (P19-P21). Bodies are read in `manifests`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_NONDISTRIBUTABLE_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"

IMAGES = frozenset({DOCKER_MANIFEST, OCI_MANIFEST})
INDEXES = frozenset({DOCKER_LIST, OCI_INDEX})
SCHEMA1 = frozenset({DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED})
MANIFESTS = IMAGES | INDEXES

ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
"""The `Accept` of every manifest request to an upstream (P19)."""

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")


class MediaRange(NamedTuple):
    """One entry of `Accept`: a media type in lower case or a wildcard, and its weight; 0 means never."""

    pattern: str
    weight: float


def essence(content_type: str | None) -> str | None:
    """Return a media type in lower case without parameters; None for what is none (RFC 6838 §4.2, P42)."""
    if content_type is None:
        return None
    text = content_type.partition(";")[0].strip().lower()
    return text if _MEDIA_TYPE.fullmatch(text) else None


def is_nondistributable(media_type: str) -> bool:
    """Tell whether a layer of this type lies with its vendor rather than in the registry (P40)."""
    return media_type == DOCKER_FOREIGN_LAYER or media_type.startswith(OCI_NONDISTRIBUTABLE_LAYER)


def is_file_system(media_type: str) -> bool:
    """Tell whether a layer of this type is a part of a root file system, of whatever compression."""
    return media_type.startswith(("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."))


def parse_accept(lines: Sequence[str]) -> tuple[MediaRange, ...]:
    """Return the entries of all `Accept` lines, comma lists and separate lines alike (P20).

    A weight that is no number counts as 1; parameters other than `q` are dropped.
    """
    return tuple(_media_range(item) for line in lines for item in line.split(",") if item.strip())


def accepts(lines: Sequence[str], media_type: str) -> bool:
    """Tell whether `Accept` admits `media_type`: the most exact entry decides, no entry at all admits everything."""
    weights = dict(reversed(parse_accept(lines)))
    if not weights:
        return True
    for pattern in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if pattern in weights:
            return weights[pattern] > 0
    return False


def excludes(lines: Sequence[str], media_type: str) -> bool:
    """Tell whether a tag's cached type must not answer: `Accept` is there, has no wildcard and lacks it (P21).

    Then the tag cache is bypassed and the client's own `Accept` goes upstream. Not for requests by digest.
    """
    if any("*" in line for line in lines):
        return False
    return not accepts(lines, media_type)


def forwarded(lines: Sequence[str]) -> str:
    """Return `Accept` as it goes upstream when it alone decides (P21, P42); empty where any type will do.

    That is so without entries, or with a wildcard. Entries that are no media type are dropped.
    """
    if any("*" in line for line in lines):
        return ""
    return ", ".join(
        pattern if weight == 1 else f"{pattern};q={weight:g}"
        for pattern, weight in parse_accept(lines)
        if _MEDIA_TYPE.fullmatch(pattern)
    )


def _media_range(item: str) -> MediaRange:
    pattern, *parameters = item.split(";")
    weight = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 1.0
    return MediaRange(pattern.strip().lower(), weight)
