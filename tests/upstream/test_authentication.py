"""Challenges and tokens: what is asked of whom, how often, and what of it counts as public."""

from __future__ import annotations

import asyncio

import pytest

from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, Denied, TooManyRequests, Unavailable
from proxy.oci.names import Repository, Tag
from proxy.upstream.credentials import Credential
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream, Reply
from tests.upstream.support import REPO, REPOSITORY, quick, read, source_of

LATEST = Tag("latest")
IMAGE = make_image([blob(100)])
LOGIN = Credential("user", "correct horse")


async def test_open_registry_is_never_sent_the_credential() -> None:
    async with FakeUpstream() as up, source_of(up.url, credential=LOGIN) as source:
        IMAGE.publish(up, REPO, "latest")
        assert (await source.manifest(REPOSITORY, LATEST)).anonymous
        assert not any(r.authorized for r in up.requests)


async def test_basic_is_sent_once_it_was_asked_for_and_is_not_anonymous() -> None:
    async with FakeUpstream() as up, source_of(up.url, credential=LOGIN) as source:
        up.auth = "basic"
        IMAGE.publish(up, REPO, "latest")
        assert not (await source.manifest(REPOSITORY, LATEST)).anonymous
        await source.manifest(REPOSITORY, LATEST)
        assert [r.status for r in up.requests] == [401, 200, 200]


async def test_login_that_is_missing_or_wrong_is_denied() -> None:  # P34
    async with FakeUpstream() as up:
        up.auth = "basic"
        IMAGE.publish(up, REPO, "latest")
        async with source_of(up.url) as source:
            with pytest.raises(Denied, match="password_file"):
                await source.manifest(REPOSITORY, LATEST)
        async with source_of(up.url, credential=Credential("user", "hunter2")) as source:
            for _ in range(2):
                with pytest.raises(Denied) as caught:
                    await source.manifest(REPOSITORY, LATEST)
                assert "hunter2" not in str(caught.value)
        assert up.count() <= 5


async def test_anonymous_token_counts_as_public_and_serves_all_of_a_repository() -> None:  # P33, P43
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        IMAGE.publish(up, REPO, "latest")
        assert (await source.manifest(REPOSITORY, LATEST)).anonymous
        stream = await source.open_blob(REPOSITORY, Digest.of(IMAGE.blobs[0]))
        assert stream.anonymous
        assert await read(stream) == IMAGE.blobs[0]
        assert len(up.token_requests) == 1
        asked = up.token_requests[0]
        assert dict(asked.query) == {"service": "fake", "scope": f"repository:{REPO}:pull"}
        assert not asked.authorized


async def test_token_with_a_credential_is_not_public() -> None:  # P43
    async with FakeUpstream() as up, source_of(up.url, credential=LOGIN) as source:
        up.auth, up.private = "bearer", {REPO}
        IMAGE.publish(up, REPO, "latest")
        assert not (await source.manifest(REPOSITORY, LATEST)).anonymous


async def test_each_repository_has_a_token_of_its_own() -> None:  # P33: one scope per token
    other = Repository("docker.io", "library/other")
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        for repository in (REPOSITORY, other):
            IMAGE.publish(up, repository.path, "latest")
            await source.manifest(repository, LATEST)
        assert [r.query["scope"] for r in up.token_requests] == [
            f"repository:{REPO}:pull",
            "repository:library/other:pull",
        ]


async def test_many_at_once_share_one_token_request() -> None:  # P33
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        IMAGE.publish(up, REPO, "latest")
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(source.manifest(REPOSITORY, LATEST))
        assert len(up.token_requests) == 1
        up.revoke_tokens()
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(source.manifest(REPOSITORY, LATEST))
        assert len(up.token_requests) == 2


async def test_caller_who_leaves_does_not_take_the_token_away_from_the_others() -> None:
    async with FakeUpstream() as up, source_of(up.url, limits=quick(first_byte=5, answer=5)) as source:
        up.auth = "bearer"
        IMAGE.publish(up, REPO, "latest")
        up.delay_headers = 0.05
        first = asyncio.create_task(source.manifest(REPOSITORY, LATEST))
        second = asyncio.create_task(source.manifest(REPOSITORY, LATEST))
        await up.wait_for(1, contains="/token")
        first.cancel()
        assert (await second).body == IMAGE.body
        assert len(up.token_requests) == 1


async def test_revoked_token_is_refreshed_once() -> None:  # P33
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        up.revoke_tokens()
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
        assert len(up.token_requests) == 2


async def test_token_that_opens_nothing_is_denied_without_asking_on_and_on() -> None:  # P33, P34
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth, up.private = "bearer", {REPO}
        IMAGE.publish(up, REPO, "latest")
        for tokens in (1, 2):
            with pytest.raises(Denied, match=r"docker\.io/library/alpine:latest"):
                await source.manifest(REPOSITORY, LATEST)
            assert len(up.token_requests) == tokens
        assert up.count(contains="/manifests/") == 4


async def test_token_is_renewed_before_it_expires() -> None:  # P33
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth, up.expires_in = "bearer", 3
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        await asyncio.sleep(2.55)
        await source.manifest(REPOSITORY, LATEST)
        assert len(up.token_requests) == 2
        assert [r.status for r in up.select(contains="/manifests/")] == [401, 200, 200]


async def test_access_token_without_expiry_will_do() -> None:  # P33
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth, up.token_field, up.expires_in = "bearer", "access_token", None
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        await source.manifest(REPOSITORY, LATEST)
        assert len(up.token_requests) == 1


@pytest.mark.parametrize("post", [True, False])
async def test_refresh_token_goes_by_form_and_by_get_where_there_is_no_form(post: bool) -> None:  # P33
    async with FakeUpstream() as up:
        credential = Credential("user", "" if post else "correct horse", identity_token="refresh me")
        async with source_of(up.url, credential=credential) as source:
            up.auth, up.private = "bearer", {REPO}
            up.refresh_token = "refresh me" if post else None
            IMAGE.publish(up, REPO, "latest")
            assert not (await source.manifest(REPOSITORY, LATEST)).anonymous
        assert [r.method for r in up.token_requests] == (["POST"] if post else ["POST", "GET"])


async def test_challenge_is_taken_from_the_ping_where_the_401_has_none() -> None:  # P32
    async with FakeUpstream() as up, source_of(up.url, credential=LOGIN) as source:
        up.auth = "basic"
        IMAGE.publish(up, REPO, "latest")
        up.status_for = lambda r: 401 if "/manifests/" in r.path and not r.authorized else None
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
        assert [r.path.rpartition("/v2/")[2] for r in up.requests][1] == ""


async def test_absent_service_is_left_out_and_scheme_and_quoting_do_not_matter() -> None:  # P32, P33
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        up.challenge = f'Negotiate, bEaReR realm="{up.url}/tok\\en", scope="repository:user/image:pull"'
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        assert dict(up.token_requests[0].query) == {"scope": f"repository:{REPO}:pull"}


@pytest.mark.parametrize("challenge", ["", "Negotiate", 'Bearer service="x"'])
async def test_401_without_a_usable_challenge_is_denied(challenge: str) -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth, up.challenge = "bearer", challenge
        with pytest.raises(Denied, match="no way to authenticate"):
            await source.manifest(REPOSITORY, LATEST)


@pytest.mark.parametrize(
    ("realm", "why"),
    [
        ("http://10.1.2.3/token", "redirect_hosts"),
        ("http://169.254.169.254/latest", "redirect_hosts"),
        ("file:///etc/passwd", "only http"),
        ("/token", "only http"),
        ("http://user:pw@127.0.0.1/token", "a user in it"),
        ("http://127.0.0.1:notaport/", "not a URL"),
    ],
)
async def test_realm_that_leads_where_it_must_not_is_never_asked(realm: str, why: str) -> None:  # P39
    async with FakeUpstream() as up, source_of(up.url, credential=LOGIN) as source:
        up.auth, up.realm = "bearer", realm
        with pytest.raises(Unavailable, match=why):
            await source.manifest(REPOSITORY, LATEST)
        assert up.count() == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(200, {}, b"not json"), BadContent),
        (Reply(200, {}, b"[1]"), BadContent),
        (Reply(200, {}, b"{}"), BadContent),
        (Reply(200, {}, b'{"token": "a\\r\\nb"}'), BadContent),
        (Reply(200, {}, b'{"token": "' + b"a" * (1 << 20) + b'"}'), BadContent),
        (Reply(200, {}, b"[" * 100_000), BadContent),
        (Reply(429, {"Retry-After": "5"}), TooManyRequests),
        (Reply(503), Unavailable),
        (Reply(403), Denied),
        (Reply(418), Denied),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_broken_token_server_is_told_apart(reply: Reply, error: type[Exception]) -> None:  # P45
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.auth = "bearer"
        up.status_for = lambda r: reply if r.path == "/token" else None
        with pytest.raises(error):
            await source.manifest(REPOSITORY, LATEST)
        assert len(up.token_requests) == (4 if reply.status == 503 else 1)
