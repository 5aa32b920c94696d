"""`entrepot serve --from`: a mirror straight from the medium, as clients meet it. Nothing is written anywhere."""

from __future__ import annotations

import http.client
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest

from proxy.oci.digest import Digest
from sync.bundle.keys import PrivateKey
from sync.bundle.opened import open_bundles
from tests.bundle.writing import make_bundle
from tests.support import contents, images
from tests.support.clients import Client, Containerd, Docker, Podman, Skopeo
from tests.support.images import Image
from tests.support.mirror import Mirror
from tests.support.volumes import mounted

NAMES = {f"library/carried-{kind}": kind for kind in ("schema2", "oci", "multi", "list")}
MIB = 1 << 20


def carried(image: Image) -> contents.Image:
    """Return an image as the writer of bundles takes it."""
    blobs = tuple(blob.data for blob in image.blobs if isinstance(blob.data, bytes))
    return contents.Image(image.media_type, image.body, blobs, tuple(map(carried, image.manifests)))


@dataclass(frozen=True)
class Medium:
    """A folder with a signed bundle of several volumes, the images in it by name, and the configuration for it."""

    folder: Path
    images: Mapping[str, Image]
    config: str

    def mirror(self, folder: Path) -> Mirror:
        return Mirror(folder, {}, flags=["--from", str(self.folder)], config=self.config)


def medium(folder: Path) -> Medium:
    disk = folder / "disk"
    disk.mkdir()
    key = PrivateKey.new()
    key.public.save(folder / "hq.pub")
    made = {name: images.KINDS[kind](name) for name, kind in NAMES.items()}
    paths = make_bundle(
        disk, [(f"docker.io/{name}:1", carried(image)) for name, image in made.items()], split=16 * MIB, key=key
    )
    assert len(paths) == 2
    for path in paths:
        path.chmod(0o444)
    disk.chmod(0o555)
    trusted = f'[[trusted_key]]\nname = "hq"\nfile = "{folder}/hq.pub"\n'
    return Medium(disk, made, trusted)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Medium:
    return medium(tmp_path_factory.mktemp("medium"))


@pytest.fixture(scope="module")
def mirror(disk: Medium, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("home")
    before = {path: path.stat().st_mtime_ns for path in disk.folder.rglob("*")}
    with disk.mirror(folder) as mirror:
        yield mirror
    assert sorted(path.name for path in folder.iterdir()) == ["entrepot.toml", "mirror.log"]
    assert {path: path.stat().st_mtime_ns for path in disk.folder.rglob("*")} == before


def ask(
    mirror: Mirror, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask for a path and return status, headers and the body, as far as it comes."""
    connection = http.client.HTTPConnection(urlsplit(mirror.url).netloc, timeout=30)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as short:
            body = short.partial
        return answer.status, answer.headers, body
    finally:
        connection.close()


def big(image: Image) -> images.Blob:
    """Return the largest layer of an image."""
    return max(image.all_blobs().values(), key=lambda blob: blob.size)


def pulls_all(client: Client, mirror: Mirror, disk: Medium) -> None:
    for name, image in disk.images.items():
        assert client.keeps(image) <= client.pull(mirror.url, f"{name}:1")


@pytest.mark.real
@pytest.mark.needs("skopeo")
def test_skopeo_pulls_every_image_from_two_volumes(mirror: Mirror, disk: Medium, tmp_path: Path) -> None:
    pulls_all(Skopeo(tmp_path), mirror, disk)


@pytest.mark.real
@pytest.mark.needs("podman", "root")
def test_podman_pulls_every_image_from_two_volumes(mirror: Mirror, disk: Medium) -> None:
    with TemporaryDirectory(prefix="pm") as short, Podman(Path(short)) as podman:
        pulls_all(podman, mirror, disk)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.needs("dockerd", "docker", "root")
def test_dockerd_pulls_every_image_with_the_mirror_in_its_list(mirror: Mirror, disk: Medium, tmp_path: Path) -> None:
    with Docker(tmp_path) as docker:
        pulls_all(docker, mirror, disk)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.needs("containerd", "ctr", "root")
def test_containerd_pulls_every_image_by_its_namespace(mirror: Mirror, disk: Medium) -> None:
    with TemporaryDirectory(prefix="cd") as short, Containerd(Path(short)) as containerd:
        pulls_all(containerd, mirror, disk)


def test_ranges_heads_and_lists_are_answered_from_the_volumes(mirror: Mirror, disk: Medium) -> None:  # P3, P4, P5
    name = "library/carried-oci"
    layer = big(disk.images[name])
    assert isinstance(layer.data, bytes)
    path = f"/v2/{name}/blobs/{layer.digest}"
    status, headers, body = ask(mirror, path, "HEAD")
    assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (200, str(layer.size), "bytes", b"")
    status, headers, body = ask(mirror, path, headers={"Range": "bytes=1000-2999"})
    assert (status, headers["Content-Range"]) == (206, f"bytes 1000-2999/{layer.size}")
    assert body == layer.data[1000:3000]
    assert ask(mirror, path, headers={"Range": "bytes=0-"})[2] == layer.data
    assert ask(mirror, path, headers={"Range": f"bytes={layer.size}-"})[0] == 416
    status, headers, body = ask(mirror, path, headers={"Range": "bytes=0-9,100-199"})
    assert status == 206
    assert headers.get_content_type() == "multipart/byteranges"
    assert layer.data[100:200] in body
    assert ask(mirror, f"/v2/{name}/tags/list?ns=docker.io")[2] == b'{"name":"%s","tags":["1"]}' % name.encode()
    # A single component is Docker Hub's, and the built-in configuration means it (P31).
    assert ask(mirror, "/v2/carried-oci/manifests/1")[2] == disk.images[name].body
    assert ask(mirror, f"/v2/{name}/manifests/2")[0] == 404
    assert ask(mirror, f"/v2/ghcr.io/{name}/manifests/1")[0] == 404


def test_status_and_probes_tell_of_the_bundle(mirror: Mirror) -> None:
    with urllib.request.urlopen(f"{mirror.admin}/readyz", timeout=10) as answer:
        assert json.load(answer) == {"status": "ready", "reasons": []}
    told = mirror.status()
    (bundle,) = told["bundles"]
    assert (bundle["signed_by"], bundle["volumes"], bundle["missing"]) == ("hq", 2, [])
    assert (told["images"], told["served"]) == (4, 4)
    with urllib.request.urlopen(f"{mirror.admin}/metrics", timeout=10) as answer:
        assert b"entrepot_requests_total" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"{mirror.admin}/dashboard", timeout=10)
    assert b"serves from bundles has no dashboard" in refused.value.read()
    before = mirror.program.lines()
    mirror.program.signal(signal.SIGHUP)
    mirror.program.wait_line("SIGHUP is ignored", after=before)


@pytest.mark.needs("root", "mount")
def test_a_medium_mounted_read_only_is_served(disk: Medium, tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "mounted", "--bind", "-o", "ro", disk.folder) as folder,
        Medium(folder, disk.images, disk.config).mirror(tmp_path / "home") as mirror,
    ):
        name, image = next(iter(disk.images.items()))
        assert ask(mirror, f"/v2/{name}/manifests/1")[2] == image.body


def test_a_flipped_bit_ends_no_blob_and_a_begun_download_is_finished_after_sigterm(tmp_path: Path) -> None:  # P28
    damaged, sound = contents.blob(4 * MIB, 1), contents.blob(24 * MIB, 2)
    image = contents.make_image([damaged, sound])
    (path,) = make_bundle(tmp_path, [("docker.io/library/hurt:1", image)])
    (bundle,) = open_bundles([path])
    digests = [Digest.of(data) for data in (damaged, sound)]
    place = bundle.place(digests[0])
    extents = bundle.extents(place) if place is not None else None
    bundle.close()
    assert extents is not None
    with path.open("r+b") as file:
        file.seek(extents[0].offset + 1_000_000)
        file.write(bytes([damaged[1_000_000] ^ 4]))
    with Mirror(tmp_path / "home", {}, flags=["--from", str(path)]) as mirror:
        hurt, whole = (f"/v2/library/hurt/blobs/{digest}" for digest in digests)
        status, headers, body = ask(mirror, hurt)
        assert (status, headers["Content-Length"]) == (200, str(len(damaged)))
        assert len(body) < len(damaged)
        mirror.program.wait_line(rf"a blob is damaged.*{digests[0]}.*volume 1 \({path.name}\)")
        assert ask(mirror, hurt, headers={"Range": f"bytes={len(body)}-"})[0] == 502

        connection = http.client.HTTPConnection(urlsplit(mirror.url).netloc, timeout=30)
        connection.request("GET", whole)
        answer = connection.getresponse()
        got = answer.read(MIB)
        mirror.program.signal(signal.SIGTERM)
        mirror.program.wait_line("draining")
        assert got + answer.read() == sound
        connection.close()
        assert mirror.program.ended() == 0
