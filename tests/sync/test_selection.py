"""Which tags, platforms and referrers of a peer are chosen."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from proxy.oci.choosing import TagChoice
from proxy.oci.digest import Digest
from proxy.oci.platforms import Platform
from proxy.regions.scope import Scope
from sync.selection import (
    Candidate,
    Newest,
    Rules,
    described,
    refers_to,
    wanted_children,
    why_no_referrer,
    why_no_root,
    why_no_tag,
)
from tests.store.contents import child, digest, parsed

ALL = Scope.of(["*"])
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def rules(*tags: str, newest: int | None = None, referrers: bool = True) -> Rules:
    return Rules(ALL, tuple(map(TagChoice.parse, tags)), newest, (), referrers)


def test_the_newest_are_the_highest_versions_then_what_was_seen_last() -> None:
    candidates = [Candidate(name, at) for name, at in [("3.9", 9), ("3.10", 1), ("edge", 8), ("latest", 7)]]
    assert set(Newest(rules(), 1, candidates)) == {"3.10"}
    assert set(Newest(rules(), 3, candidates)) == {"3.10", "3.9", "edge"}
    assert set(Newest(rules("l*"), 3, candidates)) == {"latest"}
    assert set(Newest(rules(), 9, [Candidate(f"sha256-{'0' * 64}.sig", 1)])) == set()


def test_a_newer_tag_takes_the_place_of_the_oldest_and_one_that_is_gone_gives_its_place() -> None:
    known = Newest(rules(), 2, [Candidate("1", 0), Candidate("2", 0)])
    known.add(Candidate("3", 0))
    assert set(known) == {"2", "3"}
    known.add(Candidate("0", 9))
    known.drop("3")
    assert set(known) == {"2"}
    known.add(Candidate("1", 0))
    assert set(known) == {"1", "2"}


@given(
    st.lists(st.builds(Candidate, st.sampled_from(["a", "b", "1.0", "1.1", "2"]), st.floats(0, 9))), st.integers(1, 4)
)
def test_the_newest_do_not_depend_on_the_order_in_which_they_are_seen(candidates: list[Candidate], count: int) -> None:
    unique = list({one.name: one for one in candidates}.values())
    chosen = set(Newest(rules(), count, unique))
    assert chosen == set(Newest(rules(), count, reversed(unique)))
    assert len(chosen) == min(count, len(unique))


@pytest.mark.parametrize("end", ["", ".sig", ".att", ".sbom"])
def test_tags_of_cosign_and_the_fallback_tag_refer_to_their_digest(end: str) -> None:
    assert refers_to(f"sha256-{'a' * 64}{end}") == f"sha256:{'a' * 64}"
    assert refers_to(f"sha256-{'a' * 63}{end}") is None
    assert refers_to(f"sha512-{'a' * 64}") is None


def test_without_a_tag_filter_everything_is_chosen_and_with_one_only_what_tags_lead_to() -> None:
    assert why_no_root(rules(), tagged=False) is None
    assert why_no_root(rules("3.*"), tagged=False)
    assert why_no_root(rules("3.*"), tagged=True) is None
    assert why_no_tag(rules("3.*"), "edge", None)
    assert why_no_tag(rules(newest=1), "3.9", frozenset({"3.10"}))
    assert why_no_referrer(rules("3.*"), subject_chosen=False)
    assert why_no_referrer(rules("3.*"), subject_chosen=True) is None
    assert why_no_referrer(rules(referrers=False), subject_chosen=True)


def test_an_attestation_goes_with_the_manifest_that_it_describes() -> None:
    unknown = Platform("unknown", "unknown")
    index = parsed(
        "index",
        child("amd64", "manifest", platform=AMD64),
        child("arm64", "manifest", platform=ARM64),
        child("about amd64", "manifest", platform=unknown),
        child("about arm64", "manifest", platform=unknown),
    )
    entries = [
        {"digest": digest(f"about {name}"), "annotations": {"vnd.docker.reference.digest": digest(name)}}
        for name in ("amd64", "arm64")
    ]
    about = described(json.dumps({"manifests": entries}).encode())
    wanted = wanted_children(index, (ARM64,), about)
    assert [one.descriptor.digest for one in wanted.children] == [digest("arm64"), digest("about arm64")]


def test_what_has_none_of_the_platforms_is_said_to_and_what_names_none_is_wanted() -> None:
    index = parsed("index", child("amd64", "manifest", platform=AMD64))
    assert wanted_children(index, (ARM64,), {}).unmatched
    assert not wanted_children(index, (), {}).unmatched
    plain = parsed("index", child("chart", "manifest"))
    assert len(wanted_children(plain, (ARM64,), {}).children) == 1
    image = parsed("image", child("config", "config"), child("layer"), child("foreign", required=False))
    assert len(wanted_children(image, (ARM64,), {}).children) == 2


def test_strange_annotations_describe_nothing() -> None:
    assert described(b'{"manifests": [{"digest": "x", "annotations": "y"}]}') == {}
    assert described(json.dumps({"manifests": [{"digest": Digest("x"), "annotations": {}}]}).encode()) == {}
