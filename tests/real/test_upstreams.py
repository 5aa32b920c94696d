"""What the mirror sends to Debian's docker-registry with Basic, with tokens and with blobs on another host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.stage import Shelf, Site, with_password
from tests.support.clients import Skopeo
from tests.support.mirror import Mirror
from tests.support.processes import ProgramFailed
from tests.support.registry import USER, Registry

pytestmark = pytest.mark.needs("docker-registry", "skopeo")


@pytest.mark.needs("htpasswd")
def test_without_a_password_an_upstream_with_basic_gives_nothing(  # P32, P34
    basic_registry: Registry, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    placed = shelf.image("oci", "no-password")
    with Mirror(tmp_path, {"docker.io": basic_registry.gate.url}) as mirror:
        status, body = mirror.request(f"/v2/{placed.repository}/manifests/{placed.tag}")
        assert status == 404
        assert b"basic-test" not in body
        with pytest.raises(ProgramFailed):
            skopeo.pull(mirror.url, placed.name)


@pytest.mark.needs("htpasswd")
def test_the_password_shows_neither_in_the_log_nor_in_the_status(basic_site: Site, shelf: Shelf) -> None:
    placed = shelf.image("oci", "log")
    assert basic_site.mirror.request(f"/v2/{placed.repository}/manifests/{placed.tag}")[0] == 200
    secret = basic_site.upstream.password
    assert secret not in basic_site.mirror.program.tail()
    assert secret not in str(basic_site.mirror.status())


def test_a_token_is_asked_for_once_per_repository_with_the_scope_of_that_repository(  # P33
    bearer_site: Site, shelf: Shelf, skopeo: Skopeo
) -> None:
    tokens = bearer_site.upstream.tokens
    assert tokens is not None
    placed = shelf.image("list", "scope")
    before = len(tokens.asked)
    skopeo.pull(bearer_site.mirror.url, placed.name)
    asked = tokens.asked[before:]
    assert [(one.scope, one.service, one.account) for one in asked] == [
        ((f"repository:{placed.repository}:pull",), "registry.test", "")
    ]


def test_a_private_repository_is_pulled_with_a_password_and_hidden_without_one(  # P33, P34
    bearer_site: Site, bearer_registry: Registry, shelf: Shelf, skopeo: Skopeo, tmp_path: Path
) -> None:
    tokens = bearer_registry.tokens
    assert tokens is not None
    placed = shelf.image("oci", "hidden", namespace="private")
    path = f"/v2/{placed.repository}/manifests/{placed.tag}"

    assert bearer_site.mirror.request(path)[0] == 404

    with Mirror(tmp_path, {}, config=with_password(bearer_registry, tmp_path)) as mirror:
        assert skopeo.pull(mirror.url, placed.name) == placed.image.digests()
    skopeo.remove(placed.name)
    assert tokens.asked[-1].account == USER


def test_the_authorization_header_is_not_carried_to_the_host_of_a_redirect(  # P36
    bearer_registry: Registry, shelf: Shelf, tmp_path: Path
) -> None:
    """The blob host answers 400 to any request with one."""
    blob_host = bearer_registry.blob_host
    assert blob_host is not None
    placed = shelf.image("oci", "redirected", namespace="private")
    blob = placed.image.blobs[-1]
    with Mirror(tmp_path, {}, config=with_password(bearer_registry, tmp_path)) as mirror:
        before = len(blob_host.statuses)
        assert mirror.request(f"/v2/{placed.repository}/blobs/{blob.digest}") == (200, blob.data)
    assert blob_host.statuses[before:] == [200]
