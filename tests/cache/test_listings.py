"""Lists through the mirror: tags page by page, referrers with and without the API, and the catalog."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from metrics.events import RequestFinished
from proxy.cache.tags import TagPolicy
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
from tests.support.contents import OCI_INDEX, blob, make_image
from tests.support.fake_listings import fallback_index
from tests.support.fake_upstream import FakeUpstream, Recorded, Reply

REPO = "library/alpine"
TAGS = ["10", "9", "B", "_x", "a-1", "a.1", "b"]  # in ASCII order
IMAGE = make_image([blob(10)])
SIGNED = make_image([blob(20)])
SIGNATURE = make_image([blob(5)], subject=SIGNED, artifact_type="application/vnd.sig", annotations={"by": "me"})
SBOM = make_image([blob(6)], subject=SIGNED, artifact_type="application/spdx+json")
ALWAYS_ASK = TagPolicy(ttl=0, stale_while_revalidate=0, negative_ttl=0)


@pytest.fixture
async def asking(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        yield lab


def publish_tags(upstream: FakeUpstream, tags: list[str] = TAGS) -> None:
    for tag in tags:
        IMAGE.publish(upstream, REPO, tag)


def publish_referrers(upstream: FakeUpstream) -> None:
    for image in (SIGNED, SIGNATURE, SBOM):
        image.publish(upstream, REPO)


async def listed(lab: Lab, target: str) -> list[str]:
    """Return the tags at `target`, which must be all."""
    status, headers, body = await lab.get(lab.url + target)
    assert status == 200
    assert "Link" not in headers
    return list(json.loads(body)["tags"])


def tags_url(lab: Lab, query: str = "") -> str:
    return f"{lab.url}/v2/{ALPINE}/tags/list{query}"


def referrers_url(lab: Lab, digest: str = SIGNED.digest, query: str = "") -> str:
    return f"{lab.url}/v2/{ALPINE}/referrers/{digest}{query}"


@pytest.mark.parametrize("page", [None, 1])
@pytest.mark.parametrize(
    ("path", "query"),
    [
        (f"/v2/{REPO}", ""),
        ("/v2/alpine", "&ns=docker.io"),
        (f"/v2/docker.io/{REPO}", "&ns=docker.io"),
        (f"/docker.io/v2/{REPO}", ""),
    ],
)
async def test_links_lead_through_all_tags_in_the_form_that_was_asked_for(
    lab: Lab, upstream: FakeUpstream, path: str, query: str, page: int | None
) -> None:  # P11
    publish_tags(upstream)
    upstream.page, upstream.newest_first, upstream.opaque_marks = page, True, True
    target, seen = f"{path}/tags/list?n=3{query}", []
    for size in (3, 3, 1):
        status, headers, body = await lab.get(lab.url + target)
        assert status == 200
        document = json.loads(body)
        assert document["name"] == path.partition("/v2/")[2]
        assert len(document["tags"]) == size
        seen += document["tags"]
        link = re.fullmatch(r'<(/[^>]+)>; rel="next"', headers.get("Link", ""))
        assert (link is None) == (len(seen) == len(TAGS))
        if link is not None:
            target = link[1]
            assert target.startswith(f"{path}/tags/list?n=3&last={seen[-1]}")
            assert ("ns=docker.io" in target) == bool(query)
    assert seen == TAGS
    assert upstream.count(contains="/tags/list") == (1 if page is None else len(TAGS))  # one list for all pages


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", TAGS), ("?n=0", []), ("?last=B", TAGS[3:]), ("?last=C", TAGS[3:]), ("?last=b", []), ("?n=7", TAGS)],
)
async def test_last_is_exclusive_and_need_not_exist(
    lab: Lab, upstream: FakeUpstream, query: str, expected: list[str]
) -> None:  # P11
    publish_tags(upstream)
    assert await listed(lab, f"/v2/{ALPINE}/tags/list{query}") == expected


async def test_more_tags_than_one_page_may_have_are_paged_unasked(
    lab: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P11
    monkeypatch.setattr("proxy.listing_handlers.PAGE_MOST", 4)
    publish_tags(upstream)
    for query in ("", "?n=100"):
        _, headers, body = await lab.get(tags_url(lab, query))
        assert json.loads(body)["tags"] == TAGS[:4]
        assert f"last={TAGS[3]}" in headers["Link"]


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "9" * 30])
async def test_bad_page_size_is_refused(lab: Lab, n: str) -> None:  # P11
    status, _, body = await lab.get(tags_url(lab, f"?n={n}"))
    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_unknown_and_forbidden_repositories_have_no_tags(
    lab: Lab, upstream: FakeUpstream, status: int
) -> None:  # P11, P34
    upstream.status_for = lambda request: status
    answer, _, body = await lab.get(tags_url(lab))
    assert (answer, json.loads(body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


async def test_a_refusal_is_over_as_soon_as_the_upstream_gives_the_list(lab: Lab, upstream: FakeUpstream) -> None:
    publish_tags(upstream, ["1"])
    upstream.status_for = lambda request: 403
    assert (await lab.get(tags_url(lab)))[0] == 404
    upstream.status_for = None
    assert (await lab.get(tags_url(lab)))[0] == 200


@pytest.mark.parametrize("kind", ["tags", "referrers", "catalog"])
async def test_head_and_conditions_agree_with_get(
    tmp_path: Path, upstream: FakeUpstream, kind: str
) -> None:  # P7, P9, P12
    publish_tags(upstream)
    publish_referrers(upstream)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, catalog=True) as lab:
        await lab.get(lab.manifest_url("b"))
        catalog = f"{lab.url}/v2/_catalog"
        url = {"tags": tags_url(lab, "?n=2"), "referrers": referrers_url(lab), "catalog": catalog}[kind]
        _, headers, body = await lab.get(url)
        status, head, nothing = await lab.get(url, method="HEAD")
        assert (status, nothing) == (200, b"")
        assert {**head, "Date": ""} == {**headers, "Date": ""}
        assert head["Content-Length"] == str(len(body))
        assert head["ETag"] == f'"{Digest.of(body)}"'
        for condition, expected in ((head["ETag"], 304), ("*", 304), ('"other"', 200)):
            assert (await lab.get(url, {"If-None-Match": condition}))[0] == expected
        assert {event.kind for event in lab.of(RequestFinished)} == {"manifest", kind}


async def test_many_clients_cost_one_question_and_new_tags_show_when_the_list_is_old(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    publish_tags(upstream, ["1"])
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=TagPolicy(ttl=2)) as lab:
        answers = await asyncio.gather(*(lab.get(tags_url(lab)) for _ in range(8)))
        assert all(status == 200 for status, _, _ in answers)
        assert upstream.count(contains="/tags/list") == 1
        publish_tags(upstream, ["2"])
        assert await listed(lab, f"/v2/{ALPINE}/tags/list") == ["1"]
        await asyncio.sleep(2.05)
        assert await listed(lab, f"/v2/{ALPINE}/tags/list") == ["1", "2"]


@pytest.mark.parametrize("fault", [500, 429, None])
@pytest.mark.parametrize("kind", ["tags", "referrers"])
async def test_old_list_serves_with_a_warning_while_the_upstream_fails(
    asking: Lab, upstream: FakeUpstream, kind: str, fault: int | None
) -> None:  # P12, P44
    publish_tags(upstream)
    publish_referrers(upstream)
    url = tags_url(asking) if kind == "tags" else referrers_url(asking)
    before = await asking.get(url)
    assert "Warning" not in before[1]
    if fault is None:
        await upstream.stop_listening()
    upstream.status_for = lambda request: fault
    status, headers, body = await asking.get(url)
    assert (status, body) == (200, before[2])
    assert re.fullmatch(r'299 - "stale: [^"]+"', headers["Warning"])
    assert asking.of(RequestFinished)[-1].outcome == "stale"


@pytest.mark.parametrize("refusal", [401, 403, 404])
@pytest.mark.parametrize("kind", ["tags", "referrers"])
async def test_old_list_never_serves_after_a_no(
    asking: Lab, upstream: FakeUpstream, kind: str, refusal: int
) -> None:  # P34, P44
    IMAGE.publish(upstream, REPO, "1")
    publish_referrers(upstream)
    await asking.get(asking.manifest_url("1"))
    await asking.get(asking.manifest_url(SIGNATURE.digest))
    url = tags_url(asking) if kind == "tags" else referrers_url(asking)
    assert (await asking.get(url))[0] == 200
    upstream.status_for = lambda request: refusal
    status, _, body = await asking.get(url)
    if kind == "referrers" and refusal == 404:  # no API there, and no fallback tag
        assert json.loads(body)["manifests"] == []
        return
    assert status == 404
    upstream.status_for = lambda request: 500
    assert (await asking.get(url))[0] == 503  # nor once the upstream fails, nor from what the catalog knows


async def test_known_tags_serve_offline_with_a_warning_and_nothing_known_is_503(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P30, P44
    publish_tags(upstream)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        for tag in ("b", "9", "B"):
            assert (await lab.get(lab.manifest_url(tag)))[0] == 200
        del upstream.manifests[REPO]["B"]
        assert (await lab.get(lab.manifest_url("B")))[0] == 404
    asked = len(upstream.requests)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, offline=True) as lab:
        status, headers, body = await lab.get(tags_url(lab, "?n=1"))
        assert (status, json.loads(body)["tags"]) == (200, ["9"])
        assert "incomplete" in headers["Warning"]
        assert "last=9" in headers["Link"]
        assert await listed(lab, f"/v2/{ALPINE}/tags/list?last=9") == ["b"]
        assert (await lab.get(f"{lab.url}/v2/docker.io/library/other/tags/list"))[0] == 503
        assert (await lab.get(referrers_url(lab)))[0] == 503
    assert len(upstream.requests) == asked


async def test_a_list_that_takes_long_does_not_keep_the_old_one_back(
    asking: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P26
    publish_tags(upstream)
    await asking.get(tags_url(asking))
    monkeypatch.setattr("proxy.cache.listings.PATIENT_SECONDS", 0.1)
    upstream.delay_headers = 30
    status, headers, _ = await asking.get(tags_url(asking))
    assert status == 200
    assert "Warning" in headers


async def test_a_missing_repository_is_not_asked_for_again_and_again(lab: Lab, upstream: FakeUpstream) -> None:  # P14
    for _ in range(3):
        assert (await lab.get(tags_url(lab)))[0] == 404
    assert upstream.count(contains="/tags/list") == 1


async def test_lists_that_are_kept_are_bounded_together(
    lab: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr("proxy.cache.listings.MOST_BYTES", 1500)
    for name in ("a", "b", "c", "a"):
        IMAGE.publish(upstream, f"library/{name}", "1")
        assert await listed(lab, f"/v2/{name}/tags/list") == ["1"]
    assert await listed(lab, "/v2/c/tags/list") == ["1"]
    asked = [request.path.split("/")[3] for request in upstream.select(contains="/tags/list")]
    assert asked == ["a", "b", "c", "a"]


@pytest.mark.parametrize("api", [True, False])
async def test_referrers_are_an_index_of_all_or_of_one_type(lab: Lab, upstream: FakeUpstream, api: bool) -> None:
    publish_referrers(upstream)  # P12
    if not api:
        upstream.referrers_api = False
        index = fallback_index(
            {image.digest: (image.media_type, image.body) for image in (SIGNATURE, SBOM)}, SIGNED.digest
        )
        upstream.add_manifest(REPO, index, OCI_INDEX, f"sha256-{SIGNED.digest.hex}")
    status, headers, body = await lab.get(referrers_url(lab))
    document = json.loads(body)
    assert (status, headers["Content-Type"]) == (200, OCI_INDEX)
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    assert {entry["digest"] for entry in document["manifests"]} == {SIGNATURE.digest, SBOM.digest}
    assert "OCI-Filters-Applied" not in headers
    kind = quote("application/spdx+json", safe="")
    for query in (f"?artifactType={kind}", f"?artifactType={kind}&ns=docker.io"):
        _, headers, body = await lab.get(referrers_url(lab, query=query))
        assert [entry["digest"] for entry in json.loads(body)["manifests"]] == [SBOM.digest]
        assert headers["OCI-Filters-Applied"] == "artifactType"
    assert headers["OCI-Namespace"] == "docker.io"  # P17
    assert upstream.count(contains="/referrers/") == 1


@pytest.mark.parametrize("digest", [Digest.of(b"nobody"), Digest.of(b"nobody", "sha512")])
async def test_unknown_digest_has_an_empty_index(lab: Lab, upstream: FakeUpstream, digest: Digest) -> None:
    IMAGE.publish(upstream, REPO, "1")
    upstream.referrers_api = False
    status, headers, body = await lab.get(referrers_url(lab, digest))  # P12, P13
    assert (status, headers["Content-Type"]) == (200, OCI_INDEX)
    assert json.loads(body) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


async def test_malformed_digest_is_refused(lab: Lab) -> None:  # P12
    status, _, body = await lab.get(referrers_url(lab, "sha256:abc"))
    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(("fault", "expected"), [(429, 429), (500, 503), (503, 503)])
@pytest.mark.parametrize("where", ["/referrers/", "/manifests/"])
async def test_a_failing_upstream_is_never_an_empty_list(
    lab: Lab, upstream: FakeUpstream, where: str, fault: int, expected: int
) -> None:  # P12, P16
    publish_referrers(upstream)
    upstream.referrers_api = False

    def failing(request: Recorded) -> Reply | None:
        return Reply(fault, {"Retry-After": "70"}) if where in request.path else None

    upstream.status_for = failing
    status, headers, _ = await lab.get(referrers_url(lab))
    assert status == expected
    if fault == 429:
        assert 40 < int(headers["Retry-After"]) <= 70


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_referrers_are_no_unknown_name(lab: Lab, upstream: FakeUpstream, status: int) -> None:  # P12
    upstream.status_for = lambda request: status
    answer, _, body = await lab.get(referrers_url(lab))
    assert (answer, json.loads(body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


async def test_pulled_referrers_serve_offline_in_their_own_repository_only(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P12, P43
    publish_referrers(upstream)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        await lab.get(lab.manifest_url(SIGNATURE.digest))
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, offline=True) as lab:
        status, headers, body = await lab.get(referrers_url(lab))
        assert status == 200
        assert "incomplete" in headers["Warning"]
        assert json.loads(body)["manifests"] == [
            {
                "mediaType": SIGNATURE.media_type,
                "digest": SIGNATURE.digest,
                "size": len(SIGNATURE.body),
                "artifactType": "application/vnd.sig",
                "annotations": {"by": "me"},
            }
        ]
        other = f"{lab.url}/v2/docker.io/library/other/referrers/{SIGNED.digest}"
        assert (await lab.get(other))[0] == 503


async def test_catalog_is_off_unless_switched_on(tmp_path: Path, upstream: FakeUpstream) -> None:  # P15
    elsewhere = [Repository(HUB, "library/zsh"), Repository(HUB, "team/app")]
    for repository in (ALPINE, *elsewhere):
        IMAGE.publish(upstream, repository.path, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        for repository in (ALPINE, *elsewhere):
            await lab.get(lab.manifest_url("1", repository))
        await lab.get(lab.manifest_url("1", Repository(HUB, "library/missing")))
        assert (await lab.get(f"{lab.url}/v2/_catalog"))[0] == 404
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, catalog=True) as lab:
        _, headers, body = await lab.get(f"{lab.url}/v2/_catalog?n=2")
        assert json.loads(body) == {"repositories": [str(ALPINE), str(elsewhere[0])]}
        link = re.fullmatch(r'<([^>]+)>; rel="next"', headers["Link"])
        assert link is not None
        _, headers, body = await lab.get(lab.url + link[1])
        assert json.loads(body) == {"repositories": [str(elsewhere[1])]}
        assert "Link" not in headers
        _, headers, body = await lab.get(f"{lab.url}/v2/_catalog?n=0")
        assert json.loads(body) == {"repositories": []}
        assert "Link" not in headers
        assert (await lab.get(f"{lab.url}/v2/_catalog?n=x"))[0] == 400
