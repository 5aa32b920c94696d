"""The upstreams, the clients and the images of the tests with real programs: each started once, on first use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.stage import Shelf, Site, with_password
from tests.support import registry
from tests.support.clients import Client, Containerd, Docker, Podman, Skopeo
from tests.support.gate import Gate
from tests.support.hosting import Hosting
from tests.support.mirror import Mirror
from tests.support.registry import Registry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def hosting() -> Iterator[Hosting]:
    with Hosting() as hosting:
        yield hosting


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage that all registries serve."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def open_registry(hosting: Hosting, storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    started = registry.start_open(hosting, tmp_path_factory.mktemp("open"), storage)
    yield started
    started.close()


@pytest.fixture(scope="session")
def basic_registry(hosting: Hosting, storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    started = registry.start_basic(hosting, tmp_path_factory.mktemp("basic"), storage)
    yield started
    started.close()


@pytest.fixture(scope="session")
def bearer_registry(hosting: Hosting, storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    started = registry.start_bearer(hosting, tmp_path_factory.mktemp("bearer"), storage)
    yield started
    started.close()


@pytest.fixture(scope="session")
def shelf(open_registry: Registry) -> Shelf:
    return Shelf(open_registry.direct)


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    """The open registry's gate, counting from nothing, open again and as fast as before when the test is over."""
    yield from _reset(request.getfixturevalue("open_registry").gate)


def _reset(gate: Gate) -> Iterator[Gate]:
    gate.forget()
    yield gate
    gate.rate = 0
    gate.close()
    gate.open()


@pytest.fixture(scope="session")
def open_site(open_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mirror of the open registry, configured by flags alone."""
    with Mirror(tmp_path_factory.mktemp("mirror"), {"docker.io": open_registry.gate.url}) as mirror:
        yield Site(mirror, open_registry)


@pytest.fixture(scope="session")
def basic_site(basic_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mirror of the registry with Basic, configured by a file."""
    folder = tmp_path_factory.mktemp("mirror")
    with Mirror(folder, {}, config=with_password(basic_registry, folder)) as mirror:
        yield Site(mirror, basic_registry)


@pytest.fixture(scope="session")
def bearer_site(bearer_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mirror of the registry with bearer tokens and redirected blobs, without any credential."""
    with Mirror(tmp_path_factory.mktemp("mirror"), {"docker.io": bearer_registry.gate.url}) as mirror:
        yield Site(mirror, bearer_registry)


@pytest.fixture(scope="session")
def skopeo(tmp_path_factory: pytest.TempPathFactory) -> Skopeo:
    return Skopeo(tmp_path_factory.mktemp("sk"))


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with Podman(tmp_path_factory.mktemp("pm")) as podman:
        yield podman


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with Docker(tmp_path_factory.mktemp("dk")) as docker:
        yield docker


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with Containerd(tmp_path_factory.mktemp("cd")) as containerd:
        yield containerd


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """The client that the test is parametrized with, by the name of its fixture."""
    found: Client = request.getfixturevalue(request.param)
    return found
