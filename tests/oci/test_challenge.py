"""Challenges as registries really send them (P32)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from proxy.oci.challenge import Challenge, parse_challenges, scope_for

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'
TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_bearer_challenge_gives_realm_service_and_scope() -> None:
    assert parse_challenges([HUB]) == [
        Challenge(
            "bearer",
            {"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull"},
        )
    ]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        (["BEARER REALM=x"], [("bearer", {"realm": "x"})]),
        (['Bearer realm="a,b \\"c\\" =d"'], [("bearer", {"realm": 'a,b "c" =d'})]),
        (['Bearer realm="x", Basic realm="y"'], [("bearer", {"realm": "x"}), ("basic", {"realm": "y"})]),
        (['Bearer realm="x"', 'Basic realm="y"'], [("bearer", {"realm": "x"}), ("basic", {"realm": "y"})]),
        (["Negotiate, Basic realm=y"], [("negotiate", {}), ("basic", {"realm": "y"})]),
        (["Negotiate TlRMTVNTUA==, Basic realm=y"], [("negotiate", {}), ("basic", {"realm": "y"})]),
        (["Negotiate TlRM/+x, Basic realm=y"], [("negotiate", {}), ("basic", {"realm": "y"})]),
        (["Bearer realm=https://a.example/token?x=1,service=s"], [
            ("bearer", {"realm": "https://a.example/token?x=1", "service": "s"})
        ]),
        (['Bearer realm = "x" , service = "y"'], [("bearer", {"realm": "x", "service": "y"})]),
        (['Bearer ,,realm="x",,service="y",'], [("bearer", {"realm": "x", "service": "y"})]),
        (['Bearer realm="x",realm="y"'], [("bearer", {"realm": "x"})]),
        (['Bearer realm=""'], [("bearer", {"realm": ""})]),
        (['Bearer realm="x",error="invalid_token"'], [("bearer", {"realm": "x", "error": "invalid_token"})]),
        (['Bearer service="s",realm="unterminated'], [("bearer", {"service": "s"})]),
        (['"realm"'], []),
    ],
)  # fmt: skip
def test_challenges_of_every_shape(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(each.scheme, dict(each.params)) for each in parse_challenges(headers)] == expected


@given(
    st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN.map(str.lower), VALUE, min_size=1)), min_size=1),
    st.sampled_from([",", ", ", " , "]),
    st.booleans(),
)
def test_quoted_challenges_are_read_back(
    challenges: list[tuple[str, dict[str, str]]], comma: str, one_line: bool
) -> None:
    lines = [
        f"{scheme} " + comma.join(f"{name}={quoted(value)}" for name, value in params.items())
        for scheme, params in challenges
    ]
    found = parse_challenges([comma.join(lines)] if one_line else lines)
    assert [(each.scheme, dict(each.params)) for each in found] == [(s.lower(), p) for s, p in challenges]


@given(st.lists(st.text()))
def test_hostile_headers_never_raise(headers: list[str]) -> None:
    for challenge in parse_challenges([*headers, *(f"Bearer {text}" for text in headers)]):
        assert challenge.scheme == challenge.scheme.lower()


def test_long_hostile_header_is_read_in_linear_time() -> None:
    started = time.process_time()
    for piece in ('Bearer a="', 'a="\\', "a=", ", ", "Bearer ", 'a="b"', "a=b,"):
        parse_challenges([piece * 20_000])
        parse_challenges(["Bearer " + piece * 20_000])
    assert time.process_time() - started < 5


def test_scope_is_for_pulling_one_repository() -> None:  # P33
    assert scope_for("library/alpine") == "repository:library/alpine:pull"
