"""Lines of the log, written to a real pipe."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from metrics.emit import emitting
from metrics.events import RequestFinished, UpstreamRequest
from metrics.logs import Format, Level, Logs, _request_context
from metrics.prometheus import Metrics
from metrics.sink import LineSink

SECRET = "hunter2-S3cr3tValue"
DIGEST = "sha256:" + "a" * 64


def request(status: int = 200, **changed: Any) -> RequestFinished:
    fields: dict[str, Any] = {
        "kind": "blob",
        "method": "GET",
        "status": status,
        "outcome": "hit",
        "upstream": "docker.io",
        "repository": "library/alpine",
        "reference": DIGEST,
        "sent": 1000,
        "first_byte": 0.002,
        "duration": 0.004,
        "client": "192.0.2.7",
        "request_id": "r-1",
    }
    return RequestFinished(**(fields | changed))


class Written:
    """What came out of the pipe, once the log was closed."""

    text = ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@contextmanager
def logging_to_pipe(written: Written, *, level: Level = "info", style: Format = "json") -> Iterator[Logs]:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        chunks: list[bytes] = []
        drain = threading.Thread(target=lambda: chunks.append(reader.read()))
        drain.start()
        try:
            with Logs(level=level, style=style, descriptor=write_end) as logs:
                yield logs
        finally:
            os.close(write_end)
            drain.join()
            written.text = b"".join(chunks).decode()


@pytest.fixture
def written() -> Written:
    return Written()


def test_a_request_is_one_line_with_everything_that_matters(written: Written) -> None:
    with logging_to_pipe(written) as logs:
        logs.log_request(request())
    (line,) = written.lines
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "r-1",
        "method": "GET",
        "kind": "blob",
        "image": "docker.io/library/alpine",
        "reference": DIGEST,
        "outcome": "hit",
        "status": 200,
        "bytes": 1000,
        "seconds": 0.004,
        "first_byte": 0.002,
        "client": "192.0.2.7",
    }


def test_a_failed_request_is_a_warning(written: Written) -> None:
    with logging_to_pipe(written, level="warning") as logs:
        logs.log_request(request(200))
        logs.log_request(request(503))
    assert [(line["level"], line["status"]) for line in written.lines] == [("warning", 503)]


def test_the_level_changes_while_it_runs(written: Written) -> None:
    own = logging.getLogger("tests.own")
    with logging_to_pipe(written) as logs:
        for level in ("info", "debug", "error"):
            logs.set_level(level)
            logs.log_request(request())
            own.debug("standard")
            logs.logger.debug("structured")
            own.error("always")
    assert [line["event"] for line in written.lines] == [
        *("request", "always"),
        *("request", "standard", "structured", "always"),
        "always",
    ]


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_planted_secret_never_appears(written: Written, style: Format) -> None:
    with logging_to_pipe(written, level="debug", style=style) as logs:
        own = logging.getLogger("tests.own")
        logs.log_request(request(reference=f"https://h/x?sig={SECRET}", client=f"Bearer {SECRET}"))
        own.info("asked %s", f"https://h/x?token={SECRET}")
        own.info("headers", extra={"headers": {"Authorization": f"Bearer {SECRET}"}})
        own.info("does not fit %d", f"password={SECRET}")
        logs.logger.warning("config", upstream={"name": "x", "password": SECRET}, url=f"https://u:{SECRET}@h/")
        try:
            raise ValueError(f"token={SECRET}")
        except ValueError:
            own.exception("failed")
            logs.logger.exception("failed")
    assert SECRET not in written.text
    assert written.text.count("[redacted]") >= 8
    assert written.text.count("ValueError:") == 2


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_a_client_sends_cannot_forge_a_line(written: Written, style: Format) -> None:
    with logging_to_pipe(written, style=style) as logs:
        logs.log_request(request(reference='x\n{"event":"forged"}\x1b[2J', repository="\udcff"))
        logging.getLogger("tests.own").info("got a\r\nb")
    assert len(written.text.splitlines()) == 2
    assert "\x1b" not in written.text


def test_unhandled_errors_of_the_loop_land_in_the_log(written: Written) -> None:
    async def fail() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": KeyError("k")})

    with logging_to_pipe(written):
        asyncio.run(fail())
    (line,) = written.lines
    assert (line["level"], line["logger"]) == ("error", "asyncio")
    assert "KeyError" in line["exception"]


def test_the_root_logger_is_given_back() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    with logging_to_pipe(Written(), level="error"):
        assert root.handlers != before[0]
    assert (root.handlers[:], root.level) == before


def test_a_reader_that_stands_still_holds_nobody_and_what_is_lost_is_counted() -> None:
    limit, sent, wide = 50, 400, "x" * 4096
    read_end, write_end = os.pipe()
    sink: LineSink[bytes] = LineSink(
        write_end, lambda line: line + b"\n", lambda count: b"dropped %d\n" % count, limit=limit
    )
    sink.start()
    start = time.monotonic()
    for _ in range(sent):
        sink.put(wide.encode())
    assert time.monotonic() - start < 10
    assert sink.dropped > 0

    chunks: list[bytes] = []
    with os.fdopen(read_end, "rb") as reader:
        drain = threading.Thread(target=lambda: chunks.append(reader.read()))
        drain.start()
        sink.close(10)
        os.close(write_end)
        drain.join()
    lines = b"".join(chunks).decode().splitlines()
    told = sum(int(line.removeprefix("dropped ")) for line in lines if line.startswith("dropped "))
    assert told == sink.dropped
    assert lines.count(wide) == sent - sink.dropped


def test_closing_does_not_wait_for_a_reader_that_never_comes() -> None:
    read_end, write_end = os.pipe()
    sink: LineSink[bytes] = LineSink(write_end, bytes, lambda count: b"")
    sink.start()
    for _ in range(64):
        sink.put(b"x" * 4096)
    start = time.monotonic()
    sink.close(0.1)
    assert time.monotonic() - start < 10
    os.close(read_end)  # the writer, blocked until now, meets a broken pipe and ends
    sink.close(10)
    assert sink.dropped > 0
    os.close(write_end)


def test_a_hidden_request_costs_next_to_nothing() -> None:
    logs, event, rounds = Logs(level="warning"), request(), 5000
    start = time.thread_time()
    for _ in range(rounds):
        logs.log_request(event)
    assert (time.thread_time() - start) / rounds < 2e-6


DOCKER = (
    "docker/24.0.5 go/go1.20.6 git-commit/a61e2b4 kernel/5.15.0-84-generic os/linux arch/amd64 "
    r"UpstreamClient(Docker-Client/24.0.5 \(linux\))"
)


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize(
    "changed",
    [
        {"reference": "3.20", "digest": DIGEST, "agent": "containerd/1.7.2", "upstream_wait": 0.12345678},
        {"reference": "3.20", "agent": DOCKER},
        {"repository": "", "upstream": "", "reference": "", "agent": "a b"},
        {"digest": DIGEST},
    ],
)
def test_the_short_way_writes_what_the_long_way_writes(
    style: Format, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, event = Logs(style=style), (1_700_000_000.25, request(206, **changed))
    short = logs._line(event)
    monkeypatch.setattr("metrics.logs._PLAIN", re.compile(r"never"))
    assert logs._line(event) == short


TOKENS = (
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "glpat-20chars_of_a_token1",
    "dckr_pat_0123456789abcdefghijklmnopq",
    "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
)
WORDS = st.sampled_from([*TOKENS, "bearer", "Basic", "token", "a", "1.2", "x_y", "eyJ"])
TAGS = st.lists(WORDS, min_size=1, max_size=3).map(".".join) | st.from_regex(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,40}", fullmatch=True
)
AGENTS = st.lists(st.tuples(WORDS, WORDS).map("/".join) | st.text(max_size=8), max_size=4).map(" ".join)


@pytest.mark.parametrize("style", ["json", "console"])
@given(reference=TAGS, agent=AGENTS, wait=st.sampled_from([0.0, 1e-7, 2.5]), seconds=st.floats(0, 1e6))
@settings(max_examples=100)
def test_both_ways_hide_the_same_whatever_a_client_sends(
    style: Format, reference: str, agent: str, wait: float, seconds: float
) -> None:
    logs = Logs(style=style, worker=3)
    event = request(reference=reference, agent=agent, upstream_wait=wait, duration=seconds, digest=DIGEST)
    line = logs._line((0.25, event))
    assert line == logs._render(0.25, "info", _request_context(event))
    assert not [token for token in TOKENS if token.encode() in line]


def test_the_digest_of_a_tag_and_the_wait_for_an_upstream_are_told_where_there_are_any(written: Written) -> None:
    with logging_to_pipe(written) as logs:
        logs.log_request(request(reference="3.20", digest=DIGEST, upstream_wait=0.25))
        logs.log_request(request(reference=DIGEST, digest=DIGEST))
    tagged, plain = written.lines
    assert (tagged["reference"], tagged["digest"], tagged["upstream_seconds"]) == ("3.20", DIGEST, 0.25)
    assert plain["reference"] == DIGEST
    assert not {"digest", "upstream_seconds"} & set(plain)


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        ("containerd/1.7.2", "containerd/1.7.2"),
        ("containers/5.29.0 (github.com/containers/image)", "containers/5.29.0"),
        (DOCKER, "docker/24.0.5 go/go1.20.6 git-commit/a61e2b4"),
        (f"Bearer {SECRET}", None),
        (f"x/1\x1b[2J token={SECRET}", None),
        ('x/1 y/2" z/3', "x/1"),
        ("x/" + "1" * 100, None),
        ("a/1 " * 1000, " ".join(["a/1"] * 16)),
    ],
)
def test_of_a_user_agent_only_products_are_told(written: Written, agent: str, shown: str | None) -> None:
    with logging_to_pipe(written) as logs:
        logs.log_request(request(agent=agent))
    (line,) = written.lines
    assert line.get("agent") == shown


def test_questions_to_upstreams_are_lines_at_the_debug_level_alone(written: Written) -> None:
    with logging_to_pipe(written) as logs:
        emit = emitting(Metrics(version="0"), logs)
        asked = UpstreamRequest("docker.io", "manifest", "GET", "404", 0.25)
        emit(asked)
        logs.set_level("debug")
        emit(asked)
    (line,) = written.lines
    line.pop("timestamp")
    assert line == {
        "level": "debug",
        "event": "upstream request",
        "upstream": "docker.io",
        "method": "GET",
        "kind": "manifest",
        "status": "404",
        "seconds": 0.25,
    }


def on_a_terminal(style: Format) -> bytes:
    """Return what a terminal is sent by one request."""
    ours, theirs = pty.openpty()
    try:
        with Logs(style=style, descriptor=theirs) as logs:
            logs.log_request(request(reference="3.20"))
        return os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_gets_colours_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert b"\x1b[" in on_a_terminal("console")
    assert b"\x1b[" not in on_a_terminal("json")
    with logging_to_pipe(written, style="console") as logs:
        logs.log_request(request())
    assert "\x1b[" not in written.text
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[" not in on_a_terminal("console")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert b"\x1b[" not in on_a_terminal("console")
