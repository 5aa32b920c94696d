"""References as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given

from proxy.oci.digest import Digest
from proxy.oci.errors import DigestInvalid, NameInvalid, NameUnknown, RegistryError, TagInvalid
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.references import format_full, parse_full
from tests.oci.strategies import UPSTREAMS, references, repositories, tags

DIGEST = Digest.of(b"content")
ALPINE = Repository("docker.io", "library/alpine")


@given(repositories, references)
def test_full_reference_is_read_back(repository: Repository, reference: Reference) -> None:
    parsed = parse_full(format_full(repository, reference), UPSTREAMS, "docker.io")
    assert parsed == (repository, reference)
    assert type(parsed[1]) is type(reference)


@given(repositories, tags)
def test_digest_counts_for_more_than_a_tag(repository: Repository, tag: Tag) -> None:
    assert parse_full(f"{repository}:{tag}@{DIGEST}", UPSTREAMS, "docker.io") == (repository, DIGEST)


@pytest.mark.parametrize(
    ("text", "repository", "reference"),
    [
        ("alpine", ALPINE, "latest"),
        ("alpine:3", ALPINE, "3"),
        ("library/alpine:3", ALPINE, "3"),
        ("docker.io/alpine", ALPINE, "latest"),
        ("index.docker.io/library/alpine:3", ALPINE, "3"),
        (f"docker.io/alpine@{DIGEST}", ALPINE, DIGEST),
        ("ghcr.io/a/b:tag", Repository("ghcr.io", "a/b"), "tag"),
        ("lab/tool", Repository("lab", "tool"), "latest"),
        ("team/tool", Repository("docker.io", "team/tool"), "latest"),
    ],
)
def test_shorthand_means_docker_hub_and_latest(text: str, repository: Repository, reference: str) -> None:  # P31
    assert parse_full(text, UPSTREAMS, "docker.io") == (repository, reference)


def test_default_upstream_is_meant_where_none_is_named() -> None:
    assert parse_full("tool:1", UPSTREAMS, "lab") == (Repository("lab", "tool"), "1")
    assert parse_full("dotted.name/tool:1", UPSTREAMS, "lab") == (Repository("lab", "dotted.name/tool"), "1")


@pytest.mark.parametrize("text", ["elsewhere.io/a/b:1", "localhost:5000/a", "10.0.0.1:5000/a/b"])
def test_registry_that_is_not_configured_says_how_to_add_it(text: str) -> None:
    with pytest.raises(NameUnknown, match="--upstream"):
        parse_full(text, UPSTREAMS, "docker.io")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", NameInvalid),
        ("Alpine", NameInvalid),
        ("alpine/", NameInvalid),
        ("docker.io", NameInvalid),
        ("docker.io/", NameInvalid),
        (" alpine", NameInvalid),
        ("https://docker.io/alpine", RegistryError),
        ("alpine:", TagInvalid),
        ("alpine:-1", TagInvalid),
        ("alpine@", DigestInvalid),
        ("alpine@latest", DigestInvalid),
        (f"alpine:-1@{DIGEST}", TagInvalid),
        (f"alpine@{DIGEST}@{DIGEST}", DigestInvalid),
    ],
)
def test_malformed_reference_is_refused(text: str, error: type[RegistryError]) -> None:
    with pytest.raises(error):
        parse_full(text, UPSTREAMS, "docker.io")
