"""Many small images in the storage of a docker-registry, written as files: a common layer and one of its own each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bench.content import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, digest_of

REPOSITORIES = 20
BASE_SIZE = 1 << 20
OWN_SIZE = 8 * 1024


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
        """Have a tag point to the image of a generation; return its digest."""
        own = _bytes(f"{name} {generation}", OWN_SIZE)
        layers = [self._blob(self._base), self._blob(own)]
        rootfs = {"type": "layers", "diff_ids": layers}
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        sizes = (BASE_SIZE, OWN_SIZE)
        described = zip(layers, sizes, strict=True)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": self._blob(config)},
            "layers": [{"mediaType": LAYER_TYPE, "size": size, "digest": digest} for digest, size in described],
        }
        digest = self._blob(json.dumps(document, indent=3).encode())
        repository = self._root / "repositories" / name.repository
        for blob in (*layers, digest_of(config)):
            _link(repository / "_layers" / "sha256" / blob[7:], blob)
        _link(repository / "_manifests" / "revisions" / "sha256" / digest[7:], digest)
        tag = repository / "_manifests" / "tags" / name.tag
        _link(tag / "index" / "sha256" / digest[7:], digest)
        _link(tag / "current", digest)
        return digest

    def _blob(self, data: bytes) -> str:
        digest = digest_of(data)
        file = self._root / "blobs" / "sha256" / digest[7:9] / digest[7:] / "data"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return digest


def _bytes(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def _link(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link").write_text(digest)
