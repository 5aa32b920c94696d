"""A layer of 1 GiB through the mirror with real clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.matrix import PROGRAMS
from tests.real.stage import Placed, Shelf, Site
from tests.support import images
from tests.support.clients import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def huge(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Placed]:
    folder: Path = tmp_path_factory.mktemp("huge")
    image = images.huge("huge", folder)
    yield shelf.place("library/entrepot-huge", "1.0", image)
    (folder / "huge.tar").unlink()


@pytest.mark.parametrize(
    ("client", "site"),
    [
        pytest.param("skopeo", "open_site", marks=pytest.mark.needs(*PROGRAMS["skopeo"])),
        pytest.param("podman", "open_site", marks=pytest.mark.needs(*PROGRAMS["podman"])),
        pytest.param("docker", "basic_site", marks=pytest.mark.needs("htpasswd", *PROGRAMS["docker"])),
        pytest.param("containerd", "bearer_site", marks=pytest.mark.needs(*PROGRAMS["containerd"])),
    ],
    indirect=["client"],
)
def test_a_layer_of_1_gib_arrives_whole(
    client: Client, site: str, huge: Placed, request: pytest.FixtureRequest
) -> None:
    used: Site = request.getfixturevalue(site)
    assert client.pull(used.mirror.url, huge.name, timeout=300) == client.keeps(huge.image)
    client.remove(huge.name)
    assert client.pull(used.mirror.url, huge.name, timeout=300) == client.keeps(huge.image)
    client.remove(huge.name)
