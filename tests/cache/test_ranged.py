"""Several ranges of one blob over HTTP: stored, being filled, far ahead of the fill (P5)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from metrics.events import FillFinished
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
DATA = blob(2048)
MIB = 1 << 20


def parts(headers: Mapping[str, str], body: bytes) -> list[tuple[str, bytes]]:
    """Return (Content-Range, bytes) of every part."""
    match = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]+)", headers["Content-Type"])
    assert match is not None
    assert headers["Content-Length"] == str(len(body))
    pieces = body.split(f"--{match[1]}".encode())
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    read = []
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        assert fields["Content-Type"] == "application/octet-stream"
        read.append((fields["Content-Range"], content[:-2]))
    return read


@pytest.mark.parametrize("cached", [False, True])
async def test_several_ranges_are_parts_in_the_order_asked(lab: Lab, upstream: FakeUpstream, cached: bool) -> None:
    digest = upstream.add_blob(REPO, DATA)  # P5
    if cached:
        await lab.get(lab.blob_url(digest))
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=200-299,0-99,5000-,-7"})
    assert status == 206
    assert headers["ETag"] == f'"{digest}"'
    assert parts(headers, body) == [
        ("bytes 200-299/2048", DATA[200:300]),
        ("bytes 0-99/2048", DATA[:100]),
        ("bytes 2041-2047/2048", DATA[-7:]),
    ]
    assert "Content-Range" not in headers


async def test_the_connection_goes_on_after_parts(lab: Lab, upstream: FakeUpstream) -> None:  # P5
    digest = upstream.add_blob(REPO, DATA)
    for _ in range(3):
        assert (await lab.get(lab.blob_url(digest), {"Range": "bytes=3-4,1-2"}))[0] == 206
        assert (await lab.get(lab.blob_url(digest)))[2] == DATA


async def test_one_range_with_a_byte_among_others_is_a_plain_206(lab: Lab, upstream: FakeUpstream) -> None:  # P5
    digest = upstream.add_blob(REPO, DATA)
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=9999-,10-19"})
    assert (status, body, headers["Content-Range"]) == (206, DATA[10:20], "bytes 10-19/2048")
    assert headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("bytes=9999-,5-2", 416),
        ("bytes=0-,0-", 200),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(65)), 200),
        ("bytes=0-1,x", 200),
    ],
)
async def test_none_is_416_and_too_many_or_too_much_is_everything(
    lab: Lab, upstream: FakeUpstream, header: str, status: int
) -> None:  # P5, P45
    digest = upstream.add_blob(REPO, DATA)
    answered, headers, body = await lab.get(lab.blob_url(digest), {"Range": header})
    assert answered == status
    assert status != 200 or (body == DATA and headers["Content-Length"] == "2048")


async def test_a_blob_of_one_byte_has_its_end(lab: Lab, upstream: FakeUpstream) -> None:  # P5
    digest = upstream.add_blob(REPO, b"x")
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=1-2,-1"})
    assert (status, body, headers["Content-Range"]) == (206, b"x", "bytes 0-0/1")


async def test_several_ranges_of_something_else_get_everything(lab: Lab, upstream: FakeUpstream) -> None:  # P7
    digest = upstream.add_blob(REPO, DATA)
    headers = {"Range": "bytes=0-9,20-29", "If-Range": '"sha256:other"'}
    assert (await lab.get(lab.blob_url(digest), headers))[2] == DATA
    headers = {"Range": "bytes=0-9,20-29", "If-Range": f'"{digest}"'}
    assert (await lab.get(lab.blob_url(digest), headers))[0] == 206


async def test_an_unsized_upstream_has_parts_once_its_blob_is_known(lab: Lab, upstream: FakeUpstream) -> None:  # P5
    upstream.chunked = True
    digest = upstream.add_blob(REPO, DATA)
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=7-8,0-1"})
    assert status == 206
    assert [content for _, content in parts(headers, body)] == [DATA[7:9], DATA[:2]]


async def test_parts_follow_a_fill_and_what_is_far_ahead_is_relayed(lab: Lab, upstream: FakeUpstream) -> None:  # P5
    data = blob(24 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 4 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    upstream.stall_at = None  # the fill's own connection waits on; new ones do not
    footer, near = 20 * MIB, 2 * MIB
    header = f"bytes={footer}-{footer + 99},{near}-{near + 99},-50"
    status, headers, body = await asyncio.wait_for(lab.get(lab.blob_url(digest), {"Range": header}), 30)
    assert status == 206
    assert [content for _, content in parts(headers, body)] == [
        data[footer : footer + 100], data[near : near + 100], data[-50:]
    ]  # fmt: skip
    assert [one.range for one in upstream.select(method="GET", contains=digest)] == [
        None, f"bytes={footer}-{footer + 99}", f"bytes={24 * MIB - 50}-{24 * MIB - 1}"
    ]  # fmt: skip
    assert not lab.of(FillFinished)
    upstream.go_on()
    assert (await first)[2] == data


async def test_a_part_that_cannot_come_closes_the_answer_short(tmp_path: Path) -> None:  # P28
    data = blob(4 * MIB)
    async with FakeUpstream() as upstream, laboratory(tmp_path / "d", {HUB: [upstream]}, patience=0.5) as lab:
        digest = upstream.add_blob(REPO, data)
        upstream.die_at, upstream.die_once = 2 * MIB, False
        header = f"bytes={MIB}-{MIB + 9},{3 * MIB}-{3 * MIB + 9}"
        status, body, whole = await lab.get_short(lab.blob_url(digest), {"Range": header})
        assert (status, whole) == (206, False)
        assert data[MIB : MIB + 10] in body
