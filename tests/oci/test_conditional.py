"""If-None-Match and If-Range as RFC 9110 §13 and P7 have them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from proxy.oci.conditional import not_modified, range_applies
from proxy.oci.digest import Digest
from tests.oci.strategies import digests

DIGEST = Digest.of(b"content")
OTHER = Digest.of(b"other")


@pytest.mark.parametrize(
    "header",
    [
        f'"{DIGEST}"',
        f"{DIGEST}",
        f'W/"{DIGEST}"',
        f"W/{DIGEST}",
        "*",
        " * ",
        f'"{OTHER}", "{DIGEST}"',
        f'"{OTHER}",W/"{DIGEST}"',
        f"{OTHER}, {DIGEST}",
        f'"", "{DIGEST}"',
        f'"a, b", "{DIGEST}"',
    ],
)
def test_named_digest_is_not_modified(header: str) -> None:  # P7
    assert not_modified(header, DIGEST)


@pytest.mark.parametrize(
    "header",
    [None, "", f'"{OTHER}"', f"{OTHER}", f'"{DIGEST.hex}"', '"*"', f'"x, {DIGEST}, y"', f"{DIGEST}0"],
)
def test_other_entity_tag_is_answered_in_full(header: str | None) -> None:
    assert not not_modified(header, DIGEST)


@given(st.lists(digests), digests, st.sampled_from(['"{}"', "{}", 'W/"{}"']), st.sampled_from([",", ", ", " , "]))
def test_list_matches_exactly_its_members(members: list[Digest], asked: Digest, form: str, comma: str) -> None:
    assert not_modified(comma.join(form.format(member) for member in members), asked) == (asked in members)


@given(st.text())
def test_any_header_is_decided(text: str) -> None:
    assert not_modified(text, DIGEST) == ("*" in text and not_modified(text, OTHER))
    assert not range_applies(text, DIGEST)


@pytest.mark.parametrize("header", [None, f'"{DIGEST}"', f" {DIGEST} "])
def test_range_applies_to_the_same_content(header: str | None) -> None:
    assert range_applies(header, DIGEST)


@pytest.mark.parametrize("header", ["", f'"{OTHER}"', f'W/"{DIGEST}"', "*", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_range_does_not_apply_to_other_weak_or_dated_content(header: str) -> None:  # P7, RFC 9110 §13.1.5
    assert not range_applies(header, DIGEST)
