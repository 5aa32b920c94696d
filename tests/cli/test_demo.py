"""`entrepot demo`: pulls are there at once, each digest is fetched once, and nothing is left of it however it ends."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from entrepot.cli import main
from entrepot.cli.demolines import closing_lines, opening_lines
from entrepot.cli.output import Output
from entrepot.demo.clients import Pulled
from entrepot.demo.images import ARCHITECTURES, IMAGES, make_samples
from entrepot.demo.link import LIMIT
from entrepot.demo.running import Demo, Summary, Wish
from proxy.oci.digest import Digest
from proxy.oci.manifests import parse_manifest
from tests.support.apart import Apart
from tests.support.browser import chromium, watched
from tests.support.clients import Docker
from tests.support.processes import Program, no_environment

READY = "Ctrl-C ends all of it"


@contextmanager
def demo(tmp_path: Path, *flags: str) -> Iterator[Program]:
    """Run a demo on free ports, whose folder lies in `tmp_path`."""
    argv = [sys.executable, "-m", "entrepot", "demo", "--port", "0", "--admin-port", "0", *flags]
    with no_environment("ENTREPOT_"), Program(argv, tmp_path / "log", {"TMPDIR": str(tmp_path)}) as program:
        yield program


def dashboard(program: Program) -> str:
    found = re.search(r"http://\S+", program.wait_line("dashboard: "))
    assert found is not None
    return found[0]


def said(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def children(program: Program) -> dict[str, int]:
    """Return the processes of a demo: `mirror` and `registry`."""
    pids = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    words = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in pids}
    return {"registry" if b"--from" in given else "mirror": pid for pid, given in words.items()}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pids: Mapping[str, int]) -> bool:
    return not any(map(alive, pids.values()))


def folders(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("entrepot-demo-*"))


def test_samples_are_whole_and_the_same_everywhere() -> None:
    put: dict[str, bytes] = {}

    def hear(digest: Digest, body: bytes) -> None:
        assert str(digest) not in put, "made twice"
        put[str(digest)] = body if len(body) < 10_000 else b""  # the demo's clients hash layers

    samples = make_samples(hear)
    assert tuple(f"{sample.repository}:{sample.tag}" for sample in samples) == IMAGES
    named: set[str] = set()
    for sample in samples:
        index = parse_manifest(sample.index.body, sample.index.media_type)
        platforms = [child.platform.architecture for child in index.children if child.platform is not None]
        assert tuple(platforms) == ARCHITECTURES
        for manifest in (sample.index, *sample.index.children):
            parsed = parse_manifest(manifest.body, manifest.media_type)
            named |= {str(manifest.digest), *(str(child.descriptor.digest) for child in parsed.children)}
    assert named == set(put)
    web = next(sample for sample in samples if sample.tag == "1.0")
    assert str(web.index.digest) == "sha256:4ba07d7771d11d71890443cd5df0b947f26ae02dd3deafff6558784efc6162b7"


def test_a_disk_without_space_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=(299 << 20) + 5))
    result = CliRunner().invoke(main, ["demo", "--port", "0", "--admin-port", "0"])
    assert result.exit_code == 1
    told = "the demo takes 300 MiB of disk, and 299 MiB are free; TMPDIR names another folder"
    assert result.stderr == f"entrepot: {tmp_path}: {told}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_may_not_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(wanted: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("entrepot.demo.running._free", refused)
    result = CliRunner().invoke(main, ["demo", "--port", "80"])
    assert (result.exit_code, result.stderr) == (1, "entrepot: the demo cannot listen on port 80: Permission denied\n")
    assert folders(tmp_path) == []


def test_a_demo_whose_pulls_failed_says_so_and_ends_with_three(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(running: Demo) -> None:
        running.tally.add(Pulled("demo/web:1.0", "podman", "failed", 0.1, 0, problem="no answer in time"))

    monkeypatch.setattr("entrepot.demo.running.Demo.run", run)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 3
    assert "failed: podman demo/web:1.0: no answer in time\n" in result.stdout


def test_the_end_tells_of_what_came_again_only_where_something_did() -> None:
    summary = Summary("", 1.0, 2, {"done": 2}, 10, 5, 64, 0, ())
    assert list(closing_lines(summary))[1] == "64 objects came from the registry, none of them again"
    told = list(closing_lines(msgspec.structs.replace(summary, again=576)))[1]
    assert told.startswith("64 objects came from the registry, and 576 times one of them again: ")


def test_what_the_demo_says_first_fits_a_terminal_of_eighty_columns() -> None:
    running = Demo(Wish(0, 0), lambda text: None, lambda demo: asyncio.sleep(0), mirror="http://127.0.0.1:50000")
    assert max(map(len, opening_lines(running))) < 80


def test_a_terminal_that_cannot_write_over_its_lines_is_given_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    assert Output("text").shows_progress()
    monkeypatch.setenv("TERM", "dumb")
    assert not Output("text").shows_progress()


@pytest.mark.needs("chromium")
def test_the_dashboard_shows_pulls_of_the_demo_within_two_seconds(tmp_path: Path) -> None:
    """Issue: the newcomer opens the page, and the pulls are there; Ctrl-C leaves nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo(tmp_path, "--port", str(port)) as program, chromium() as browser, watched(browser) as seen:
            url = dashboard(program)
            program.wait_line(f"port {port} is taken: ")
            program.wait_line(READY)
            seen.page.goto(url)
            opened = time.time()
            seen.page.locator('a[href^="#pull="]', has_text="demo/web").first.wait_for(timeout=60_000)
            shown = time.time()
            pulls = said(url.replace("dashboard/", "api/pulls"))
            began = min(pull["started_at"] for pull in (*pulls["running"], *pulls["recent"]))
            assert shown - max(opened, began) < 2
            status = said(url.replace("dashboard/", "api/status"))
            assert seen.complaints == []
            (host,) = status["upstreams"][0]["hosts"]
            assert host["quota"]["limit"] == LIMIT
            assert 0 < host["quota"]["remaining"] < LIMIT
            processes = children(program)
            assert set(processes) == {"mirror", "registry"}
            program.signal(signal.SIGINT)
            assert program.ended() == 0
    # P4: many machines pulled, and what they share was fetched once.
    assert re.search(r"[1-9]\d* objects came from the registry, none of them again", program.tail())
    assert "failed: " not in program.tail()
    assert gone(processes)
    assert folders(tmp_path) == []


@pytest.mark.slow
@pytest.mark.needs("root", "ip")
def test_the_demo_needs_no_network_and_no_environment(tmp_path: Path) -> None:
    with Apart() as apart:
        argv = ["env", "-i", "PATH=/usr/bin:/bin", f"TMPDIR={tmp_path}", sys.executable, "-m", "entrepot", "demo"]
        program = apart.call(Program, [*argv, "--seconds", "8", "--format", "json"], tmp_path / "log")
        with program:
            assert program.ended() == 0
    summary = json.loads(program.tail())
    assert summary["endings"]["done"] >= 8
    assert (summary["again"], summary["problems"]) == (0, [])
    assert summary["received"] < summary["sent"] / 3
    assert folders(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("which", ["mirror", "registry"])
def test_a_process_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path, which: str) -> None:
    with demo(tmp_path) as program:
        program.wait_line(READY)
        processes = children(program)
        os.kill(processes[which], signal.SIGKILL)
        assert program.ended() == 1
    assert f"entrepot: the {which} was ended by signal 9; the last it said:" in program.tail()
    assert '"serving"' in program.tail()
    assert gone(processes)
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_nothing_is_left_of_a_demo_that_is_killed(tmp_path: Path) -> None:
    with demo(tmp_path) as program:
        program.wait_line(READY)
        processes = children(program)
        program.kill()
        deadline = time.monotonic() + 30
        while not (gone(processes) and folders(tmp_path) == []) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gone(processes)
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_machines_that_hear_of_an_image_one_after_another_share_its_download(tmp_path: Path) -> None:
    """P4: the page shows who paid, and who joined."""
    with demo(tmp_path) as program:
        pulls = dashboard(program).replace("dashboard/", "api/pulls")
        program.wait_line(READY)
        outcomes: list[str] = []
        deadline = time.monotonic() + 30
        while len(outcomes) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
            outcomes = [pull["outcome"] for pull in said(pulls)["recent"] if pull["image"].endswith("web:1.0")]
    assert outcomes[-1] == "miss"
    assert outcomes.count("joined") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_while_it_starts_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as program:
        dashboard(program)
        processes = children(program)
        program.signal(number)
        assert program.ended() == 0
    assert "Traceback" not in program.tail()
    assert gone(processes)
    assert folders(tmp_path) == []


@pytest.mark.slow
def test_a_folder_that_is_kept_has_the_configuration_and_the_logs(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep", "--seconds", "1") as program:
        assert program.ended() == 0
    (folder,) = folders(tmp_path)
    assert f"kept: {folder}" in program.tail()
    assert {path.name for path in folder.iterdir()} == {"demo.tar", "demo.toml", "data", "mirror.log", "registry.log"}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.needs("dockerd", "containerd", "root")
def test_docker_pulls_what_the_demo_says_one_can(tmp_path: Path) -> None:
    with demo(tmp_path) as program, Docker(tmp_path / "d") as docker:
        reference = program.wait_line("docker pull ").split()[-1]
        assert docker.pull(f"http://{reference.partition('/')[0]}", reference)
