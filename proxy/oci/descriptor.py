"""Descriptors and fetched manifests: the values that travel between Sources."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.oci.digest import Digest

OCTET_STREAM = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a digest is: its media type and its size in bytes (image-spec `descriptor.md`)."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as its exact bytes (P18).

    `anonymous`: it was given without any credential, so its repository is public.
    """

    descriptor: Descriptor
    body: bytes
    anonymous: bool = False
