"""Every path form of every request is read right, and whatever is wrong gets the error that the rules say."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import (
    DigestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    RegistryError,
    TagInvalid,
    Unsupported,
    encode,
)
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.requests import (
    BlobRequest,
    CatalogRequest,
    ManifestRequest,
    Ping,
    ReferrersRequest,
    Request,
    TagsRequest,
    parse,
)
from tests.oci.strategies import UPSTREAMS, digests, references, repositories

DIGEST = Digest.of(b"content")
ALPINE = Repository("docker.io", "library/alpine")
forms = st.sampled_from(["/v2/{upstream}/{path}", "/{upstream}/v2/{path}", "/v2/{upstream}/{path}?ns"])


def get(target: str, default: str = "docker.io") -> Request:
    return parse("GET", target, UPSTREAMS, default)


def located(target: str) -> Repository:
    request = get(target)
    assert isinstance(request, ManifestRequest)
    return request.repository


def refusal(method: str, target: str) -> RegistryError | None:
    try:
        parse(method, target, UPSTREAMS, "docker.io")
    except RegistryError as error:
        return error
    return None


@given(repositories, references, forms, st.sampled_from(["GET", "HEAD"]))
def test_manifest_is_read_from_every_path_form(
    repository: Repository, reference: Reference, form: str, method: str
) -> None:  # P8: also repositories called a/manifests/b
    base, scoped, _ = form.format(upstream=repository.upstream, path=repository.path).partition("?")
    target = f"{base}/manifests/{reference}" + (f"?ns={repository.upstream}" if scoped else "")
    ns = repository.upstream if scoped else None
    assert parse(method, target, UPSTREAMS, "docker.io") == ManifestRequest(repository, reference, ns)


@given(repositories, digests)
def test_namespace_or_default_selects_the_upstream_of_a_bare_path(repository: Repository, digest: Digest) -> None:
    target = f"/v2/{repository.path}/blobs/{digest}"
    assert get(f"{target}?ns={repository.upstream}") == BlobRequest(repository, digest, repository.upstream)
    assert get(target, default=repository.upstream) == BlobRequest(repository, digest, None)


@given(repositories, digests)
def test_colon_of_a_digest_may_be_percent_encoded(repository: Repository, digest: Digest) -> None:  # P41
    for colon in ("%3A", "%3a"):
        target = f"/v2/{repository}/blobs/{digest.algorithm}{colon}{digest.hex}"
        assert get(target) == BlobRequest(repository, digest, None)


@given(repositories, digests, st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1))
def test_referrers_are_filtered_by_the_decoded_artifact_type(
    repository: Repository, digest: Digest, artifact_type: str
) -> None:
    target = f"/v2/{repository}/referrers/{digest}?artifactType={quote(artifact_type)}&ns={repository.upstream}"
    assert get(target) == ReferrersRequest(repository, digest, artifact_type, repository.upstream)


@given(repositories, st.integers(0, 10**18 - 1))
def test_tags_are_paged(repository: Repository, n: int) -> None:  # P11
    assert get(f"/v2/{repository}/tags/list") == TagsRequest(repository, None, None, None)
    assert get(f"/v2/{repository}/tags/list?n={n}&last=v1.0") == TagsRequest(repository, n, "v1.0", None)
    assert get(f"/v2/{repository}/tags/list?last=") == TagsRequest(repository, None, None, None)


@given(st.sampled_from(["GET", "HEAD", "POST", "X"]), st.text())
def test_any_text_is_a_request_or_a_specified_error(method: str, text: str) -> None:  # P9
    for target in (text, f"/v2/{text}", f"/v2/a/{text}", f"/v2/a/manifests/{text}", f"/v2/a/tags/list?{text}"):
        error = refusal(method, target)
        if error is not None:
            assert 400 <= error.status < 500
            assert error.code != "UNKNOWN"
            assert len(error.message) < 2500
            assert json.loads(encode(error))["errors"][0]["message"] == error.message


@given(st.text(st.sampled_from("/.%2efab:")))
def test_accepted_paths_hold_no_escape_and_no_dot_segment(text: str) -> None:  # P41
    try:
        request = get(f"/v2/{text}/manifests/latest")
    except RegistryError:
        return
    assert isinstance(request, ManifestRequest)
    assert not set("%:?") & set(request.repository.path)
    assert not {"", ".", ".."} & set(request.repository.path.split("/"))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v2/alpine/manifests/3", ALPINE),
        ("/v2/library/alpine/manifests/3", ALPINE),
        ("/v2/docker.io/alpine/manifests/3", ALPINE),
        ("/v2/index.docker.io/alpine/manifests/3", ALPINE),
        ("/docker.io/v2/alpine/manifests/3", ALPINE),
        ("/index.docker.io/v2/alpine/manifests/3?ns=docker.io", ALPINE),
        ("/v2/alpine/manifests/3?ns=index.docker.io", ALPINE),
        ("/v2/docker.io/library/alpine/manifests/3?ns=registry-1.docker.io", ALPINE),
        ("/v2/alpine/manifests/3?ns=", ALPINE),
        ("/v2/alpine/manifests/3?other=1&ns=docker.io", ALPINE),
        ("/v2/alpine/manifests/3?ns=docker%2Eio", ALPINE),
        ("/v2/tool/manifests/3?ns=ghcr.io", Repository("ghcr.io", "tool")),
    ],
)
def test_docker_hub_has_aliases_and_a_library(target: str, expected: Repository) -> None:  # P31
    assert located(target) == expected


@pytest.mark.parametrize(
    ("target", "expected", "echoed"),
    [
        ("/v2/ghcr.io/a/b/manifests/x?ns=docker.io", Repository("ghcr.io", "a/b"), None),
        ("/ghcr.io/v2/a/b/manifests/x?ns=docker.io", Repository("ghcr.io", "a/b"), None),
        ("/ghcr.io/v2/docker.io/b/manifests/x", Repository("ghcr.io", "docker.io/b"), None),
        ("/v2/ghcr.io/docker.io/b/manifests/x", Repository("ghcr.io", "docker.io/b"), None),
        ("/v2/a/b/manifests/x?ns=ghcr.io", Repository("ghcr.io", "a/b"), "ghcr.io"),
        ("/v2/alpine/manifests/x?ns=index.docker.io", ALPINE, "index.docker.io"),
        ("/v2/elsewhere.io/b/manifests/x", Repository("docker.io", "elsewhere.io/b"), None),
    ],
)
def test_path_that_names_an_upstream_wins_over_the_namespace(
    target: str, expected: Repository, echoed: str | None
) -> None:  # P17, P39
    assert get(target) == ManifestRequest(expected, Tag("x"), echoed)


@pytest.mark.parametrize(
    "target",
    [
        "/v2/alpine/manifests/3?ns=evil.example",
        "/v2/docker.io/library/alpine/manifests/3?ns=evil.example",
        "/v2/alpine/manifests/3?ns=DOCKER.IO",
        "/v2/alpine/manifests/3?ns=docker.io.",
        "/v2/alpine/manifests/3?ns=127.0.0.1%3A22",
        "/evil.example/v2/alpine/manifests/3",
        "/evil.example/v2/",
    ],
)
def test_unknown_registry_is_refused_without_telling_which_are_known(target: str) -> None:  # P39
    with pytest.raises(NameUnknown, match="not mirrored here") as caught:
        get(target)
    assert caught.value.status == 404
    assert not [name for name in UPSTREAMS - {"docker.io"} if name in caught.value.message]


@pytest.mark.parametrize("target", ["/v2/", "/v2", "/ghcr.io/v2/", "/ghcr.io/v2", "/v2/?ns=evil.example"])
def test_ping_is_answered_for_every_form(target: str) -> None:  # P1
    assert get(target) == Ping()
    assert parse("HEAD", target, UPSTREAMS, "docker.io") == Ping()


def test_catalog_is_known_by_its_path() -> None:  # P15
    assert get("/v2/_catalog") == CatalogRequest(None, None)
    assert get("/v2/_catalog?n=5&last=docker.io/a") == CatalogRequest(5, "docker.io/a")


@pytest.mark.parametrize(
    "target",
    [
        "/v2/a/../b/manifests/x",
        "/v2/../a/manifests/x",
        "/v2/a/manifests/..",
        "/v2/a/manifests/.",
        "/v2/a/./manifests/x",
        "/v2/a/b/..",
        "/v2/%2e%2e/a/manifests/x",
        "/v2/a/manifests/%2e%2e",
        "/v2/a%2fb/manifests/x",
        "/v2/a%2Fb/manifests/x",
        "/v2/a/manifests/x%00",
        "/v2/a%00/manifests/x",
        "/v2//a/manifests/x",
        "/v2/a//manifests/x",
        "/v2/a/manifests//x",
        "//v2/a/manifests/x",
        "/v2/%61/manifests/x",
        "/v2/a%3Ab/manifests/x",
        "/v2/A/manifests/x",
        "/v2/a:5000/b/manifests/x",
        "/v2/docker.io/manifests/x",
        "/v2/a\n/manifests/x",
        "/v2/é/manifests/x",
    ],
)
def test_path_that_is_no_valid_name_is_refused(target: str) -> None:  # P41
    with pytest.raises(NameInvalid) as caught:
        get(target)
    assert caught.value.status == 400


def test_name_of_255_characters_with_its_registry_is_the_longest() -> None:  # P8
    room = 255 - len("docker.io/")
    longest = "a/" + "b" * (room - 2)
    assert located(f"/v2/{longest}/manifests/x") == Repository("docker.io", longest)
    with pytest.raises(NameInvalid, match="longer than 255"):
        get(f"/v2/{longest}c/manifests/x")
    with pytest.raises(NameInvalid, match="longer than 255"):
        get("/v2/" + "a" * (room - 3) + "/manifests/x")  # too long with its library/
    with pytest.raises(NameInvalid):
        get("/v2/" + "a/" * 500_000 + "manifests/x")


@pytest.mark.parametrize("kind", ["blobs", "referrers", "manifests"])
@pytest.mark.parametrize(
    "text",
    [
        "sha256:abc",
        f"sha256:{DIGEST.hex.upper()}",
        f"sha512:{DIGEST.hex}",
        f"md5:{'a' * 32}",
        f"{DIGEST}0",
        f"{DIGEST}\n",
        f"SHA256:{DIGEST.hex}",
        "sha256:",
        ":",
    ],
)
def test_malformed_digest_is_a_bad_request(kind: str, text: str) -> None:  # P8, P12
    with pytest.raises(DigestInvalid):
        get(f"/v2/a/{kind}/{text}")


@pytest.mark.parametrize("kind", ["blobs", "referrers"])
def test_tag_in_place_of_a_digest_is_a_bad_request(kind: str) -> None:
    with pytest.raises(DigestInvalid):
        get(f"/v2/a/{kind}/latest")


@pytest.mark.parametrize("tag", [".INVALID_MANIFEST_NAME", "sha512-" + "a" * 128, "-x", "a+b", "", "é"])
def test_manifest_of_a_malformed_tag_is_unknown(tag: str) -> None:  # P13, and the conformance suite
    with pytest.raises(ManifestUnknown):
        get(f"/v2/a/manifests/{tag}")


@pytest.mark.parametrize("n", ["-1", "x", "", "1.5", "²", "9" * 5000, "%31x", "+1"])
def test_malformed_page_size_is_refused(n: str) -> None:  # P11
    with pytest.raises(PaginationNumberInvalid):
        get(f"/v2/a/tags/list?n={n}")


def test_line_break_in_a_forwarded_value_is_refused() -> None:  # P42
    with pytest.raises(TagInvalid):
        get("/v2/a/tags/list?last=a%0d%0ab")
    with pytest.raises(NameInvalid):
        get(f"/v2/a/referrers/{DIGEST}?artifactType=a%0ab")


def test_plus_sign_in_an_artifact_type_is_itself() -> None:
    request = get(f"/v2/a/referrers/{DIGEST}?artifactType=application/spdx+json")
    assert isinstance(request, ReferrersRequest)
    assert request.artifact_type == "application/spdx+json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("target", ["/v2/", "/v2/a/blobs/uploads/", "/v2/a/manifests/x", f"/v2/a/blobs/{DIGEST}"])
def test_method_that_writes_is_unsupported(method: str, target: str) -> None:  # P10
    with pytest.raises(Unsupported) as caught:
        parse(method, target, UPSTREAMS, "docker.io")
    assert caught.value.status == 405


@pytest.mark.parametrize("target", ["/v2/a/blobs/uploads", "/v2/a/blobs/uploads/", "/v2/a/b/blobs/uploads/some-id"])
def test_upload_is_unsupported_but_never_a_405_for_head(target: str) -> None:  # P10
    with pytest.raises(Unsupported):
        get(target)
    with pytest.raises(NameUnknown):
        parse("HEAD", target, UPSTREAMS, "docker.io")


@pytest.mark.parametrize(
    "target",
    ["", "/", "/healthz", "/v1/", "/v2/a", "/v2/a/b/c", "/v2/a/tags/other", "/v2/manifests/x", "v2/", "/v2x/", "*"],
)
def test_path_outside_the_registry_is_not_found(target: str) -> None:
    with pytest.raises(NameUnknown) as caught:
        get(target)
    assert caught.value.status == 404


def test_parsing_is_quick_enough_for_the_hot_path() -> None:
    target = f"/v2/docker.io/library/alpine/manifests/{DIGEST}?ns=docker.io"
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(100):
            parse("GET", target, UPSTREAMS, "docker.io")
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 20e-6


def test_an_upstream_under_an_alias_answers_to_its_host_in_ns_alone() -> None:  # P39
    hosts = {"registry.example:8443": "private"}
    upstreams = {"docker.io", "private"}
    wanted = parse("GET", "/v2/team/app/manifests/1?ns=registry.example%3A8443", upstreams, "docker.io", hosts)
    assert isinstance(wanted, ManifestRequest)
    assert wanted.repository == ("private", "team/app")
    assert wanted.ns == "registry.example:8443"  # P17
    with pytest.raises(NameUnknown):
        parse("GET", "/v2/team/app/manifests/1?ns=registry.example", upstreams, "docker.io", hosts)
    plain = parse("GET", "/v2/registry.example/app/manifests/1", upstreams, "docker.io", hosts)
    assert isinstance(plain, ManifestRequest)
    assert plain.repository == ("docker.io", "registry.example/app")
