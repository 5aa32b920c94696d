"""Platforms are read, written and compared as image-spec and its users mean them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from proxy.oci.errors import BadRequest
from proxy.oci.platforms import Platform

WORDS = st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True)
platforms = st.builds(Platform, WORDS, WORDS, st.one_of(st.just(""), WORDS))


@given(platforms)
def test_platform_is_read_back_and_matches_itself(platform: Platform) -> None:
    assert Platform.parse(str(platform)) == platform
    assert platform.matches(platform)
    assert Platform(platform.os, platform.architecture).matches(platform)


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/arm", "linux/arm/v6"),
        ("linux/aarch64", "linux/arm64/v8"),
        ("Linux/X86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_offer_is_what_was_asked_for(asked: str, offered: str) -> None:
    assert Platform.parse(asked).matches(Platform.parse(offered))


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("linux/amd64", "linux/arm64"),
        ("linux/amd64", "windows/amd64"),
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/amd64/v3", "linux/amd64"),
        ("linux/amd64", "unknown/unknown"),
        ("linux/riscv64/v1", "linux/riscv64"),
    ],
)
def test_offer_is_something_else(asked: str, offered: str) -> None:
    assert not Platform.parse(asked).matches(Platform.parse(offered))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux//v8", "*"])
def test_malformed_platform_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadRequest, match="linux/amd64"):
        Platform.parse(text)
