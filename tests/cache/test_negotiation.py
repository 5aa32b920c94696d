"""A client that does not take the cached type gets what the upstream has for it (P18-P21); no-cache asks anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.cache.tags import TagPolicy
from proxy.oci import terms
from proxy.oci.digest import Digest
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
from tests.support.contents import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream, Recorded, Reply

REPO = "library/alpine"
ARM = make_image([blob(900, seed=2)], platform="linux/arm64")
INDEX = make_index({"linux/arm64": ARM})
DOCKER = make_image([blob(900, seed=1)], manifest_type=DOCKER_MANIFEST)
ONLY_DOCKER = {"Accept": DOCKER_MANIFEST}


@pytest.fixture
def negotiating(upstream: FakeUpstream) -> FakeUpstream:
    """An upstream that has an index for who takes it, and a docker manifest for others, under one tag."""
    INDEX.publish(upstream, REPO, "1")
    DOCKER.publish(upstream, REPO)

    def choose(request: Recorded) -> Reply | None:
        if request.path.endswith("/manifests/1") and OCI_INDEX not in (request.accept or ""):
            headers = {"Content-Type": DOCKER_MANIFEST, "Docker-Content-Digest": str(DOCKER.digest)}
            return Reply(200, headers, DOCKER.body)
        return None

    upstream.status_for = choose
    return upstream


async def got(lab: Lab, reference: str = "1", headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
    status, answered, body = await lab.get(lab.manifest_url(reference), headers)
    return status, answered["Content-Type"], body


@pytest.mark.parametrize(
    "accept", [None, "*/*", f"{DOCKER_MANIFEST}, */*;q=0.1", f"{OCI_INDEX}, {DOCKER_MANIFEST}", "application/*"]
)
async def test_whoever_can_take_the_cached_type_gets_it(
    lab: Lab, negotiating: FakeUpstream, accept: str | None
) -> None:  # P19, P21
    headers = {"Accept": accept} if accept else None
    for _ in range(3):
        assert await got(lab, headers=headers) == (200, OCI_INDEX, INDEX.body)
    assert negotiating.count(method="GET", contains="/manifests/") == 1


async def test_an_accept_that_excludes_the_cached_type_goes_upstream_as_it_is(
    lab: Lab, negotiating: FakeUpstream
) -> None:  # P21
    assert (await got(lab))[2] == INDEX.body
    assert await got(lab, headers=ONLY_DOCKER) == (200, DOCKER_MANIFEST, DOCKER.body)
    assert negotiating.requests[-1].accept == DOCKER_MANIFEST
    # The tag has not moved, in the catalog or in the table of hot answers, for whoever asks as before.
    assert (await got(lab))[2] == INDEX.body
    assert await got(lab, headers=ONLY_DOCKER) == (200, DOCKER_MANIFEST, DOCKER.body)
    assert (await got(lab, headers={"Accept": OCI_INDEX}))[2] == INDEX.body


async def test_separate_lines_of_accept_count_together(lab: Lab, negotiating: FakeUpstream) -> None:  # P20
    for _ in range(2):
        lines = [("Accept", DOCKER_MANIFEST), ("Accept", OCI_INDEX)]
        async with lab.http.get(lab.manifest_url("1"), headers=lines) as answer:
            assert await answer.read() == INDEX.body
    lines = [("Accept", DOCKER_MANIFEST), ("Accept", OCI_MANIFEST)]
    async with lab.http.get(lab.manifest_url("1"), headers=lines) as answer:
        assert await answer.read() == DOCKER.body


async def test_what_came_back_is_kept_under_its_digest_for_its_repository(
    lab: Lab, negotiating: FakeUpstream
) -> None:  # P21, P43
    await got(lab, headers=ONLY_DOCKER)
    asked = len(negotiating.requests)
    assert (await got(lab, DOCKER.digest))[2] == DOCKER.body
    assert len(negotiating.requests) == asked
    other = lab.manifest_url(DOCKER.digest, ALPINE._replace(path="library/other"))
    assert (await lab.get(other))[0] == 404


async def test_a_head_agrees_with_its_get(lab: Lab, negotiating: FakeUpstream) -> None:  # P2, P21
    for headers, image in ((ONLY_DOCKER, DOCKER), ({}, INDEX), (ONLY_DOCKER, DOCKER)):
        status, answered, _ = await lab.get(lab.manifest_url("1"), headers, "HEAD")
        assert (status, answered["Docker-Content-Digest"]) == (200, image.digest)
        assert answered["Content-Length"] == str(len(image.body))


async def test_a_request_by_digest_ignores_accept(lab: Lab, negotiating: FakeUpstream) -> None:  # P21
    for _ in range(2):
        assert await got(lab, INDEX.digest, ONLY_DOCKER) == (200, OCI_INDEX, INDEX.body)


async def test_an_upstream_without_another_type_says_404_and_the_tag_stays(lab: Lab, upstream: FakeUpstream) -> None:
    INDEX.publish(upstream, REPO, "1")
    assert (await got(lab, headers=ONLY_DOCKER))[0] == 404  # P21
    assert (await got(lab))[0] == 200


async def test_many_who_exclude_the_same_cause_one_question(lab: Lab, negotiating: FakeUpstream) -> None:
    await got(lab)
    negotiating.delay_headers = 2
    answers = await asyncio.gather(*(got(lab, headers=ONLY_DOCKER) for _ in range(20)))
    assert {answer[2] for answer in answers} == {DOCKER.body}
    assert sum(request.accept == DOCKER_MANIFEST for request in negotiating.requests) == 1


@pytest.fixture
async def patient(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    """A mirror that believes a tag for an hour."""
    async with laboratory(tmp_path / "patient", {HUB: [upstream]}, policy=TagPolicy(ttl=3600)) as running:
        yield running


async def test_no_cache_revalidates_a_fresh_tag_at_most_once_a_second(
    patient: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = {"Cache-Control": "no-cache"}
    assert terms.AT_MOST_EVERY == 1.0
    monkeypatch.setattr(terms, "AT_MOST_EVERY", 60.0)  # for a machine that takes long
    ARM.publish(upstream, REPO, "1")
    assert (await got(patient))[2] == ARM.body
    INDEX.publish(upstream, REPO, "1")
    answers = await asyncio.gather(*(got(patient, headers=anew) for _ in range(20)))
    assert {answer[2] for answer in answers} == {ARM.body}  # confirmed within that time
    assert upstream.count(method="HEAD", contains="/manifests/1") == 1
    monkeypatch.setattr(terms, "AT_MOST_EVERY", 0.0)
    upstream.delay_headers = 2
    answers = await asyncio.gather(*(got(patient, headers=anew) for _ in range(20)))
    assert {answer[2] for answer in answers} == {INDEX.body}
    assert upstream.count(method="HEAD", contains="/manifests/1") == 2
    assert (await got(patient))[2] == INDEX.body


async def test_no_cache_gets_the_old_answer_with_a_warning_when_nobody_can_tell(
    patient: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P44
    monkeypatch.setattr(terms, "AT_MOST_EVERY", 0.0)
    ARM.publish(upstream, REPO, "1")
    await got(patient)
    for data in ARM.blobs:
        await patient.get(f"{patient.url}/v2/{REPO}/blobs/{Digest.of(data)}")
    upstream.status_for = lambda request: 500
    status, headers, body = await patient.get(patient.manifest_url("1"), {"Cache-Control": "no-cache"})
    assert (status, body) == (200, ARM.body)
    assert headers["Warning"].startswith("299 ")
    upstream.status_for = lambda request: 404
    assert (await patient.get(patient.manifest_url("1"), {"Cache-Control": "no-cache"}))[0] == 404
    assert (await patient.get(patient.manifest_url("1")))[0] == 404
