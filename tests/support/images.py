"""Images made without a network: valid tar layers, every kind of manifest, pushed over HTTP to an open registry.

The same `seed` gives the same image, another seed one that shares no layer with it.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import zstandard

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
IN_TOTO = "application/vnd.in-toto+json"

MARKER = "etc/entrepot-test"
"""The file in the root file system of every image that holds its seed."""


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A config or a layer: bytes, or a file where it is big. `diff_id` is the digest of the layer's tar."""

    media_type: str
    digest: str
    size: int
    data: bytes | Path
    diff_id: str = ""

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest, or an index with the `manifests` it names; `platform` is "os/architecture"."""

    media_type: str
    body: bytes
    blobs: tuple[Blob, ...] = ()
    manifests: tuple[Image, ...] = ()
    platform: str = "linux/amd64"

    @property
    def digest(self) -> str:
        return digest_of(self.body)

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body)}

    def walk(self) -> Iterator[Image]:
        """Give every manifest of the closure, children before their parents."""
        for child in self.manifests:
            yield from child.walk()
        yield self

    def all_blobs(self) -> dict[str, Blob]:
        """Return every blob of the closure by digest."""
        return {blob.digest: blob for image in self.walk() for blob in image.blobs}

    def digests(self) -> set[str]:
        """Return the digest of everything in the closure."""
        return {image.digest for image in self.walk()} | set(self.all_blobs())

    def of(self, platform: str) -> Image:
        """Return the manifest for `platform`: the image itself where it is no index."""
        return next(image for image in self.walk() if not image.manifests and image.platform == platform)


def _blob(media_type: str, data: bytes, diff_id: str = "") -> Blob:
    return Blob(media_type, digest_of(data), len(data), data, diff_id)


def layer(files: Mapping[str, bytes], media_type: str) -> Blob:
    """Return a layer with `files`, compressed as `media_type` says: gzip, +zstd or plain tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = sorted({parent for name in files for parent in map(str, Path(name).parents) if parent != "."})
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    plain = buffer.getvalue()
    if media_type.endswith("gzip"):
        packed = gzip.compress(plain, 1, mtime=0)
    elif media_type.endswith("zstd"):
        packed = zstandard.compress(plain, 3)
    else:
        packed = plain
    return _blob(media_type, packed, digest_of(plain))


def manifest(layers: tuple[Blob, ...], media_type: str, platform: str = "linux/amd64") -> Image:
    """Return an image of `layers` with a config for `platform`: OCI or Docker schema 2, as `media_type` says."""
    system, _, architecture = platform.partition("/")
    config = _blob(
        DOCKER_CONFIG if media_type == DOCKER_MANIFEST else OCI_CONFIG,
        json.dumps(
            {
                "created": "2024-01-01T00:00:00Z",
                "architecture": architecture,
                "os": system,
                "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
                "history": [
                    {"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(layers))
                ],
            }
        ).encode(),
    )
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.descriptor,
        "layers": [one.descriptor for one in layers],
    }
    return Image(media_type, json.dumps(body, indent=3).encode(), (config, *layers), platform=platform)


def index(children: tuple[Image, ...], media_type: str) -> Image:
    """Return an index of `children`; one for unknown/unknown is annotated as the first child's attestation."""
    entries = []
    for child in children:
        system, _, architecture = child.platform.partition("/")
        entry = {**child.descriptor, "platform": {"architecture": architecture, "os": system}}
        if system == "unknown":
            entry["annotations"] = {
                "vnd.docker.reference.digest": children[0].digest,
                "vnd.docker.reference.type": "attestation-manifest",
            }
        entries.append(entry)
    body = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    return Image(media_type, json.dumps(body, indent=2).encode(), manifests=children)


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _layers(seed: str, media_type: str) -> tuple[Blob, ...]:
    """Two layers: one that a mirror verifies whole before it sends a byte, one above 1 MiB, whose tail it withholds."""
    return (
        layer({MARKER: seed.encode(), "data/small": _noise(f"{seed} small", 50_000)}, media_type),
        layer({"data/big": _noise(f"{seed} big", 3 << 20)}, media_type),
    )


def schema2(seed: str) -> Image:
    """Return a Docker schema 2 image for linux/amd64."""
    return manifest(_layers(seed, DOCKER_LAYER), DOCKER_MANIFEST)


def oci(seed: str) -> Image:
    """Return an OCI image for linux/amd64 with gzip layers."""
    return manifest(_layers(seed, f"{OCI_LAYER}+gzip"), OCI_MANIFEST)


def oci_zstd(seed: str) -> Image:
    """Return an OCI image for linux/amd64 with zstd layers."""
    return manifest(_layers(seed, f"{OCI_LAYER}+zstd"), OCI_MANIFEST)


def multi_arch(seed: str) -> Image:
    """Return an OCI index: linux/amd64, linux/arm64 and an unknown/unknown attestation (P25)."""
    amd64 = manifest(_layers(f"{seed} amd64", f"{OCI_LAYER}+gzip"), OCI_MANIFEST)
    arm64 = manifest(_layers(f"{seed} arm64", f"{OCI_LAYER}+gzip"), OCI_MANIFEST, "linux/arm64")
    statement = json.dumps({"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"name": seed}]}).encode()
    attestation = manifest((_blob(IN_TOTO, statement, digest_of(statement)),), OCI_MANIFEST, "unknown/unknown")
    return index((amd64, arm64, attestation), OCI_INDEX)


def manifest_list(seed: str) -> Image:
    """Return a Docker manifest list: linux/amd64 and linux/arm64."""
    amd64 = manifest(_layers(f"{seed} amd64", DOCKER_LAYER), DOCKER_MANIFEST)
    arm64 = manifest(_layers(f"{seed} arm64", DOCKER_LAYER), DOCKER_MANIFEST, "linux/arm64")
    return index((amd64, arm64), DOCKER_LIST)


def many_layers(seed: str, count: int = 200) -> Image:
    """Return a Docker schema 2 image of `count` small layers."""
    layers = [layer({f"many/{n}": f"{seed} {n}".encode()}, DOCKER_LAYER) for n in range(count - 1)]
    return manifest((layer({MARKER: seed.encode()}, DOCKER_LAYER), *layers), DOCKER_MANIFEST)


def huge(seed: str, folder: Path, size: int = 1 << 30) -> Image:
    """Return an OCI image with one plain tar layer that holds a file of `size` bytes; the layer lies in `folder`."""
    path = folder / "huge.tar"
    block = _noise(seed, 1 << 20)
    whole, hasher = 0, hashlib.sha256()
    with path.open("wb") as out:

        def put(data: bytes) -> None:
            nonlocal whole
            out.write(data)
            hasher.update(data)
            whole += len(data)

        entry = tarfile.TarInfo("data/huge")
        entry.size = size
        put(entry.tobuf(tarfile.PAX_FORMAT))
        for at in range(0, size, len(block)):
            put(at.to_bytes(8, "big") + block[8 : min(len(block), size - at)])
        put(bytes(-size % 512 + 1024))
    digest = f"sha256:{hasher.hexdigest()}"
    big = Blob(OCI_LAYER, digest, whole, path, digest)
    small = layer({MARKER: seed.encode()}, OCI_LAYER)
    return manifest((small, big), OCI_MANIFEST)


KINDS: Mapping[str, Callable[[str], Image]] = {
    "schema2": schema2,
    "oci": oci,
    "zstd": oci_zstd,
    "multi": multi_arch,
    "list": manifest_list,
    "many": many_layers,
}


def push(registry: str, repository: str, tag: str, image: Image) -> None:
    """Push everything of `image` to the open registry at the URL `registry`, and tag it."""
    address = urlsplit(registry)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        for blob in image.all_blobs().values():
            _push_blob(connection, repository, blob)
        for one in image.walk():
            name = tag if one is image else one.digest
            _push(connection, "PUT", f"/v2/{repository}/manifests/{name}", one.body, one.media_type)
    finally:
        connection.close()


def _push_blob(connection: http.client.HTTPConnection, repository: str, blob: Blob) -> None:
    started = _push(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"")
    place = urlsplit(started)
    target = f"{place.path}?{place.query}&digest={blob.digest}"
    if isinstance(blob.data, bytes):
        _push(connection, "PUT", target, blob.data, "application/octet-stream")
    else:
        with blob.data.open("rb") as file:
            _push(connection, "PUT", target, file, "application/octet-stream", blob.size)


def _push(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | io.BufferedReader,
    media_type: str = "application/octet-stream",
    size: int | None = None,
) -> str:
    """Send one request and return the Location it was answered with."""
    length = len(body) if isinstance(body, bytes) else size
    connection.request(method, target, body, {"Content-Type": media_type, "Content-Length": str(length)})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status not in (201, 202):
        raise AssertionError(f"{method} {target} was answered {answer.status}: {text[:500]!r}")
    return answer.headers.get("Location", "")
