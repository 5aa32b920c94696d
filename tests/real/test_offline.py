"""The mirror when its upstream is gone: after a crash, with tags past their time, and with --offline."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.real.stage import Shelf, with_password
from tests.support import images
from tests.support.clients import Skopeo
from tests.support.gate import Gate
from tests.support.mirror import Mirror, upstream_table
from tests.support.processes import ProgramFailed
from tests.support.registry import Registry

pytestmark = pytest.mark.needs("docker-registry", "skopeo")


def test_after_kill_9_a_tag_past_its_time_is_served_stale_while_the_upstream_is_down(  # P44
    gate: Gate, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    placed = shelf.image("multi", "stale")
    mirror = Mirror(tmp_path, {}, config=upstream_table("docker.io", gate.url, tag_ttl="0s"))
    with mirror:
        skopeo.pull(mirror.url, placed.name)
        skopeo.remove(placed.name)
        mirror.kill()
        gate.close()
        mirror.start()
        assert skopeo.pull(mirror.url, placed.name) == placed.image.digests()
        skopeo.remove(placed.name)


def test_offline_serves_what_is_there_and_asks_the_upstream_nothing(
    gate: Gate, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    cached, uncached = shelf.image("multi", "offline"), shelf.image("oci", "offline-missing")
    with Mirror(tmp_path, {"docker.io": gate.url}) as mirror:
        skopeo.pull(mirror.url, cached.name)
        skopeo.remove(cached.name)
    gate.forget()
    with Mirror(tmp_path, {"docker.io": gate.url}, flags=["--offline"]) as mirror:
        assert skopeo.pull(mirror.url, cached.name) == cached.image.digests()
        skopeo.remove(cached.name)
        with pytest.raises(ProgramFailed):
            skopeo.pull(mirror.url, uncached.name)
    assert gate.seen == []


def test_a_tag_that_moved_upstream_is_followed_once_its_time_is_over(  # P35
    gate: Gate, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    repository = "library/entrepot-moving"
    old = shelf.place(repository, "latest", images.oci("old"))
    with Mirror(tmp_path, {}, config=upstream_table("docker.io", gate.url, tag_ttl="0s")) as mirror:
        assert skopeo.pull(mirror.url, old.name) == old.image.digests()
        skopeo.remove(old.name)
        new = shelf.place(repository, "latest", images.oci("new"))
        gate.forget()
        assert skopeo.pull(mirror.url, new.name) == new.image.digests()
        skopeo.remove(new.name)
        assert gate.count("HEAD", "manifests") >= 1
        assert gate.count("GET", "manifests") == 1


@pytest.mark.needs("htpasswd")
def test_a_mirror_starts_while_its_upstream_is_down_and_serves_it_when_it_is_back(
    basic_registry: Registry, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    """It leaves an upstream that it could not reach alone for some seconds; within ten it must have asked again."""
    placed = shelf.image("oci", "late")
    gate = basic_registry.gate
    gate.close()
    with Mirror(tmp_path, {}, config=with_password(basic_registry, tmp_path)) as mirror:
        path = f"/v2/{placed.repository}/manifests/{placed.tag}"
        try:
            status, body = mirror.request(path)
        finally:
            gate.open()
        assert status == 503  # P30
        assert b'"errors"' in body  # P9
        back = time.monotonic()
        while mirror.request(path)[0] != 200:
            assert time.monotonic() - back < 30, mirror.program.tail()
            time.sleep(0.2)
        assert skopeo.pull(mirror.url, placed.name) == placed.image.digests()
        skopeo.remove(placed.name)
