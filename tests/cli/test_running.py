"""Talking to the mirror that runs: over its socket however long the path, and what is said when that fails."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrepot.cli import main
from entrepot.cli.exits import CommandFailed
from entrepot.cli.running import find
from entrepot.unixsocket import Listening


@contextmanager
def mirror_answering(data: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Answer one connection after the other with raw bytes; give what was asked. An empty one is for `find`."""
    listening = Listening.bind(data / "run", "control.sock")
    listening.socket.setblocking(True)
    listening.socket.settimeout(30)
    listening.socket.listen()
    asked: list[bytes] = []

    def answer() -> None:
        for raw in answers:
            connection, _ = listening.socket.accept()
            with connection:
                connection.settimeout(30)
                asked.append(_request(connection))
                if raw:
                    connection.sendall(raw)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield asked
    thread.join(10)
    listening.close()


def _request(connection: socket.socket) -> bytes:
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if end and len(body) >= int(length[1] if length else 0):
            break
    return data


def http(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def lines(*documents: object) -> bytes:
    return http(200, b"\n".join(json.dumps(document).encode() for document in documents) + b"\n")


RESOLVED = {"event": "resolved", "repository": "docker.io/library/alpine", "digest": "sha256:aa", "media_type": "x"}
BLOB = {"event": "blob", "digest": "sha256:bb", "size": 10, "done": 10}
FAILED = {"event": "failed", "what": "sha256:cc", "error": "the upstream is gone"}
DONE = {
    **{"event": "done", "repository": "docker.io/library/alpine", "digest": "sha256:aa", "media_type": "x"},
    **{"manifests": 1, "blobs": 1, "bytes": 10, "failures": []},
}


def entrepot(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner(catch_exceptions=False).invoke(main, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_without_a_mirror_has_none(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    assert find(tmp_path / "nowhere") is None
    listening = Listening.bind(tmp_path / "run", "control.sock")
    listening.socket.close()
    assert find(tmp_path) is None, "a socket that nobody listens at is no mirror"


def test_status_asks_by_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    data = tmp_path / ("d" * 120)
    with mirror_answering(data, b"", http(200, b'{"a": 1}')) as asked:
        running = find(data)
        assert running is not None
        assert running.get("/api/status") == b'{"a": 1}'
    assert asked[1].startswith(b"GET /api/status HTTP/1.1\r\n")


def test_pull_shows_what_the_mirror_did(tmp_path: Path) -> None:
    with mirror_answering(tmp_path, b"", lines(RESOLVED, BLOB, DONE)) as asked:
        code, out, err = entrepot("pull", "alpine:3", "--platform", "all", "--data", str(tmp_path))
    assert code == 0
    assert out == "alpine:3 sha256:aa: 1 manifest, 1 blob, 10 B\n"
    assert "docker.io/library/alpine is sha256:aa" in err
    assert json.loads(asked[1].partition(b"\r\n\r\n")[2]) == {"reference": "alpine:3", "platforms": ["all"]}


def test_a_pull_in_part_names_what_failed_and_ends_with_3(tmp_path: Path) -> None:
    failure = {"event": "failed", "what": "sha256:cc", "error": "the upstream is gone"}
    with mirror_answering(tmp_path, b"", lines(RESOLVED, FAILED, {**DONE, "failures": [failure]})):
        code, out, _ = entrepot("pull", "alpine:3", "--data", str(tmp_path))
    assert code == 3
    assert "1 failed" in out
    assert "sha256:cc: the upstream is gone" in out


def test_a_pull_for_machines_is_one_document(tmp_path: Path) -> None:
    with mirror_answering(tmp_path, b"", lines(RESOLVED, BLOB, DONE)):
        code, out, err = entrepot("pull", "alpine:3", "--data", str(tmp_path), "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["digest"] == "sha256:aa"


def test_a_pull_that_the_mirror_refuses_fails_with_its_reason(tmp_path: Path) -> None:
    refusal = {"event": "error", "code": "MANIFEST_UNKNOWN", "message": "no such tag"}
    with mirror_answering(tmp_path, b"", lines(refusal)):
        code, _, err = entrepot("pull", "alpine:3", "--data", str(tmp_path))
    assert code == 1
    assert "no such tag" in err


def test_a_pull_cut_off_is_not_taken_for_done(tmp_path: Path) -> None:
    with mirror_answering(tmp_path, b"", lines(RESOLVED, BLOB)):
        code, _, err = entrepot("pull", "alpine:3", "--data", str(tmp_path))
    assert code == 1
    assert "ended the pull before it was done" in err


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (http(409, b'{"errors": [{"code": "X", "message": "one is running"}]}'), "answered 409: one is running"),
        (http(500, b"oh"), "answered 500: oh"),
        (b"", "connection to the running mirror broke"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{", "connection to the running mirror broke"),
    ],
)
def test_an_answer_that_is_none_fails_with_what_is_known(tmp_path: Path, raw: bytes, message: str) -> None:
    with mirror_answering(tmp_path, b"", raw):
        running = find(tmp_path)
        assert running is not None
        with pytest.raises(CommandFailed, match=message):
            running.get("/api/status")


def test_verify_ends_with_3_and_names_what_it_set_aside(tmp_path: Path) -> None:
    adopted, unknown = "a" * 64, "b" * 64
    report = {
        **{"event": "done", "checked": 3, "bytes": 30, "corrupt": ["sha256:cc"], "missing": ["sha256:dd"]},
        **{"unknown": [f"/x/{adopted}", f"/x/{unknown}"], "adopted": [f"sha256:{adopted}"]},
    }
    progress = {"event": "progress", "checked": 1, "total": 3, "bytes": 10}
    with mirror_answering(tmp_path, b"", lines(progress, report)):
        code, out, _ = entrepot("verify", "--data", str(tmp_path))
    assert code == 3
    assert "3 wrong" in out
    assert "corrupt, set aside: sha256:cc" in out
    assert "missing, to be pulled again: sha256:dd" in out
    assert f"unknown, set aside: /x/{unknown}" in out
    assert f"set aside: /x/{adopted}" not in out


def test_a_socket_of_another_user_is_no_absent_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()

    def refused(self: object, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refused)
    with pytest.raises(CommandFailed, match="no permission"):
        find(tmp_path)
