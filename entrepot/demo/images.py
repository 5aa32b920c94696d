"""The sample images: valid OCI indexes of two platforms that share layers, the same bytes on every machine. No I/O.

What their layers hold is pseudo-random and cannot be run. How they become a bundle is `sample`'s.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.media import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

CREATED = "2026-01-31T12:00:00Z"
ARCHITECTURES = ("amd64", "arm64")
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARM_SHARE = 3
"""The layers of arm64 are a third as large: few of the clients are such."""
_KIB = 1024

_SIZES = {
    "os": 14_200,
    "python": 10_400,
    "web-libraries-1": 6_100,
    "web-1.0": 5_300,
    "web-1.1": 5_350,
    "web-libraries-2": 7_200,
    "web-2.0": 5_900,
    "api-4.2": 7_700,
    "api-4.3": 7_900,
    "worker-7": 9_100,
    "model": 21_000,
}
"""KiB of the layers for amd64."""

_RECIPES = (
    ("demo/base", "13", ("os",)),
    ("demo/python", "3.13", ("os", "python")),
    ("demo/web", "1.0", ("os", "python", "web-libraries-1", "web-1.0")),
    ("demo/web", "1.1", ("os", "python", "web-libraries-1", "web-1.1")),
    ("demo/web", "2.0", ("os", "python", "web-libraries-2", "web-2.0")),
    ("demo/api", "4.2", ("os", "python", "api-4.2")),
    ("demo/api", "4.3", ("os", "python", "api-4.3")),
    ("demo/worker", "7", ("os", "python", "worker-7")),
    ("demo/model", "2026.1", ("os", "model")),
)

IMAGES = tuple(f"{repository}:{tag}" for repository, tag, _ in _RECIPES)
"""The images, as clients ask for them."""

Put = Callable[[Digest, bytes], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of an image, or an index of `children`."""

    media_type: str
    body: bytes
    children: tuple[Manifest, ...] = ()

    @property
    def digest(self) -> Digest:
        return Digest.of(self.body)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image: its repository, its tag, and its index."""

    repository: str
    tag: str
    index: Manifest


def make_samples(put: Put) -> tuple[Sample, ...]:
    """Return the images; `put` hears of everything they are made of, manifests too, each digest once."""
    makers = [_Platform(architecture, put) for architecture in ARCHITECTURES]
    samples = []
    for repository, tag, layers in _RECIPES:
        children = tuple(maker.image(layers) for maker in makers)
        listed = [
            _descriptor(child.media_type, child.digest, len(child.body))
            | {"platform": {"os": "linux", "architecture": maker.architecture}}
            for maker, child in zip(makers, children, strict=True)
        ]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        index = Manifest(OCI_INDEX, msgspec.json.encode(document), children)
        for manifest in (*children, index):
            put(manifest.digest, manifest.body)
        samples.append(Sample(repository, tag, index))
    return tuple(samples)


class _Platform:
    """Makes the images of one architecture. State: the layers that were made, which images share."""

    def __init__(self, architecture: str, put: Put) -> None:
        self.architecture = architecture
        self._put = put
        self._layers: dict[str, tuple[Digest, int]] = {}

    def image(self, layers: tuple[str, ...]) -> Manifest:
        made = [self._layer(name) for name in layers]
        config = msgspec.json.encode(
            {
                "created": CREATED,
                "architecture": self.architecture,
                "os": "linux",
                "config": {"Env": ["PATH=/bin"]},
                # Layers are not compressed: the digest of one is that of its tar.
                "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest, _ in made]},
                "history": [{"created": CREATED, "created_by": f"entrepot demo: {name}"} for name in layers],
            }
        )
        digest = Digest.of(config)
        self._put(digest, config)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, digest, len(config)),
            "layers": [_descriptor(_LAYER, *one) for one in made],
        }
        return Manifest(OCI_MANIFEST, msgspec.json.encode(document))

    def _layer(self, name: str) -> tuple[Digest, int]:
        if name not in self._layers:
            size = _SIZES[name] * _KIB // (1 if self.architecture == "amd64" else _ARM_SHARE)
            body = _tar(f"demo/{name}", random.Random(f"{name} {self.architecture}").randbytes(size))
            digest = Digest.of(body)
            self._put(digest, body)
            self._layers[name] = digest, len(body)
        return self._layers[name]


def _tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}
