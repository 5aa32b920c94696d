"""What a registry says, read as a Source must: types, digests, sizes, spans; and whom it believes."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from yarl import URL

from metrics.events import UpstreamHealth, UpstreamQuota, UpstreamRequest
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    Denied,
    ManifestUnknown,
    RangeNotSatisfiable,
    TooManyRequests,
    Unavailable,
)
from proxy.oci.names import Tag
from proxy.oci.ranges import ByteRange
from proxy.upstream.registry import build_sources
from proxy.upstream.settings import UpstreamSettings, trust
from tests.support.contents import DOCKER_MANIFEST, OCI_MANIFEST, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream, Reply
from tests.upstream.support import QUICK, REPO, REPOSITORY, Listener, read, source_of

LATEST = Tag("latest")
IMAGE = make_image([blob(100)])


async def test_manifests_are_asked_for_with_every_type_and_without_compression() -> None:  # P19, P24
    async with FakeUpstream() as up, source_of(up.url) as source:
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        asked = up.requests[-1]
        assert asked.accept is not None
        for kind in (IMAGE.media_type, DOCKER_MANIFEST, make_index({}).media_type, "manifest.list.v2+json"):
            assert kind in asked.accept
        assert asked.headers["Accept-Encoding"] == "identity"


async def test_tag_is_resolved_by_head_alone() -> None:  # P35
    async with FakeUpstream() as up, source_of(up.url) as source:
        IMAGE.publish(up, REPO, "latest")
        assert (await source.resolve(REPOSITORY, LATEST)).digest == IMAGE.digest
        assert [r.method for r in up.requests] == ["HEAD"]


@pytest.mark.parametrize("habit", ["405", "no digest", "vague type"])
async def test_head_that_does_not_tell_enough_is_followed_by_get(habit: str) -> None:  # P23, P37
    async with FakeUpstream() as up, source_of(up.url) as source:
        IMAGE.publish(up, REPO, "latest")
        up.head_status = 405 if habit == "405" else None
        up.no_digest_headers = habit == "no digest"
        up.manifest_type = "text/plain" if habit == "vague type" else None
        found = await source.resolve(REPOSITORY, LATEST)
        assert (found.media_type, found.digest, found.size) == (OCI_MANIFEST, IMAGE.digest, len(IMAGE.body))
        assert [r.method for r in up.requests] == ["HEAD", "GET"]


async def test_wrong_content_type_is_repaired_from_the_body() -> None:  # P23
    async with FakeUpstream() as up, source_of(up.url) as source:
        IMAGE.publish(up, REPO, "latest")
        up.manifest_type = "application/json"
        assert (await source.manifest(REPOSITORY, LATEST)).descriptor.media_type == OCI_MANIFEST


async def test_html_page_is_neither_manifest_nor_blob() -> None:  # P23
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: Reply(
            200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Please log in</html>"
        )
        with pytest.raises(BadContent):
            await source.manifest(REPOSITORY, LATEST)
        with pytest.raises(BadContent):
            await source.resolve(REPOSITORY, LATEST)
        with pytest.raises(BadContent, match="HTML"):
            await source.open_blob(REPOSITORY, Digest.of(b"x"))
        with pytest.raises(BadContent, match="HTML"):
            await source.stat_blob(REPOSITORY, Digest.of(b"x"))


async def test_manifest_with_other_bytes_than_its_digest_is_bad_content() -> None:  # P38
    async with FakeUpstream() as up, source_of(up.url) as source:
        digest = IMAGE.publish(up, REPO, "latest")
        up.manifests[REPO][digest] = (IMAGE.media_type, IMAGE.body + b" ")
        up.no_digest_headers = True
        with pytest.raises(BadContent, match=digest):
            await source.manifest(REPOSITORY, digest)


async def test_manifest_by_tag_that_contradicts_its_own_digest_header_is_bad_content() -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        headers = {"Content-Type": IMAGE.media_type, "Docker-Content-Digest": Digest.of(b"other")}
        up.status_for = lambda _: Reply(200, headers, IMAGE.body)
        with pytest.raises(BadContent):
            await source.manifest(REPOSITORY, LATEST)
        with pytest.raises(BadContent):
            await source.resolve(REPOSITORY, IMAGE.digest)


async def test_sha512_manifest_is_verified_as_sha512() -> None:  # P8
    digest = Digest.of(IMAGE.body, "sha512")
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.no_digest_headers = True
        up.manifests[REPO] = {digest: (IMAGE.media_type, IMAGE.body)}
        assert (await source.manifest(REPOSITORY, digest)).descriptor.digest == digest


async def test_manifest_over_four_mib_is_bad_content_and_one_just_below_is_not() -> None:  # P45
    async with FakeUpstream() as up, source_of(up.url) as source:
        for size, tag in ((4 << 20, "large"), ((4 << 20) + 1, "huge")):
            up.add_manifest(REPO, IMAGE.body.ljust(size), OCI_MANIFEST, tag)
        assert (await source.manifest(REPOSITORY, Tag("large"))).descriptor.size == 4 << 20
        with pytest.raises(BadContent, match="4194304"):
            await source.manifest(REPOSITORY, Tag("huge"))


async def test_schema_1_is_unknown() -> None:  # P22
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: Reply(200, {"Content-Type": kind}, b'{"schemaVersion":1,"name":"a","signatures":[]}')
        with pytest.raises(ManifestUnknown):
            await source.manifest(REPOSITORY, LATEST)
        with pytest.raises(ManifestUnknown):
            await source.resolve(REPOSITORY, LATEST)


async def test_too_many_requests_carries_retry_after_and_is_not_asked_again() -> None:  # P35
    for value, seconds in (("17", 17.0), (http_date(90), 90.0), ("soon", None)):
        async with FakeUpstream() as up, source_of(up.url) as source:
            up.status_for = lambda _, value=value: Reply(429, {"Retry-After": value})
            with pytest.raises(TooManyRequests) as caught:
                await source.resolve(REPOSITORY, LATEST)
            assert caught.value.retry_after == (None if seconds is None else pytest.approx(seconds, abs=5))
            assert len(up.requests) == 1


def http_date(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")


async def test_registrys_own_words_are_in_the_error() -> None:
    body = b'{"errors":[{"code":"DENIED","message":"pull quota\\r\\nexceeded"}]}'
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: Reply(403, {}, body)
        with pytest.raises(Denied, match=r"docker.io/library/alpine:latest \(DENIED: pull quotaexceeded\)"):
            await source.manifest(REPOSITORY, LATEST)


async def test_requests_and_quota_are_told_with_the_host_and_no_query() -> None:  # P35
    told = Listener()
    async with FakeUpstream() as up, source_of(up.url, emit=told) as source:
        up.auth = "bearer"
        up.extra_headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}
        IMAGE.publish(up, REPO, "latest")
        await source.manifest(REPOSITORY, LATEST)
        host = f"127.0.0.1:{up.port}"
        assert UpstreamQuota(host, 100, 76, 21600) in told
        requests = [(e.upstream, e.kind, e.method, e.status) for e in told if isinstance(e, UpstreamRequest)]
        assert requests == [
            (host, "manifest", "GET", "401"),
            (host, "token", "GET", "200"),
            (host, "manifest", "GET", "200"),
        ]
        assert source.name == host


@pytest.mark.parametrize("ignore_range", [False, True])
async def test_span_is_read_from_206_and_from_200_alike_without_closing_kept_connections(ignore_range: bool) -> None:
    data = blob(1 << 20)
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.ignore_range = ignore_range
        digest = up.add_blob(REPO, data)
        for span in (ByteRange(700_000, None), ByteRange(None, 5), ByteRange(3, 400_000)):
            stream = await source.open_blob(REPOSITORY, digest, span)
            start, end = span.resolve(len(data))
            assert await read(stream) == data[start:end]
            assert (stream.start, stream.end, stream.size) == (start, end, len(data))


async def test_blob_without_a_size_is_given_whole_and_from_a_start() -> None:  # P37
    data = blob(300_000)
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.chunked = up.ignore_range = True
        digest = up.add_blob(REPO, data)
        stream = await source.open_blob(REPOSITORY, digest)
        assert (stream.size, stream.end) == (None, None)
        assert await read(stream) == data
        assert await read(await source.open_blob(REPOSITORY, digest, ByteRange(1000, 2000))) == data[1000:2001]
        assert await read(await source.open_blob(REPOSITORY, digest, ByteRange(299_000, None))) == data[299_000:]
        with pytest.raises(Unavailable, match="size"):
            await source.open_blob(REPOSITORY, digest, ByteRange(None, 5))


@pytest.mark.parametrize(
    ("span", "headers"),
    [
        (ByteRange(10, 19), {"Content-Range": "bytes 0-9/100"}),
        (ByteRange(10, 19), {"Content-Range": "bytes 10-18/100"}),
        (ByteRange(10, None), {"Content-Range": "bytes 10-19/100"}),
        (ByteRange(None, 10), {"Content-Range": "bytes 80-89/100"}),
        (ByteRange(10, 19), {"Content-Range": "pages 10-19/100"}),
        (ByteRange(10, 19), {}),
    ],
    ids=str,
)
async def test_part_that_was_not_asked_for_is_bad_content(span: ByteRange, headers: dict[str, str]) -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        up.status_for = lambda _: Reply(206, headers, bytes(10))
        with pytest.raises(BadContent, match="range"):
            await source.open_blob(REPOSITORY, Digest.of(b"x"), span)


async def test_416_without_a_size_is_completed_by_asking_for_it() -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        digest = up.add_blob(REPO, bytes(50))
        up.status_for = lambda r: 416 if r.range == "bytes=100-" else None
        with pytest.raises(RangeNotSatisfiable) as caught:
            await source.open_blob(REPOSITORY, digest, ByteRange(100, None))
        assert caught.value.size == 50


async def test_https_with_a_private_authority_needs_its_ca_file() -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with FakeUpstream(tls) as up:
        IMAGE.publish(up, REPO, "latest")
        async with source_of(up.url) as stranger:
            with pytest.raises(Unavailable, match="ca_file"):
                await stranger.manifest(REPOSITORY, LATEST)
        with authority.cert_pem.tempfile() as ca_file:
            context = trust(ca_file)
        async with source_of(up.url, tls=context) as source:
            assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body


async def test_everything_goes_through_the_configured_proxy() -> None:
    async with FakeUpstream() as gate, source_of("http://registry.invalid", proxy=URL(gate.url)) as source:
        IMAGE.publish(gate, REPO, "latest")
        assert (await source.manifest(REPOSITORY, LATEST)).body == IMAGE.body
        assert gate.requests[-1].headers["Host"] == "registry.invalid"


async def test_path_prefix_of_the_url_is_kept() -> None:
    async with FakeUpstream() as up, source_of(f"{up.url}/mirror/") as source:
        with pytest.raises(ManifestUnknown):
            await source.resolve(REPOSITORY, LATEST)
        assert up.requests[-1].path == f"/mirror/v2/{REPO}/manifests/latest"


async def test_ping_takes_a_challenge_for_an_answer_and_a_failure_for_none() -> None:
    async with FakeUpstream() as up, source_of(up.url) as source:
        await source.ping()
        up.auth = "basic"
        await source.ping()
        up.status_for = lambda _: 502
        with pytest.raises(Unavailable, match="502"):
            await source.ping()


async def test_alternates_follow_the_main_host_and_share_the_time_for_an_answer() -> None:  # P26
    settings = UpstreamSettings(
        "docker.io", URL("http://main.test:5000"), (URL("http://one.test"), URL("http://two.test")), limits=QUICK
    )
    sources = build_sources(settings, Listener())
    assert [source.name for source in sources] == ["main.test:5000", "one.test", "two.test"]
    for source in sources:
        await source.aclose()


async def test_failure_that_another_node_met_is_told_as_our_own_would_be_and_looked_after() -> None:
    heard = Listener()
    async with source_of("http://r.test", emit=heard) as source:
        source.learned()
        source.health.learn_failing(Unavailable("no route"), age=0.0, left=5.0)
        source.learned()
        source.learned()
        assert heard == [UpstreamHealth("r.test", True, False)]
        assert "is r.test back" in {task.get_name() for task in asyncio.all_tasks()}
