"""The words of the change feed on the wire."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, strategies as st

from proxy.oci.errors import BadContent
from proxy.oci.names import Repository
from proxy.store.copying import BEGIN
from proxy.store.exchanged import Cursor, MembershipChange, Page, Past, PinChange, TagChange
from proxy.store.records import Proof
from sync.records import JSON, MOST_WAIT, PROTOCOL, Question, decode, encode

DIGEST = "sha256:" + "0" * 64
TAG = TagChange(1, 0, "latest", 7, DIGEST, "application/x", 3, "eu", 1.0, 2.0)
GONE = TagChange(2, 0, "old", 8, None, None, None, "", 1.0, 2.0)
BEFORE = Past("sha256:" + "1" * 64, 0, 5, 0, "eu", "application/x", 3, 1.0)
NEVER = Past(None, 0, 4, 0, "eu", None, None, 1.0)
MEMBER = MembershipChange(3, 1, DIGEST, 9, False, Proof.HEAD, 1.0)
PIN = PinChange(4, 1, DIGEST, 10, True, 1.0)
NAMES = [("docker.io", "library/alpine"), ("ghcr.io", "a/b")]


def page(*records: TagChange | MembershipChange | PinChange, **more: object) -> Page:
    return msgspec.structs.replace(Page("e" * 32, 9, 9, repositories=NAMES, records=list(records)), **more)


def test_a_page_is_read_as_it_was_written() -> None:
    told = page(
        msgspec.structs.replace(TAG, others=(BEFORE, NEVER)), GONE, MEMBER, PIN, cursors=[Cursor("f", "http://b:1", 3)]
    )
    read, repositories = decode(encode(told))
    assert read == told
    assert repositories == [Repository("docker.io", "library/alpine"), Repository("ghcr.io", "a/b")]


def test_people_may_have_it_as_json() -> None:
    told = json.loads(encode(page(TAG), JSON))
    assert told["protocol"] == PROTOCOL
    assert told["page"]["records"][0][:4] == ["t", 1, 0, "latest"]


def test_an_answer_without_news_is_small() -> None:
    assert len(encode(Page("e" * 32, 1 << 40, 1 << 40))) <= 300


@pytest.mark.parametrize(
    "wrong",
    [
        page(TAG, TAG),
        page(GONE, TAG),
        page(msgspec.structs.replace(TAG, at=2)),
        page(msgspec.structs.replace(TAG, seq=10)),
        page(msgspec.structs.replace(TAG, digest="sha256:1234")),
        page(msgspec.structs.replace(TAG, media_type=None)),
        page(msgspec.structs.replace(TAG, others=(msgspec.structs.replace(BEFORE, media_type=None),))),
        page(msgspec.structs.replace(TAG, others=(msgspec.structs.replace(BEFORE, size=None),))),
        page(msgspec.structs.replace(TAG, version=1 << 63)),
        page(msgspec.structs.replace(TAG, name="no tag\n")),
        page(TAG, repositories=[("docker.io", "../etc")]),
    ],
)
def test_what_breaks_the_rules_is_refused_before_it_reaches_the_catalog(wrong: Page) -> None:
    with pytest.raises(BadContent):
        decode(encode(wrong))


def test_a_newer_version_is_named() -> None:
    newer = msgspec.msgpack.encode({"protocol": PROTOCOL + 1, "page": {"other": "words"}})
    with pytest.raises(BadContent, match=f"version {PROTOCOL + 1} of the change feed"):
        decode(newer)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_words(body: bytes) -> None:
    with pytest.raises(BadContent):
        decode(body)


@given(
    st.builds(
        Question,
        st.from_regex(r"[0-9a-f]{0,32}", fullmatch=True),
        st.integers(0, 1 << 60),
        st.just(2.5),
        st.booleans(),
        st.sampled_from([None, BEGIN, f"m:17:{DIGEST}", "t:3:v1.2_x-y"]),
    )
)
def test_a_question_is_read_as_it_was_asked(question: Question) -> None:
    assert Question.parse(question.target.partition("?")[2]) == question


def test_nobody_waits_longer_than_the_most() -> None:
    assert Question.parse("since=e:1&wait=9999").wait == MOST_WAIT


@pytest.mark.parametrize(
    "query", ["since=e:x", "since=e:-1", "wait=nan", "wait=inf", "wait=-1", f"since=e:{1 << 70}", "copy=x:1:a"]
)
def test_a_question_that_makes_no_sense_is_refused(query: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever
        Question.parse(query)


def test_a_page_whose_text_is_none_is_unreadable() -> None:
    with pytest.raises(BadContent, match="unreadable"):
        decode(encode(page(TAG)).replace(b"latest", b"late\x80t"))
