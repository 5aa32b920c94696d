"""Real clients of a mirror that sends them to the bucket, and serves them while the bucket is away."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.bucket.redirects import HEARD_SECONDS
from tests.support import images
from tests.support.bucket import BucketServer
from tests.support.clients import Podman, Skopeo
from tests.support.hosting import Hosting
from tests.support.images import Image
from tests.support.mirror import Mirror
from tests.support.registry import Registry, start_open

pytestmark = [pytest.mark.slow, pytest.mark.needs("docker-registry", "skopeo", "podman", "root")]
REPOSITORY = "library/redirected"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Hosting() as hosting:
        folder = tmp_path_factory.mktemp("upstream")
        registry = start_open(hosting, folder / "registry", folder / "storage")
        yield registry
        registry.close()


@pytest.fixture(scope="module")
def image(upstream: Registry) -> Image:
    image = images.oci("redirected")
    images.push(upstream.direct, REPOSITORY, "1", image)
    return image


def metric(mirror: Mirror, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    with urllib.request.urlopen(f"{mirror.admin}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def redirected(mirror: Mirror) -> float:
    return metric(mirror, "entrepot_lookups_total", kind="blob", outcome="redirected")


def uploaded(mirror: Mirror, count: int, seconds: float = 60) -> None:
    """Return when that many objects were put."""
    deadline = time.monotonic() + seconds
    while metric(mirror, "entrepot_bucket_requests_total", operation="put", outcome="ok") < count:
        assert time.monotonic() < deadline, f"not {count} objects in the bucket after {seconds} s"
        time.sleep(0.05)


def test_clients_follow_to_the_bucket_and_are_served_without_it(
    tmp_path: Path, server: BucketServer, url: str, upstream: Registry, image: Image
) -> None:
    upstreams = {"docker.io": upstream.gate.url}
    env = {**server.environment, "ENTREPOT_STORE": url, "ENTREPOT_STORE_REDIRECT": "true"}
    with Mirror(tmp_path / "first", upstreams, env=env) as first:
        Skopeo(tmp_path / "skopeo 1").pull(first.url, f"{REPOSITORY}:1")
        uploaded(first, 1 + len(image.blobs))
        assert redirected(first) == 0
    with Mirror(tmp_path / "second", upstreams, env=env) as second:
        skopeo = Skopeo(tmp_path / "skopeo 2")
        assert skopeo.pull(second.url, f"{REPOSITORY}:1") == skopeo.keeps(image)
        assert redirected(second) == 1
        with TemporaryDirectory(prefix="podman") as short, Podman(Path(short)) as podman:
            assert podman.keeps(image) <= podman.pull(second.url, f"{REPOSITORY}:1")
            podman.remove(f"{REPOSITORY}:1")
            assert redirected(second) == 2
            server.pause()
            time.sleep(HEARD_SECONDS)
            try:
                assert podman.keeps(image) <= podman.pull(second.url, f"{REPOSITORY}:1", timeout=25)
            finally:
                server.resume()
            assert redirected(second) == 2
        log = (second.folder / "mirror.log").read_text()
    for secret in ("X-Amz", server.environment["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in log
