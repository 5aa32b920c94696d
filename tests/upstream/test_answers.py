"""Statuses, headers and spans read without a network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from metrics.events import UpstreamQuota
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, Denied, ManifestUnknown, RegistryError, TooManyRequests
from proxy.oci.names import Repository, Tag
from proxy.oci.ranges import ByteRange, format_content_range
from proxy.upstream.answers import (
    Asked,
    ContentRange,
    content_length,
    content_range,
    own_words,
    read_quota,
    refusal,
    retry_after,
)
from proxy.upstream.failures import Passing
from proxy.upstream.spans import place_part, place_whole

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
MANIFEST = Asked("manifest", Repository("docker.io", "library/a"), Tag("1"))
BLOB = Asked("blob", Repository("docker.io", "library/a"), Digest.of(b""))


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        (MANIFEST, 404, ManifestUnknown),
        (BLOB, 404, BlobUnknown),
        (MANIFEST, 401, Denied),
        (BLOB, 403, Denied),
        (BLOB, 429, TooManyRequests),
        (BLOB, 408, Passing),
        (BLOB, 500, Passing),
        (BLOB, 599, Passing),
    ],
)
def test_status_means_an_error(asked: Asked, status: int, error: type[RegistryError]) -> None:  # P34
    found = refusal(asked, "r.test", status, {}, b"", NOW)
    assert type(found) is error
    assert str(asked) in str(found)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        ("999999999999999", 86400),
        ("Wed, 01 May 2024 12:01:00 GMT", 60),
        ("Wed, 01 May 2024 11:00:00 GMT", 0),
        ("Wed, 01 May 2024 12:01:00", 60),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:  # RFC 9110 §10.2.3
    assert retry_after({"Retry-After": text}, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_raises(text: str) -> None:
    found = retry_after({"Retry-After": text}, NOW)
    assert found is None or 0 <= found <= timedelta(days=1).total_seconds()


def test_quota_is_read_with_and_without_a_window() -> None:  # P35
    assert read_quota("h", {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "76;w=21600"}) == UpstreamQuota(
        "h", 100, 76, 21600
    )
    assert read_quota("h", {"RateLimit-Limit": "100", "RateLimit-Remaining": "0"}) == UpstreamQuota("h", 100, 0, 0)
    assert read_quota("h", {"RateLimit-Limit": "many", "RateLimit-Remaining": "0"}) is None
    assert read_quota("h", {"RateLimit-Limit": "100"}) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-9/10", ContentRange(0, 9, 10)),
        ("Bytes 5-9/*", ContentRange(5, 9, None)),
        ("bytes */0", ContentRange(None, None, 0)),
        ("bytes 0--1/0", None),
        ("bytes 9-5/10", None),
        ("bytes 0-10/10", None),
        ("bytes 0-9", None),
        ("", None),
    ],
)
def test_content_range_is_read_or_refused(text: str, found: ContentRange | None) -> None:  # RFC 9110 §14.4
    assert content_range({"Content-Range": text}) == found


def test_content_length_is_a_number_or_nothing() -> None:
    assert content_length({"Content-Length": "17"}) == 17
    assert content_length({"Content-Length": "1e3"}) is None
    assert content_length({"Content-Length": "9" * 40}) is None
    assert content_length({}) is None


@given(st.binary(max_size=200))
def test_own_words_are_short_printable_and_never_raise(body: bytes) -> None:  # P42
    assert own_words(body).isprintable()


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b'{"errors":[]}', b'{"errors":{"0":1}}', b'{"errors":[7]}', b"[" * 99999]
)
def test_body_that_is_no_error_list_has_no_words(body: bytes) -> None:
    assert own_words(body) == ""


SPANS = st.one_of(
    st.builds(lambda a, n: ByteRange(a, a + n), st.integers(0, 30), st.integers(0, 30)),
    st.builds(ByteRange, st.integers(0, 30), st.none()),
    st.builds(ByteRange, st.none(), st.integers(1, 30)),
)


@given(SPANS, st.integers(1, 40))
def test_correct_part_and_whole_agree_on_what_is_wanted(span: ByteRange, size: int) -> None:  # P37
    try:
        start, end = span.resolve(size)
    except RegistryError as error:
        with pytest.raises(type(error)):
            place_whole("h", BLOB, span, size)
        return
    whole = place_whole("h", BLOB, span, size)
    part = place_part("h", BLOB, span, ContentRange(start, end - 1, size), end - start)
    assert (whole.start, whole.end, whole.size) == (part.start, part.end, part.size) == (start, end, size)
    assert (whole.begins, part.begins) == (0, start)


@given(SPANS, st.integers(0, 40), st.integers(1, 40), st.integers(1, 60))
def test_wrong_part_is_never_taken(span: ByteRange, first: int, length: int, size: int) -> None:
    given_range = ContentRange(first, first + length - 1, size)
    try:
        wanted = span.resolve(size)
    except RegistryError:
        wanted = None
    if wanted != (first, first + length):
        with pytest.raises(RegistryError):
            place_part("h", BLOB, span, given_range, length)


def test_part_whose_body_is_longer_or_shorter_is_bad_content() -> None:
    for length in (9, 11):
        with pytest.raises(BadContent):
            place_part("h", BLOB, ByteRange(0, 9), ContentRange(0, 9, 100), length)


def test_last_bytes_of_the_empty_blob_are_none() -> None:  # P6; Go answers 206 and `bytes 0--1/0`
    assert place_part("h", BLOB, ByteRange(None, 5), None, 0).end == 0
    assert place_whole("h", BLOB, ByteRange(5, None), 0).end == 0


@given(st.integers(0, 2**40), st.integers(1, 2**40), st.integers(0, 2**40))
def test_what_our_server_says_of_a_part_our_client_reads_back(start: int, length: int, beyond: int) -> None:
    end, size = start + length, start + length + beyond
    header = {"Content-Range": format_content_range(start, end, size)}
    assert content_range(header) == ContentRange(start, end - 1, size)
