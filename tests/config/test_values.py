"""The forms of values, each way: what is accepted means what it says, what is refused says why."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from entrepot.config import Address, values
from entrepot.config.values import (
    address,
    boolean,
    duration,
    duration_or_forever,
    format_duration,
    host_name,
    many,
    path_from,
    registry_url,
    text,
    upstream_name,
)


@given(st.integers(min_value=0, max_value=3_000_000_000_000))
def test_formatted_duration_reads_back_as_itself(milliseconds: int) -> None:
    assert duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-6)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("0s", 0), ("15m", 900), ("1h30m", 5400), ("7d", 604800), ("500ms", 0.5), ("1.5h", 5400)],
)
def test_duration_counts_its_units(written: str, seconds: float) -> None:
    assert duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "15", "m", "15 m", "-5m", "15mm", "15m later", "1e3s", "101y", "40000d", 15, True]
)
def test_duration_without_number_and_unit_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        duration(written)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(written: str) -> None:
    with contextlib.suppress(ValueError):
        assert duration(written) >= 0


def test_forever_has_no_end() -> None:
    assert duration_or_forever("forever") is None
    assert duration_or_forever("24h") == 86400


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("127.0.0.1:5000", Address("127.0.0.1", 5000)),
        ("[::1]:5000", Address("::1", 5000)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_address_is_host_and_port_and_prints_as_written(written: str, expected: Address) -> None:
    assert address(written) == expected
    assert str(address(written)) == written


@pytest.mark.parametrize(
    "written",
    ["5000", ":5000", "127.0.0.1", "::1:5000", "host:65536", "host:-1", "host:", "a b:1", "[1.2.3.4]:1", "[:1"],
)
def test_address_without_host_or_port_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        address(written)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_ip_address_with_a_port_is_read_back(host: object, port: int) -> None:
    assert address(str(Address(str(host), port))) == Address(str(host), port)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://registry-1.docker.io", "https://registry-1.docker.io"),
        ("http://LOCALHOST:5001/", "http://localhost:5001"),
        ("http://[::1]:5001", "http://[::1]:5001"),
    ],
)
def test_registry_url_is_the_root_of_a_host(written: str, url: str) -> None:
    assert registry_url(written) == url


@pytest.mark.parametrize(
    "written",
    [
        "registry-1.docker.io",
        "ftp://host",
        "https://",
        "https://host/path",
        "https://host?x=1",
        "https://host:99999",
        "https://[::1",
        "https://a b",
    ],
)
def test_what_is_no_root_of_a_registry_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        registry_url(written)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"user or a password") as refused:
        registry_url("https://someone:hunter2@host")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["docker.io", "private", "registry.k8s.io", "a-b", "a__b"])
def test_an_upstreams_name_is_one_component_of_a_path(name: str) -> None:
    assert upstream_name(name) == name


@pytest.mark.parametrize("name", ["Docker.io", "a/b", "v2", "index.docker.io", "a b", "-a", ""])
def test_a_name_that_paths_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        upstream_name(name)


def test_a_name_with_a_port_is_refused_with_an_alias() -> None:  # P8
    with pytest.raises(ValueError, match=r"alias such as 'registry\.example'"):
        upstream_name("Registry.example:5000")


@pytest.mark.parametrize(("written", "expected"), [("true", True), ("0", False), (True, True), ("NO", False)])
def test_booleans_are_also_words(written: object, expected: bool) -> None:
    assert boolean(written) is expected


def test_arrays_are_lists_or_words_with_commas() -> None:
    assert many(host_name)(["A.example"]) == ("a.example",)
    assert many(host_name)("a.example, b.example") == ("a.example", "b.example")
    with pytest.raises(ValueError, match="not an array"):
        many(host_name)(3)
    with pytest.raises(ValueError, match="is not a host"):
        many(host_name)(["a/b"])


def test_paths_start_at_their_folder_or_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    read = path_from(Path("/etc/entrepot"))
    assert read("password") == Path("/etc/entrepot/password")
    assert read("/run/secret") == Path("/run/secret")
    assert read("~/.docker/config.json") == Path("/home/someone/.docker/config.json")
    with pytest.raises(ValueError, match="NUL"):
        read("a\0b")


def test_text_is_not_empty() -> None:
    with pytest.raises(ValueError, match="empty"):
        text("  ")


def test_globs_are_kept_as_written_and_malformed_ones_refused() -> None:
    assert values.glob("library/*") == "library/*"
    for wrong in ("", "library/**x", "a//b", 3):
        with pytest.raises(ValueError, match=r"glob|empty|string"):
            values.glob(wrong)
