"""Errors name the line of the log that tells more of them."""

from __future__ import annotations

import pytest

from metrics.events import BlobStarted, RequestFinished
from proxy import app
from tests.cache.lab import Lab
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
NOTHING = "sha256:" + "0" * 64


async def id_of(lab: Lab, path: str, method: str = "GET") -> str:
    """Return the id that the answer to a request carries, which must be that of its event."""
    before = len(lab.of(RequestFinished))
    _, headers, _ = await lab.get(lab.url + path, {"X-Request-Id": "of-the-client"}, method=method)
    (event,) = lab.of(RequestFinished)[before:]
    assert headers["X-Request-Id"] == event.request_id
    return event.request_id


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize(
    "path", [f"/v2/{REPO}/blobs/{NOTHING}", f"/v2/{REPO}/manifests/none", "/v2/UPPER/manifests/1", "/nowhere"]
)
async def test_an_error_carries_the_id_of_its_line(lab: Lab, path: str, method: str) -> None:
    assert await id_of(lab, path, method) != await id_of(lab, path, method)


async def test_a_refused_blob_has_one_id_from_its_start_to_its_end(lab: Lab) -> None:
    name = await id_of(lab, f"/v2/{REPO}/blobs/{NOTHING}")
    assert [event.request_id for event in lab.of(BlobStarted)] == [name]


async def test_what_nobody_foresaw_is_found_by_the_id_of_its_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "serve_manifest", fail)
    name = await id_of(lab, f"/v2/{REPO}/manifests/1")
    (record,) = (record for record in caplog.records if record.getMessage() == "request failed")
    assert record.__dict__["request_id"] == name


async def test_a_good_answer_carries_none(lab: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(REPO, blob(10))
    for _ in range(2):
        assert "X-Request-Id" not in (await lab.get(lab.blob_url(digest)))[1]
