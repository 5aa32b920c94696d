"""A site without a network takes a bundle in, and every client pulls every image of it; other tools read the bundle.

The site, its mirror and its clients live in a network namespace with nothing but loopback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.oci.digest import Digest
from tests.support import images
from tests.support.apart import Apart
from tests.support.bundles import Site, offer
from tests.support.clients import PLATFORM, Client, Containerd, Docker, Podman, RunsImages, Skopeo
from tests.support.fake_upstream import FakeUpstream
from tests.support.hosting import Hosting
from tests.support.images import DOCKER_MANIFEST, MARKER, OCI_MANIFEST, Blob, Image
from tests.support.processes import run

pytestmark = [pytest.mark.real, pytest.mark.needs("root", "ip")]
MULTI, SCHEMA2, OCI = "library/bundled-multi", "library/bundled-schema2", "team/bundled-oci"
CHART = "charts/bundled"


def artifact(config_type: str, content_type: str, content: bytes, subject: Image | None = None) -> Image:
    """Return what is no image: a chart, a signature."""
    config = json.dumps({"name": "bundled", "version": "1.0.0"}).encode()
    blobs = (
        Blob(config_type, images.digest_of(config), len(config), config),
        Blob(content_type, images.digest_of(content), len(content), content),
    )
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blobs[0].descriptor,
        "layers": [blobs[1].descriptor],
    }
    if subject is not None:
        document |= {"artifactType": content_type, "subject": subject.descriptor}
    return Image(OCI_MANIFEST, json.dumps(document).encode(), blobs)


@dataclass(frozen=True)
class Sent:
    """What was exported: the volumes, the images that clients run, and what only skopeo copies, by name."""

    whole: Path
    volumes: list[Path]
    images: dict[str, Image]
    artifacts: dict[str, Image]
    referrer: Image


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    folder = tmp_path_factory.mktemp("sent")
    multi = images.multi_arch(MULTI)
    runnable = {f"{MULTI}:1.0": multi, f"{SCHEMA2}:1.0": images.schema2(SCHEMA2), f"{OCI}:2": images.oci(OCI)}
    chart = artifact(
        "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart"
    )
    cosign = artifact(images.OCI_CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json", b'{"signed": 1}')
    referrer = artifact("application/vnd.oci.empty.v1+json", "application/vnd.example.signature", b"me", multi)
    signature = f"{MULTI}:sha256-{multi.digest.removeprefix('sha256:')}.sig"
    with Hosting() as hosting:
        upstream = FakeUpstream()
        hosting.call(upstream.__aenter__())
        for name, image in {**runnable, f"{CHART}:1.0.0": chart, signature: cosign}.items():
            repository, _, tag = name.rpartition(":")
            offer(upstream, repository, tag, image)
        offer(upstream, MULTI, None, referrer)
        home = Site(folder, "home", upstream.url)
        references = [f"docker.io/{name}" for name in (*runnable, f"{CHART}:1.0.0")]
        (folder / "list.txt").write_text("# what the ship needs\n\n" + "\n".join(references) + "\n")
        home.entrepot("export", "-o", str(folder / "whole.tar"), "-f", str(folder / "list.txt"))
        home.entrepot("export", "-o", str(folder / "cut.tar"), "--split-size", "5MiB", *references)
        hosting.call(upstream.__aexit__())
    volumes = sorted(folder.glob("cut.*.tar"))
    assert len(volumes) > 1
    return Sent(folder / "whole.tar", volumes, runnable, {f"{CHART}:1.0.0": chart, signature: cosign}, referrer)


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart() as apart:
        yield apart


@pytest.fixture(scope="module")
def site(apart: Apart, sent: Sent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that nothing reaches, after the import, its mirror running."""
    site = Site(tmp_path_factory.mktemp("site"), "ship", flags=["--offline"])
    apart.call(site.entrepot, "import", *map(str, sent.volumes))
    apart.call(site.start)
    yield site
    apart.call(site.stop)


@pytest.fixture
def containerd(apart: Apart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A containerd that reaches the site's mirror alone, and has no image yet."""
    containerd = apart.call(Containerd, tmp_path_factory.mktemp("c"))
    yield containerd
    apart.call(containerd.program.stop)


@pytest.fixture
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with Podman(tmp_path_factory.mktemp("p")) as podman:
        yield podman


def takes_all(apart: Apart, client: Client, site: Site, wanted: dict[str, Image]) -> None:
    for name, image in wanted.items():
        assert apart.call(client.pull, site.url, name) == client.keeps(image), name
        if isinstance(client, RunsImages):
            assert apart.call(client.read, name, MARKER).startswith(name.rpartition(":")[0])


@pytest.mark.needs("skopeo")
def test_skopeo_copies_every_image_chart_and_signature(apart: Apart, site: Site, sent: Sent, tmp_path: Path) -> None:
    takes_all(apart, Skopeo(tmp_path), site, sent.images | sent.artifacts)


@pytest.mark.needs("podman")
def test_podman_pulls_every_image(apart: Apart, site: Site, sent: Sent, podman: Podman) -> None:
    takes_all(apart, podman, site, sent.images)


@pytest.mark.needs("containerd", "ctr")
def test_containerd_pulls_every_image(apart: Apart, site: Site, sent: Sent, containerd: Containerd) -> None:
    takes_all(apart, containerd, site, sent.images)


@pytest.mark.needs("dockerd", "docker")
def test_dockerd_pulls_every_image_and_loads_the_bundle(apart: Apart, site: Site, sent: Sent, tmp_path: Path) -> None:
    with apart.call(Docker, tmp_path) as docker:
        takes_all(apart, docker, site, sent.images)
        for name in sent.images:
            apart.call(docker.remove, name)
        apart.call(docker.load, sent.whole)
        for name in sent.images:
            assert apart.call(docker.read, name, MARKER).startswith(name.rpartition(":")[0])


def test_referrers_of_an_image_are_listed_and_whole(apart: Apart, site: Site, sent: Sent) -> None:  # P19
    subject = sent.images[f"{MULTI}:1.0"].digest
    status, body = apart.call(site.request, f"/v2/{MULTI}/referrers/{subject}")
    assert status == 200
    assert [entry["digest"] for entry in json.loads(body)["manifests"]] == [sent.referrer.digest]
    status, body = apart.call(site.request, f"/v2/{MULTI}/manifests/{sent.referrer.digest}")
    assert (status, body) == (200, sent.referrer.body)
    for blob in sent.referrer.blobs:
        status, body = apart.call(site.request, f"/v2/{MULTI}/blobs/{blob.digest}")
        assert (status, body) == (200, blob.data)


def test_both_platforms_of_an_index_are_there(apart: Apart, site: Site, sent: Sent) -> None:  # P25
    for digest, blob in sent.images[f"{MULTI}:1.0"].all_blobs().items():
        status, body = apart.call(site.request, f"/v2/{MULTI}/blobs/{digest}")
        assert (status, body) == (200, blob.data)


@pytest.mark.needs("podman")
def test_podman_loads_every_image_of_a_bundle(sent: Sent, podman: Podman) -> None:
    podman.load(sent.whole)
    for name in sent.images:
        assert podman.read(name, MARKER).startswith(name.rpartition(":")[0])


@pytest.mark.needs("skopeo")
def test_skopeo_finds_every_image_of_a_bundle_by_its_name(sent: Sent, tmp_path: Path) -> None:
    """In an OCI layout it looks at manifests of OCI alone; those of Docker it finds as an archive of Docker's."""
    env = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    for number, (name, image) in enumerate((sent.images | sent.artifacts).items()):
        target = tmp_path / str(number)
        if image.media_type == DOCKER_MANIFEST:
            source = f"docker-archive:{sent.whole}:docker.io/{name}"
            run(["skopeo", "copy", "--quiet", source, f"dir:{target}"], env=env)
            config = image.of(PLATFORM).blobs[0].digest
            assert config.removeprefix("sha256:") in {path.name for path in target.iterdir()}
            continue
        source = f"oci-archive:{sent.whole}:docker.io/{name}"
        run(["skopeo", "copy", "--quiet", "--all", "--preserve-digests", source, f"dir:{target}"], env=env)
        copied = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in target.iterdir()}
        assert image.digests() <= copied
        raw = run(["skopeo", "inspect", "--raw", source], env=env).stdout
        assert Digest.of(raw.encode()) == image.digest


@pytest.mark.needs("containerd", "ctr")
def test_containerd_imports_every_image_of_a_bundle(apart: Apart, sent: Sent, containerd: Containerd) -> None:
    apart.call(containerd.load, sent.whole)
    for name in sent.images:
        assert apart.call(containerd.read, name, MARKER).startswith(name.rpartition(":")[0])
