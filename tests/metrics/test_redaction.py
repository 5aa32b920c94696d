"""What must never be read in a log."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from metrics.redaction import REDACTED, redact, redact_text

SECRET = "hunter2-S3cr3tValue"


@pytest.mark.parametrize(
    "context",
    [
        {"password": SECRET},
        {"Authorization": f"Bearer {SECRET}"},
        {"proxy_password": SECRET},
        {"access_token": SECRET, "x": 1},
        {"headers": {"authorization": f"Basic {SECRET}", "accept": "*/*"}},
        {"headers": [("Authorization", f"Bearer {SECRET}"), ("Accept", "*/*")]},
        {"headers": [{"deep": [{"Set-Cookie": SECRET}]}]},
        {"secret": [SECRET]},
        {"event": f"Set-Cookie: a=1; Path=/; sid={SECRET}"},
        {"event": f"(b'Cookie', b'a=1; sid={SECRET}'), (b'Accept', b'*/*')"},
        {"event": f"X-Registry-Auth: {SECRET}"},
        {"event": f'{{"auths": {{"ghcr.io": {{"auth": "{SECRET}"}}}}}}'},
        {"token": SECRET.encode()},
        {"event": f"GET https://cdn.example/blob?X-Amz-Credential={SECRET}&x=1"},
        {"event": f"redirected to HTTPS://cdn.example/a/b?sig={SECRET}, following"},
        {"event": f"proxy http://user:{SECRET}@proxy.example:3128 refused"},
        {"event": f"redis://:{SECRET}@127.0.0.1:6379/0"},
        {"event": f"sent Authorization: Bearer {SECRET}"},
        {"event": f"sent authorization={SECRET}"},
        {"event": f"bearer {SECRET} was refused"},
        {"event": f"/token?service=x&refresh_token={SECRET}&scope=y"},
        {"event": f'token endpoint said {{"access_token": "{SECRET}", "expires_in": 60}}'},
        {"event": f"{{'password': '{SECRET} with spaces'}}"},
        {"exception": f"Traceback\n  File x\nError: https://h/x?y={SECRET}\n"},
        {"event": f"realm https://auth.example/token?account={SECRET}".encode()},
        {"error": ValueError(f"password={SECRET}")},
        {f"https://h/?{SECRET}": 1},
        {"event": f"redis://:p@{SECRET}@127.0.0.1:6379/0"},
        {"event": f"rediss://user:p/{SECRET}@127.0.0.1:6379 is gone"},
        {"event": f"redis+sentinel://:p?{SECRET}@one:26379,two:26379/main"},
        {"event": f"redirected to /presigned/x?q=1&s={SECRET}"},
        {"event": f"sent Authorization: Entrepot n={SECRET} t=1"},
        {"event": f"AWSAccessKeyId={SECRET}"},
        {"secret_access_key": SECRET, "access_key_id": SECRET},
        {"event": f"got eyJhbGciOi.eyJzdWIi.{SECRET} from it"},
        {"event": f"eyJhbGciOi.eyJzdWIi.{SECRET}"},
        {"event": "hunter:$2b$05$" + "x" * 22 + SECRET.replace("-", "/")},
        {"event": f"dckr_pat_{SECRET}"},
        {"event": f"ghp_{SECRET}"},
        {"event": f"password: {SECRET} see"},
    ],
    ids=lambda context: str(context)[:48],
)
def test_a_secret_is_gone_wherever_it_stood(context: dict[str, Any]) -> None:
    shown = str({redact_text(key): value for key, value in redact(context).items()})
    assert SECRET not in shown
    assert SECRET.replace("-", "/") not in shown


def test_what_is_no_secret_stays_whole() -> None:
    context = {
        "event": "no basic authentication there; asked https://registry-1.docker.io/v2/ again",
        "kind": "token",
        "image": "docker.io/library/alpine",
        "reference": "sha256:" + "0" * 64,
        "image_by_digest": "docker.io:443/library/alpine:3.20@sha256:" + "0" * 64,
        "address": "https://h:443/v2/library/alpine@sha256:" + "0" * 64,
        "advice": "it refuses the password: check those in the URL; it holds no token: write one a line",
        "question": "is it there? x=1",
        "status": 200,
        "seconds": 0.25,
        "offline": False,
        "size": None,
        "names": ["a", "ü"],
    }
    assert redact(context) == context


@given(st.text())
def test_a_value_never_breaks_its_line(text: str) -> None:
    shown = redact_text(text)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    shown.encode("utf-8")


def test_a_trace_keeps_its_lines_and_no_escape_sequence() -> None:
    shown = redact({"exception": "Traceback\n\tat x\n\x1b[31mred"})["exception"]
    assert shown == "Traceback\n\tat x\n\\x1b[31mred"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_context_becomes_plain_values(value: object) -> None:
    redact({"value": value})


def test_a_value_that_holds_itself_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert redact({"loop": loop})


@pytest.mark.parametrize(
    "part",
    [
        "a",
        " token",
        "://",
        "a.",
        "a://",
        "bearer ",
        "token='",
        "token ",
        "cookie:",
        'cookie:"',
        "'auth':'",
        '"token":',
        "-",
        "redis://",
        "?a",
        "?a=",
        "authorization:",
        "eyJaaaa.",
        "eyJaaaa-",
        "$2b$05$",
        "ghp_",
    ],
)
def test_hostile_text_is_redacted_in_time(part: str) -> None:
    start = time.thread_time()
    redact_text("x" + part * (1_000_000 // len(part)))
    assert time.thread_time() - start < 5


def test_the_mark_tells_that_something_was_there() -> None:
    assert redact_text("https://h/x?y=z") == f"https://h/x?{REDACTED}"
