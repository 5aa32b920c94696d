"""The HTTP face: headers, ranges, conditions, path forms and errors, by the numbered rules."""

from __future__ import annotations

import asyncio
import json

import pytest

from metrics.events import RequestFinished
from proxy.oci.digest import Digest
from tests.cache.lab import ALPINE, Lab
from tests.support.contents import DOCKER_MANIFEST, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
DATA = blob(2048)
RANGES = {
    "bytes=500-1499": (206, DATA[500:1500], "bytes 500-1499/2048"),
    "bytes=500-": (206, DATA[500:], "bytes 500-2047/2048"),
    "bytes=-500": (206, DATA[-500:], "bytes 1548-2047/2048"),
    "bytes=2000-5000": (206, DATA[2000:], "bytes 2000-2047/2048"),
    "bytes=0-": (206, DATA, "bytes 0-2047/2048"),
}


async def raw(lab: Lab, request: bytes) -> bytes:
    """Send bytes as they are, return the whole answer."""
    host, _, port = lab.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_ping_is_answered_without_upstream(lab: Lab, upstream: FakeUpstream) -> None:  # P1
    await upstream.stop_listening()
    for path in ("/v2/", "/v2"):
        status, headers, _ = await lab.get(lab.url + path)
        assert status == 200
        assert headers["Docker-Distribution-Api-Version"] == "registry/2.0"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_manifest_headers_are_exact_by_tag_and_digest(lab: Lab, upstream: FakeUpstream, method: str) -> None:
    image = make_image([blob(10)])  # P2
    image.publish(upstream, REPO, "1")
    for reference in ("1", image.digest, "1"):
        status, headers, body = await lab.get(lab.manifest_url(reference), method=method)
        assert status == 200
        assert headers["Content-Type"] == image.media_type
        assert headers["Content-Length"] == str(len(image.body))
        assert headers["Docker-Content-Digest"] == image.digest
        assert body == (image.body if method == "GET" else b"")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("header", RANGES)
async def test_ranges_cached_and_uncached(lab: Lab, upstream: FakeUpstream, header: str, cached: bool) -> None:  # P4
    digest = upstream.add_blob(REPO, DATA)
    if cached:
        await lab.get(lab.blob_url(digest))
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": header})
    assert (status, body, headers["Content-Range"]) == RANGES[header]
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("header", ["bytes=500-0", "bytes=5000-10000"])
@pytest.mark.parametrize("cached", [False, True])
async def test_ranges_without_a_byte_are_416(lab: Lab, upstream: FakeUpstream, header: str, cached: bool) -> None:  # P4
    digest = upstream.add_blob(REPO, DATA)
    if cached:
        await lab.get(lab.blob_url(digest))
    status, headers, _ = await lab.get(lab.blob_url(digest), {"Range": header})
    assert status == 416
    assert "/*" not in headers.get("Content-Range", "")


async def test_the_empty_blob_is_200_whatever_the_range(lab: Lab, upstream: FakeUpstream) -> None:  # P6
    digest = upstream.add_blob(REPO, b"")
    for _ in range(2):
        status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=0-"})
        assert (status, headers["Content-Length"], body) == (200, "0", b"")


async def test_a_range_on_a_manifest_is_ignored(lab: Lab, upstream: FakeUpstream) -> None:  # P6
    image = make_image([blob(10)])
    image.publish(upstream, REPO, "1")
    for _ in range(2):
        status, _, body = await lab.get(lab.manifest_url("1"), {"Range": "bytes=0-"})
        assert (status, body) == (200, image.body)


@pytest.mark.parametrize("form", ['"{}"', "{}", 'W/"{}"', '"x", "{}"', "*"])
async def test_what_the_client_has_is_304(lab: Lab, upstream: FakeUpstream, form: str) -> None:  # P7
    image = make_image([DATA])
    image.publish(upstream, REPO, "1")
    status, headers, body = await lab.get(lab.manifest_url("1"), {"If-None-Match": form.format(image.digest)})
    assert (status, body) == (304, b"")
    assert headers["ETag"] == f'"{image.digest}"'
    digest = Digest.of(DATA)
    assert (await lab.get(lab.blob_url(digest), {"If-None-Match": form.format(digest)}))[0] == 304


async def test_a_range_of_something_else_gets_everything(lab: Lab, upstream: FakeUpstream) -> None:  # P7
    digest = upstream.add_blob(REPO, DATA)
    headers = {"Range": "bytes=0-9", "If-Range": '"sha256:other"'}
    assert (await lab.get(lab.blob_url(digest), headers))[2] == DATA
    headers = {"Range": "bytes=0-9", "If-Range": f'"{digest}"'}
    assert (await lab.get(lab.blob_url(digest), headers))[0] == 206


@pytest.mark.parametrize(
    "path",
    [
        "/v2/library/alpine/manifests/1",
        "/v2/docker.io/library/alpine/manifests/1",
        "/docker.io/v2/library/alpine/manifests/1",
        "/v2/library/alpine/manifests/1?ns=docker.io",
        "/v2/alpine/manifests/1",
        "/v2/docker.io/alpine/manifests/1",
    ],
)
async def test_every_path_form_reaches_the_same_image(lab: Lab, upstream: FakeUpstream, path: str) -> None:  # P31
    image = make_image([blob(10)])
    image.publish(upstream, REPO, "1")
    status, headers, body = await lab.get(lab.url + path)
    assert (status, body) == (200, image.body)
    assert headers.get("OCI-Namespace") == ("docker.io" if "ns=" in path else None)  # P17


async def test_an_unknown_namespace_is_refused(lab: Lab, upstream: FakeUpstream) -> None:  # P39
    status, _, body = await lab.get(f"{lab.url}/v2/library/alpine/manifests/1?ns=evil.example")
    assert status == 404
    assert b"NAME_UNKNOWN" in body
    assert not upstream.requests


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/library/alpine/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("/v2/library/alpine/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"),
        ("/v2/library/%2e%2e/manifests/1", 400, "NAME_INVALID"),
        ("/v2/library%2falpine/manifests/1", 400, "NAME_INVALID"),
        ("/v2/library//alpine/manifests/1", 400, "NAME_INVALID"),
        ("/v2/library/../alpine/manifests/1", 400, "NAME_INVALID"),
        ("/v2/library/alpine%00/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/1", 400, "NAME_INVALID"),
        (f"/v2/library/alpine/manifests/{'t' * 129}", 404, "MANIFEST_UNKNOWN"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/nothing/here", 404, None),
    ],
)
async def test_bad_paths_get_the_specs_json(
    lab: Lab, upstream: FakeUpstream, path: str, status: int, code: str | None
) -> None:  # P8, P9, P15, P41
    answer = await raw(lab, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == str(status).encode()
    assert b"application/json" in head
    error = json.loads(body)["errors"][0]
    assert code is None or error["code"] == code
    assert error["message"]
    assert not upstream.requests


async def test_an_encoded_colon_is_a_digest_all_the_same(lab: Lab, upstream: FakeUpstream) -> None:  # P41
    digest = upstream.add_blob(REPO, DATA)
    path = f"/v2/{REPO}/blobs/{digest.replace(':', '%3A')}"
    answer = await raw(lab, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.endswith(DATA)


async def test_a_path_beyond_all_limits_is_a_spec_error_too(lab: Lab) -> None:  # P8
    answer = await raw(lab, b"GET /v2/" + b"a" * 40_000 + b"/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.split(b"\r\n")[0] + b" "
    assert json.loads(body)["errors"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_writes_are_405(lab: Lab, method: str) -> None:  # P10
    status, headers, body = await lab.get(f"{lab.url}/v2/library/alpine/blobs/uploads/", method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"
    assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"


async def test_head_errors_have_no_body(lab: Lab) -> None:  # P9
    status, _, body = await lab.get(lab.manifest_url("nothing"), method="HEAD")
    assert (status, body) == (404, b"")


async def test_a_manifest_over_four_mebibytes_is_refused(lab: Lab, upstream: FakeUpstream) -> None:  # P45
    body = b'{"schemaVersion":2,"x":"' + b"a" * (5 << 20) + b'"}'
    upstream.add_manifest(REPO, body, DOCKER_MANIFEST, "big")
    status, _, answer = await lab.get(lab.manifest_url("big"))
    assert status == 502
    assert json.loads(answer)["errors"]


async def test_schema_1_does_not_exist(lab: Lab, upstream: FakeUpstream) -> None:  # P22
    body = b'{"schemaVersion":1,"fsLayers":[],"history":[]}'
    upstream.add_manifest(REPO, body, "application/vnd.docker.distribution.manifest.v1+prettyjws", "old")
    assert (await lab.get(lab.manifest_url("old")))[0] == 404


async def test_an_html_page_is_no_manifest(lab: Lab, upstream: FakeUpstream) -> None:  # P23
    make_image([blob(10)]).publish(upstream, REPO, "1")
    upstream.manifest_type = "text/html"
    assert (await lab.get(lab.manifest_url("1")))[0] == 502


async def test_a_manifest_with_wrong_bytes_is_not_served(lab: Lab, upstream: FakeUpstream) -> None:  # P38
    image = make_image([blob(10)])
    image.publish(upstream, REPO, "1")
    upstream.manifests[REPO][image.digest] = (image.media_type, image.body + b" ")
    assert (await lab.get(lab.manifest_url(image.digest)))[0] == 502


async def test_an_index_is_served_byte_for_byte(lab: Lab, upstream: FakeUpstream) -> None:  # P18
    index = make_index({"linux/amd64": make_image([blob(5)]), "linux/arm64": make_image([blob(6)])})
    index.publish(upstream, REPO, "multi")
    assert (await lab.get(lab.manifest_url("multi")))[2] == index.body


async def test_answers_that_nobody_reads_do_not_pile_up(lab: Lab, upstream: FakeUpstream) -> None:  # P45
    image = make_image([blob(10)])
    for data in image.blobs:
        upstream.add_blob(REPO, data)
        await lab.cache.ensure_blob(ALPINE, Digest.of(data))
    big = json.dumps(json.loads(image.body) | {"annotations": {"x": "y" * (1 << 20)}}).encode()
    upstream.add_manifest(REPO, big, image.media_type, "1")
    for _ in range(3):
        assert (await lab.get(lab.manifest_url("1")))[0] == 200
    host, _, port = lab.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    before = len(lab.of(RequestFinished))
    for _ in range(100):
        writer.write(f"GET /v2/{REPO}/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await writer.drain()
    await asyncio.sleep(0.5)
    assert len(lab.of(RequestFinished)) - before < 20
    writer.transport.abort()


async def test_an_absolute_target_is_a_target_too(lab: Lab, upstream: FakeUpstream) -> None:  # RFC 9112 §3.2.2
    digest = upstream.add_blob(REPO, DATA)
    request = f"GET {lab.url}/v2/{REPO}/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await raw(lab, request.encode())).endswith(DATA)
