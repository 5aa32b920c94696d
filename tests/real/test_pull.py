"""Real clients pull through the mirror what the upstream has: each image once cold, then with the upstream gone."""

from __future__ import annotations

import pytest

from tests.real.matrix import CLIENTS, CLIENTS_AND_KINDS, CLIENTS_OF_MANY_LAYERS
from tests.real.stage import Placed, Shelf, Site
from tests.support.clients import PLATFORM, Client, RunsImages
from tests.support.images import MARKER, Image


def wanted_blobs(client: str, image: Image) -> set[str]:
    """Return the blobs that a client asks for: skopeo copies all platforms, the others unpack their own."""
    return set((image if client == "skopeo" else image.of(PLATFORM)).all_blobs())


def pull_cold_and_warm(name: str, client: Client, site: Site, placed: Placed) -> None:
    """Pull `placed` twice with one client, the second time with the upstream closed, and check what came."""
    gate = site.upstream.gate
    gate.forget()
    image = placed.image

    assert client.pull(site.mirror.url, placed.name) == client.keeps(image)
    assert gate.blob_gets() == dict.fromkeys(wanted_blobs(name, image), 1)
    check_content(client, placed)
    client.remove(placed.name)

    gate.forget()
    gate.close()
    try:
        assert client.pull(site.mirror.url, placed.name) == client.keeps(image)
    finally:
        gate.open()
    check_content(client, placed)
    client.remove(placed.name)
    assert gate.seen == []


def check_content(client: Client, placed: Placed) -> None:
    """Read the image's own file where the client unpacks, to see that the layers are usable."""
    if isinstance(client, RunsImages):
        assert client.read(placed.name, MARKER).startswith(placed.repository)


@pytest.mark.parametrize(("client", "kind"), CLIENTS_AND_KINDS, indirect=["client"])
def test_pulled_digests_equal_upstreams_and_the_second_pull_needs_no_upstream(  # P18
    client: Client, kind: str, open_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["client"]
    pull_cold_and_warm(name, client, open_site, shelf.image(kind, name))


@pytest.mark.parametrize("client", CLIENTS_OF_MANY_LAYERS, indirect=True)
def test_an_image_of_200_layers_arrives_whole_and_each_layer_was_fetched_at_most_once(
    client: Client, open_site: Site, shelf: Shelf
) -> None:
    """One image for all clients: whoever comes first finds the cache cold."""
    placed = shelf.image("many", "shared")
    gate = open_site.upstream.gate
    gate.forget()
    assert client.pull(open_site.mirror.url, placed.name) == client.keeps(placed.image)
    client.remove(placed.name)
    gets = gate.blob_gets()
    assert set(gets) in (set(), set(placed.image.all_blobs()))
    assert set(gets.values()) <= {1}


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
@pytest.mark.needs("htpasswd")
def test_an_upstream_with_basic_authentication_serves_clients_that_have_no_password(  # P33
    client: Client, basic_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["client"]
    pull_cold_and_warm(name, client, basic_site, shelf.image("multi", name))


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_an_upstream_with_tokens_and_redirected_blobs_serves_every_client(  # P33, P36
    client: Client, bearer_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["client"]
    assert bearer_site.upstream.blob_host is not None
    before = len(bearer_site.upstream.blob_host.statuses)
    placed = shelf.image("multi", name)

    pull_cold_and_warm(name, client, bearer_site, placed)

    statuses = bearer_site.upstream.blob_host.statuses[before:]
    assert len(statuses) == len(wanted_blobs(name, placed.image))
    assert set(statuses) <= {200, 206}


@pytest.mark.parametrize("client", CLIENTS, indirect=True)
def test_a_pull_by_digest_brings_that_manifest(  # P2, P31
    client: Client, open_site: Site, shelf: Shelf, request: pytest.FixtureRequest
) -> None:
    placed = shelf.image("schema2", f"{request.node.callspec.params['client']}-by-digest")
    reference = f"{placed.repository}@{placed.image.digest}"
    assert client.pull(open_site.mirror.url, reference) == client.keeps(placed.image)
    client.remove(reference)


@pytest.mark.needs("docker-registry", "containerd", "ctr", "root")
def test_containerd_names_the_upstream_by_ns(containerd: Client, open_site: Site, shelf: Shelf) -> None:  # P17
    """The mirror must take the parameter itself, and not hand it to the upstream."""
    placed = shelf.image("oci", "ns")
    open_site.upstream.gate.forget()
    containerd.pull(open_site.mirror.url, placed.name)
    assert {one.query for one in open_site.upstream.gate.seen} == {""}
    status, _ = open_site.mirror.request(f"/v2/{placed.repository}/manifests/1.0?ns=unknown.example")
    assert status == 404
    containerd.remove(placed.name)
