"""Listings as values: pages, referrers with all their fields, links."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent
from proxy.oci.listings import (
    Referrers,
    encode_referrers,
    entry_of,
    fallback_tag,
    next_link,
    page_of,
    parse_referrers,
    parse_tags,
    sort_tags,
)
from proxy.oci.names import Tag

DIGEST = Digest.of(b"x")
ENTRY = {"mediaType": "a/b", "digest": str(DIGEST), "size": 1}
TAGS = st.sets(st.text("abcAB019_.-", min_size=1, max_size=4).map(lambda text: f"t{text}"), max_size=30)


@given(TAGS, st.integers(1, 12))
def test_pages_give_every_tag_once_in_order(tags: set[str], limit: int) -> None:  # P11
    whole = sort_tags([sorted(tags), list(tags)])
    assert list(whole) == sorted(tags, key=lambda tag: tag.encode())
    seen: list[str] = []
    more = True
    while more:
        page = page_of(whole, seen[-1] if seen else None, limit)
        assert len(page.tags) == limit or not page.more
        seen += page.tags
        more = page.more
    assert seen == list(whole)


@given(TAGS, st.text("abcAB019_.-", max_size=4))
def test_last_is_exclusive_whether_or_not_it_exists(tags: set[str], last: str) -> None:  # P11
    whole = sort_tags([list(tags)])
    assert list(page_of(whole, last, None).tags) == [tag for tag in whole if tag > last]
    assert page_of(whole, last, 0) == page_of((), None, 0)


def test_what_is_no_tag_is_not_listed() -> None:  # P8
    assert sort_tags([["ok", "-bad", "a/b", "", "x" * 129, "ok"]]) == ("ok",)


@pytest.mark.parametrize(("body", "tags"), [(b'{"name":"a","tags":["b","a"]}', ["b", "a"]), (b'{"tags":null}', [])])
def test_tags_are_read_as_they_came(body: bytes, tags: list[str]) -> None:
    assert parse_tags(body) == tags


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"tags":[1]}', b'{"tags":{}}', b"\xff", b"[" * 9999])
def test_no_list_of_tags_is_bad_content(body: bytes) -> None:
    with pytest.raises(BadContent):
        parse_tags(body)


def test_entries_keep_every_field_that_their_author_wrote() -> None:  # P12
    more = {"artifactType": "x/y", "annotations": {"k": "v"}, "platform": {"os": "linux"}, "new": [1, {"a": 2}]}
    entry = ENTRY | more
    body = json.dumps({"schemaVersion": 2, "manifests": [entry, ENTRY]}).encode()
    found = Referrers(tuple(parse_referrers(body)))
    assert json.loads(encode_referrers(found))["manifests"] == [entry, ENTRY]
    assert found.only("x/y") == Referrers((entry,), filtered=True)
    assert found.only(None) is found


@pytest.mark.parametrize(
    "entry", [{}, ENTRY | {"digest": "sha256:abc"}, ENTRY | {"size": -1}, ENTRY | {"size": "1"}, 5, None]
)
def test_an_index_with_a_broken_entry_is_bad_content_and_not_a_shorter_list(entry: object) -> None:  # P12
    with pytest.raises(BadContent):
        parse_referrers(json.dumps({"manifests": [ENTRY, entry]}).encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"errors":[]}', b'{"mediaType":"a/b","manifests":[]}'])
def test_what_is_no_index_is_bad_content(body: bytes) -> None:  # P12
    with pytest.raises(BadContent):
        parse_referrers(body)


def test_an_entry_says_of_a_manifest_what_the_api_would() -> None:  # P12
    descriptor = Descriptor("a/b", DIGEST, 7)
    assert entry_of(descriptor, None, b"{}") == {"mediaType": "a/b", "digest": DIGEST, "size": 7}
    entry = entry_of(descriptor, "x/y", b'{"annotations":{"k":"v"}}')
    assert (entry["artifactType"], entry["annotations"]) == ("x/y", {"k": "v"})


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_fallback_tag_is_a_tag_for_every_algorithm(algorithm: str) -> None:  # P13
    digest = Digest.of(b"x", algorithm)
    assert Tag.parse(fallback_tag(digest)) == f"{algorithm}-{digest.hex[:64]}"


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        (['</v2/a/tags/list?n=2&last=b>; rel="next"'], "/v2/a/tags/list?n=2&last=b"),
        (["<https://h/x?a=1,2>; rel=next"], "https://h/x?a=1,2"),
        (['<p>; rel="prev", <n>; title="a, b"; rel="last next"'], "n"),
        (['<p>; rel="prev"', '<n>; REL="next"'], "n"),
        (['<p>; rel="nextish"'], None),
        (["nonsense", "<>; rel=next", ""], None),
        ([], None),
    ],
)
def test_the_next_link_is_found_among_others(headers: list[str], target: str | None) -> None:  # P11
    assert next_link(headers) == target
