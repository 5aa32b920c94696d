"""The bytes that are served: blobs made from a seed, and the one image of the manifest scenario.

Pure; who serves them is in `upstream` (paced) and `servers` (nginx, from files).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

MIB = 1 << 20
PAGE = MIB
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Blob:
    """A blob of `size` bytes: one random page of 1 MiB, chosen by `seed`, again and again."""

    seed: int
    size: int

    @cached_property
    def page(self) -> memoryview:
        return memoryview(random.Random(self.seed).randbytes(PAGE))

    def slice(self, start: int, length: int) -> memoryview:
        """Return up to `length` bytes from `start`, fewer where the page or the blob ends."""
        within = start % PAGE
        return self.page[within : within + min(length, PAGE - within, self.size - start)]

    def chunks(self) -> Iterator[memoryview]:
        for start in range(0, self.size, PAGE):
            yield self.slice(start, PAGE)

    @cached_property
    def digest(self) -> str:
        """Take some 0.5 s for 256 MiB, once."""
        sha = hashlib.sha256()
        for chunk in self.chunks():
            sha.update(chunk)
        return f"sha256:{sha.hexdigest()}"


@dataclass(frozen=True)
class Image:
    """A small image: a manifest of usual length and the blobs it names."""

    manifest: bytes
    config: bytes
    layers: tuple[Blob, ...]

    @cached_property
    def digest(self) -> str:
        return digest_of(self.manifest)


def image(layers: int = 8) -> Image:
    blobs = tuple(Blob(seed=1000 + number, size=64 * 1024) for number in range(layers))
    rootfs = {"type": "layers", "diff_ids": [blob.digest for blob in blobs]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": digest_of(config)},
        "layers": [{"mediaType": LAYER_TYPE, "size": blob.size, "digest": blob.digest} for blob in blobs],
    }
    return Image(json.dumps(document, indent=3).encode(), config, blobs)
