"""Names, tags and digests follow the grammar of P8, and errors say what was expected."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import DigestInvalid, NameInvalid, TagInvalid
from proxy.oci.names import Repository, Tag, find_upstream, parse_path, repository_under
from tests.oci.strategies import UPSTREAMS, paths, repositories, tags


@given(paths)
def test_name_of_the_grammar_is_accepted(path: str) -> None:
    assert parse_path("ghcr.io", path) == Repository("ghcr.io", path)


@pytest.mark.parametrize(
    "path", ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "a:b", "a b", "a\n", "..", "é"]
)
def test_name_outside_the_grammar_is_refused(path: str) -> None:
    with pytest.raises(NameInvalid):
        parse_path("ghcr.io", path)


@pytest.mark.parametrize("path", ["a" * 100_000, "a-" * 120, "a-" * 123, "_" * 240, "a__" * 80])
def test_hostile_name_is_refused_quickly(path: str) -> None:
    with pytest.raises(NameInvalid):
        parse_path("ghcr.io", path)


@given(tags)
def test_tag_of_the_grammar_is_accepted(tag: Tag) -> None:
    assert Tag.parse(str(tag)) == tag


@pytest.mark.parametrize("tag", ["", "-a", ".a", "a" * 129, "a b", "a\n", "é", "a/b"])
def test_malformed_tag_is_refused(tag: str) -> None:
    with pytest.raises(TagInvalid):
        Tag.parse(tag)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digest_knows_its_content(algorithm: str) -> None:
    digest = Digest.of(b"content", algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, b'content').hexdigest()}"
    assert Digest.parse(digest) == digest
    assert (digest.algorithm, digest.hex) == tuple(digest.split(":"))
    hasher = digest.hasher()
    hasher.update(b"content")
    assert digest.matches(hasher)
    hasher.update(b"more")
    assert not digest.matches(hasher)


@given(st.text())
def test_only_the_two_forms_are_digests(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@given(repositories)
def test_upstream_is_selected_by_the_first_component_or_is_the_default(repository: Repository) -> None:
    assert repository_under(str(repository), UPSTREAMS, "lab") == repository
    assert repository_under(repository.path, UPSTREAMS, repository.upstream) == repository


def test_alias_of_docker_hub_counts_only_where_docker_hub_is_mirrored() -> None:  # P31, P39
    for alias in ("index.docker.io", "registry-1.docker.io"):
        assert find_upstream(alias, {"docker.io"}) == "docker.io"
        assert find_upstream(alias, {"ghcr.io"}) is None
    assert find_upstream("ghcr.io", {"docker.io"}) is None


def test_name_that_is_only_a_registry_says_what_lacks() -> None:
    with pytest.raises(NameInvalid, match=r"ghcr\.io/<repository>"):
        repository_under("ghcr.io", UPSTREAMS, "docker.io")
