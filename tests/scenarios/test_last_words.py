"""A process that ends of what nobody foresaw says so in its log: in its format, without the secrets of the error."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entrepot import serve
from entrepot.config import Config, LogConfig
from entrepot.workers import worker
from entrepot.workers.wire import Start, send_start

SECRET = "hunter2-S3cr3tValue"


async def failing(*_: Any) -> None:
    raise ZeroDivisionError(f"asked https://h/x?sig={SECRET}")


def supervisor(config: Config, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(serve, "_serve", failing)
    return serve.run(config, lambda: config)


def one_worker(config: Config, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(worker, "_work", failing)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_start(ours, Start(1, config))
        return worker.run(theirs, [])


@pytest.fixture(autouse=True)
def _same_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("process", [supervisor, one_worker])
def test_last_words_are_a_line_of_the_log(
    process: Callable[[Config, pytest.MonkeyPatch], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = Config(data=tmp_path, upstreams=(), log=LogConfig(format="json"))
    assert process(config, monkeypatch) == 1
    said = capfd.readouterr().err
    (line,) = map(json.loads, said.splitlines())
    assert (line["level"], line["exception"].splitlines()[-1]) == (
        "error",
        "ZeroDivisionError: asked https://h/x?[redacted]",
    )
    assert SECRET not in said
