"""Signatures between nodes: whatever is changed, they are worth nothing."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, strategies as st

from proxy.fleet.protocol import OtherProtocol
from proxy.fleet.signing import (
    SKEW_SECONDS,
    Heard,
    Question,
    asking_node,
    sign_answer,
    sign_request,
    verify_answer,
    verify_request,
)
from proxy.oci.errors import BadContent, Denied, RegistryError, Unauthorized

SECRET = b"a secret of this fleet alone"
NONCE = "0f" * 16
NOW = 1_800_000_000.0
ONE, TWO, THREE = (f"http://10.0.0.{number}:5000" for number in (1, 2, 3))
QUESTION = Question(TWO, "GET", "/fleet/v1/blobs/sha256:00?repository=a/b", "bytes=5-", ONE)

texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)


def verify(header: str | None, question: Question = QUESTION, secret: bytes = SECRET, now: float = NOW) -> str:
    return verify_request(secret, header, question.to, question.method, question.target, question.span, now)


def test_a_signed_request_is_believed_by_the_node_it_is_for() -> None:
    signed = sign_request(SECRET, QUESTION, NOW, NONCE)
    assert verify(signed.header) == signed.signature
    assert asking_node(signed.header) == ONE
    assert SECRET.decode() not in signed.header


@given(st.sampled_from(["to", "method", "target", "span"]), texts)
def test_a_request_with_any_field_changed_is_refused(name: str, text: str) -> None:
    if text == getattr(QUESTION, name):
        return
    header = sign_request(SECRET, QUESTION, NOW, NONCE).header
    with pytest.raises(Denied):
        verify(header, dataclasses.replace(QUESTION, **{name: text}))


@given(st.integers(0, 400), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_header_with_any_character_changed_is_refused(place: int, character: str) -> None:
    header = sign_request(SECRET, QUESTION, NOW, NONCE).header
    place %= len(header)
    if header[place] == character:
        return
    with pytest.raises(RegistryError) as caught:
        verify(header[:place] + character + header[place + 1 :])
    assert caught.value.status in (401, 403, 505)


@given(texts | st.text(max_size=40))
def test_a_header_that_is_none_is_refused(header: str) -> None:
    with pytest.raises((Unauthorized, OtherProtocol)):
        verify(header)


def test_no_header_is_refused_with_a_challenge() -> None:
    with pytest.raises(Unauthorized) as caught:
        verify(None)
    assert caught.value.challenge


def test_another_secret_is_refused_and_no_secret_is_shown() -> None:
    with pytest.raises(Denied) as caught:
        verify(sign_request(SECRET, QUESTION, NOW, NONCE).header, secret=b"the secret of others")
    assert ONE in caught.value.message
    assert "secret of" not in caught.value.message


@given(st.floats(-10 * SKEW_SECONDS, 10 * SKEW_SECONDS))
def test_clocks_may_differ_by_five_minutes(seconds: float) -> None:
    header = sign_request(SECRET, QUESTION, NOW, NONCE).header
    if abs(seconds) <= SKEW_SECONDS:
        verify(header, now=NOW + seconds)
    else:
        with pytest.raises(Denied):
            verify(header, now=NOW + seconds)


def test_of_clocks_that_differ_both_are_named() -> None:
    with pytest.raises(Denied, match=r"2027-01-15T08:00:00.* 2027-01-15T09:00:00.*set the clocks"):
        verify(sign_request(SECRET, QUESTION, NOW, NONCE).header, now=NOW + 3600)


@pytest.mark.parametrize(("version", "old"), [("2", TWO), ("0", ONE)])
def test_of_two_versions_the_older_node_is_named(version: str, old: str) -> None:
    with pytest.raises(OtherProtocol, match=f"upgrade {old}$") as caught:
        verify(f"v={version};node={ONE};whatever=comes;then=1")
    assert f"{ONE} speaks fleet protocol {version}" in caught.value.message


def verify_given(header: str | None, request: str = "ab" * 32, status: int = 200, says: str = "{}") -> Heard:
    return verify_answer(SECRET, header, request, status, says)


def test_a_signed_answer_is_believed() -> None:
    header = sign_answer(SECRET, "ab" * 32, 200, "{}", "cd" * 32)
    assert verify_given(header) == Heard(200, "{}", "cd" * 32)


@given(hexes, st.integers(100, 599).filter(lambda status: status != 200), texts.filter(lambda says: says != "{}"))
def test_an_answer_with_any_field_changed_is_refused(digits: str, status: int, says: str) -> None:
    header = sign_answer(SECRET, "ab" * 32, 200, "{}", "cd" * 32)
    with pytest.raises(BadContent):
        verify_given(header, request=digits)
    with pytest.raises(BadContent):
        verify_given(header, status=status)
    with pytest.raises(BadContent):
        verify_given(header, says=says)
    with pytest.raises(BadContent):
        verify_given(header.replace("cd" * 32, digits))


def test_a_request_is_no_answer_to_itself() -> None:
    signed = sign_request(SECRET, QUESTION, NOW, NONCE)
    for header in (None, "", signed.header, f"v=1;body=;sig={signed.signature}"):
        with pytest.raises(BadContent):
            verify_answer(SECRET, header, signed.signature, 200, "")


def test_an_answer_of_another_version_is_refused() -> None:
    header = sign_answer(SECRET, "ab" * 32, 200, "", "")
    with pytest.raises(BadContent):
        verify_answer(SECRET, header.replace("v=1", "v=2"), "ab" * 32, 200, "")
