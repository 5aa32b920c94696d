"""Images in the storage of a docker-registry, written as files: many small ones, or of whatever layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.content import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Blob, digest_of

REPOSITORIES = 20
BASE_SIZE = 1 << 20
OWN_SIZE = 8 * 1024


@dataclass(frozen=True)
class Types:
    """The media types of an image's manifest, config and layers."""

    manifest: str
    config: str
    layer: str


DOCKER = Types(MANIFEST_TYPE, CONFIG_TYPE, LAYER_TYPE)
OCI = Types(
    *(f"application/vnd.oci.image.{part}" for part in ("manifest.v1+json", "config.v1+json", "layer.v1.tar+gzip"))
)


@dataclass(frozen=True)
class Name:
    """A tag of a repository."""

    repository: str
    tag: str


def names(count: int) -> list[Name]:
    """Return `count` tags, spread over the repositories."""
    return [Name(f"library/stock-{number % REPOSITORIES}", f"v{number // REPOSITORIES}") for number in range(count)]


class Stock:
    """The storage under `folder`, which a registry that keeps nothing in memory may serve meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "docker" / "registry" / "v2"
        self._base = _bytes("base", BASE_SIZE)

    def put(self, name: Name, generation: int) -> str:
        """Have a tag point to the small image of a generation, a common layer and one of its own; return its digest."""
        return self.image(name, [self._base, _bytes(f"{name} {generation}", OWN_SIZE)])

    def image(self, name: Name, contents: Sequence[bytes | Blob], types: Types = DOCKER) -> str:
        """Have a tag point to an image of such layers; return its digest."""
        layers = [
            (self._blob(content), content.size if isinstance(content, Blob) else len(content)) for content in contents
        ]
        rootfs = {"type": "layers", "diff_ids": [digest for digest, _ in layers]}
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        document = {
            "schemaVersion": 2,
            "mediaType": types.manifest,
            "config": {"mediaType": types.config, "size": len(config), "digest": self._blob(config)},
            "layers": [{"mediaType": types.layer, "size": size, "digest": digest} for digest, size in layers],
        }
        digest = self._blob(json.dumps(document, indent=3).encode())
        repository = self._root / "repositories" / name.repository
        for blob in (*(digest for digest, _ in layers), digest_of(config)):
            _link(repository / "_layers" / "sha256" / blob[7:], blob)
        _link(repository / "_manifests" / "revisions" / "sha256" / digest[7:], digest)
        tag = repository / "_manifests" / "tags" / name.tag
        _link(tag / "index" / "sha256" / digest[7:], digest)
        _link(tag / "current", digest)
        return digest

    def _blob(self, content: bytes | Blob) -> str:
        digest = content.digest if isinstance(content, Blob) else digest_of(content)
        file = self._root / "blobs" / "sha256" / digest[7:9] / digest[7:] / "data"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                out.writelines(content.chunks() if isinstance(content, Blob) else [content])
        return digest


def _bytes(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def _link(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link").write_text(digest)
