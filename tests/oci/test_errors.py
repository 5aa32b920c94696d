"""One table of codes and statuses; every error has the body that the specification asks for (P9)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from proxy.oci import errors

STATUSES = {
    errors.BlobUnknown: ("BLOB_UNKNOWN", 404),
    errors.ManifestUnknown: ("MANIFEST_UNKNOWN", 404),
    errors.NameUnknown: ("NAME_UNKNOWN", 404),
    errors.NameInvalid: ("NAME_INVALID", 400),
    errors.TagInvalid: ("TAG_INVALID", 400),
    errors.DigestInvalid: ("DIGEST_INVALID", 400),
    errors.PaginationNumberInvalid: ("PAGINATION_NUMBER_INVALID", 400),
    errors.Unauthorized: ("UNAUTHORIZED", 401),
    errors.Denied: ("DENIED", 403),
    errors.Unsupported: ("UNSUPPORTED", 405),
    errors.TooManyRequests: ("TOOMANYREQUESTS", 429),
    errors.BadContent: ("UNAVAILABLE", 502),
    errors.Unavailable: ("UNAVAILABLE", 503),
}


@pytest.mark.parametrize("kind", STATUSES)
def test_error_has_its_code_status_and_body(kind: type[errors.RegistryError]) -> None:
    error = kind("what happened", detail={"name": "a/b"})
    assert (error.code, error.status) == STATUSES[kind]
    entry = {"code": error.code, "message": "what happened", "detail": {"name": "a/b"}}
    assert json.loads(errors.encode(error)) == {"errors": [entry]}


@given(st.text())
def test_any_message_makes_valid_json(message: str) -> None:
    body = errors.encode(errors.NameInvalid(message))
    assert json.loads(body)["errors"][0]["message"] == message
    assert body.isascii()


def test_only_what_may_succeed_elsewhere_is_transient() -> None:
    transient = {kind for kind in STATUSES if issubclass(kind, errors.Transient)}
    assert transient == {errors.TooManyRequests, errors.Unavailable, errors.BadContent}
    assert {kind for kind in STATUSES if issubclass(kind, errors.NotFound)} == {
        kind for kind, (_, status) in STATUSES.items() if status == 404
    }


def test_range_error_knows_the_size() -> None:
    error = errors.RangeNotSatisfiable("no byte of it exists", size=0)
    assert (error.code, error.status, error.size) == ("RANGE_INVALID", 416, 0)


def test_an_error_that_is_kept_is_raised_as_a_copy_without_anybodys_frames() -> None:
    kept = errors.TooManyRequests("slow down", detail={"a": 1}, retry_after=7)
    for _ in range(3):
        with pytest.raises(errors.TooManyRequests) as told:
            raise kept.again()
        assert (told.value.message, told.value.detail, told.value.retry_after) == ("slow down", {"a": 1}, 7)
        assert str(told.value) == "slow down"
    assert kept.__traceback__ is None
    assert errors.RangeNotSatisfiable("none", size=5).again().size == 5
