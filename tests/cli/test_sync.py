"""`entrepot sync` at the control socket of a mirror that runs, and where none does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner, Result

from entrepot.cli import main
from entrepot.cli.running import RunningMirror
from entrepot.cli.synclines import of_peer, of_verify
from entrepot.cli.syncwork import words_of_progress
from entrepot.config import Config, UpstreamConfig
from entrepot.config.model import GrantConfig, PeerConfig
from entrepot.control import open_control
from entrepot.mirror import Mirror, mirror
from proxy.oci.errors import Unavailable
from sync.reports import ConflictReport, PassReport, PeerReport, PlannedImage, Progress, VerifyReport
from tests.support.syncing import PEER, FakeSyncing

PEERS = (
    PeerConfig(name="us-east", url="https://us.mirror.example"),
    PeerConfig(name="ap-south", url="https://ap.mirror.example"),
)
GRANTS = (GrantConfig(name="us-east", repositories=("docker.io/**",), token_file=Path("/etc/entrepot/us.token")),)
DIGEST = "sha256:" + "a" * 64
ALPINE = "docker.io/library/alpine:3.20"


@pytest.fixture
def syncing() -> FakeSyncing:
    return FakeSyncing()


@pytest.fixture
async def running(tmp_path: Path, syncing: FakeSyncing) -> AsyncIterator[Mirror]:
    """A mirror at its control socket, with one upstream that nobody asks."""
    upstreams = (UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),)
    async with mirror(Config(data=tmp_path, region="eu-west", upstreams=upstreams)) as made:
        made.config = msgspec.structs.replace(made.config, peers=PEERS, grants=GRANTS)
        made.part.syncing, made.state = syncing, "ready"
        async with open_control(made):
            yield made


async def entrepot(running: Mirror, *arguments: str) -> Result:
    words = [*arguments, "--data", str(running.config.data)]
    return await asyncio.to_thread(CliRunner(catch_exceptions=False).invoke, main, words)


async def as_json(running: Mirror, *arguments: str) -> tuple[int, object]:
    result = await entrepot(running, *arguments, "--format", "json")
    return result.exit_code, json.loads(result.stdout)


async def test_a_pass_asks_for_all_peers_or_those_named(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.passed = PassReport(images=3, bytes=2048, tags=4)
    assert await as_json(running, "sync", "once") == (0, json.loads(msgspec.json.encode(syncing.passed)))
    result = await entrepot(running, "sync", "once", "ap-south", "us-east", "--force")
    assert (result.exit_code, result.stdout) == (0, "3 images, 2.0 KiB fetched, 4 tags set\n")
    assert syncing.asked == [("once", (), False), ("once", ("ap-south", "us-east"), True)]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (PassReport(images=1, failed=((ALPINE, "a blob is missing"),)), f"{ALPINE}: a blob is missing"),
        (PassReport(refused=("40 of 100 images of us-east",)), "refused: 40 of 100 images of us-east\n"),
        (PassReport(unreachable=(("us-east", "it does not answer"),)), "not asked: us-east: it does not answer"),
    ],
)
async def test_what_was_not_done_is_said_and_ends_with_3(
    running: Mirror, syncing: FakeSyncing, report: PassReport, words: str
) -> None:
    syncing.passed = report
    result = await entrepot(running, "sync", "once")
    assert result.exit_code == 3
    assert words in result.stdout


async def test_a_peer_that_is_held_is_no_failure(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.passed = PassReport(removed=1, held=(("us-east", "paused"),))
    result = await entrepot(running, "sync", "once")
    assert result.exit_code == 0
    assert result.stdout.endswith("; 1 removed\nheld: us-east: paused\n")


@pytest.mark.parametrize("command", ["once", "plan", "status", "verify", "pause", "resume"])
async def test_a_name_of_no_peer_is_told_with_those_that_there_are(
    running: Mirror, syncing: FakeSyncing, command: str
) -> None:
    result = await entrepot(running, "sync", command, "us-east", "us-west")
    assert (result.exit_code, result.stderr) == (
        2,
        "entrepot: no [[peer]] is named us-west; there is us-east, ap-south\n",
    )
    assert syncing.asked == []


@pytest.mark.parametrize("command", ["run", "once", "plan", "status", "verify", "conflicts", "pause", "resume"])
async def test_without_a_peer_it_is_said_how_to_configure_one(running: Mirror, tmp_path: Path, command: str) -> None:
    running.config = msgspec.structs.replace(running.config, peers=())
    beside = await entrepot(running, "sync", command)
    alone = await asyncio.to_thread(CliRunner().invoke, main, ["sync", command, "--data", str(tmp_path / "other")])
    for result in (beside, alone):
        assert result.exit_code == 2
        assert "add a [[peer]]" in result.stderr


async def test_a_peer_that_came_after_the_start_needs_a_restart(running: Mirror, configured: list[str]) -> None:
    running.config = msgspec.structs.replace(running.config, peers=PEERS[1:])
    result = await entrepot(running, "sync", "once", "us-east", *configured[:2])
    assert result.exit_code == 2
    assert result.stderr.startswith("entrepot: the mirror that runs has not read this configuration: restart it (no [[")


async def test_what_fails_in_the_mirror_ends_with_1_and_its_words(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.fault = Unavailable("the catalog does not answer")
    result = await entrepot(running, "sync", "once")
    assert (result.exit_code, result.stderr) == (1, "entrepot: the catalog does not answer\n")
    syncing.fault = RuntimeError("a secret of the inside")
    result = await entrepot(running, "sync", "once")
    assert result.exit_code == 1
    assert "its log has the reason" in result.stderr
    assert "secret" not in result.output


async def test_a_mirror_that_starts_is_not_taken_for_one_without_peers(running: Mirror) -> None:
    running.part.syncing = None
    result = await entrepot(running, "sync", "status")
    assert result.exit_code == 1
    assert "starting or ending" in result.stderr


async def test_progress_is_streamed_before_the_end(running: Mirror, syncing: FakeSyncing) -> None:
    progress = Progress(images=1, total_images=2, bytes=1024, total_bytes=4096, rate=512.0, seconds_left=6.0)
    syncing.progress = [progress]
    control = RunningMirror(running.config.data)
    lines = await asyncio.to_thread(lambda: [json.loads(line) for line in control.lines("/api/sync", {"ask": "once"})])
    assert [line["event"] for line in lines] == ["progress", "passed"]
    assert msgspec.convert(lines[0]["progress"], Progress) == progress
    assert words_of_progress(progress) == "1 of 2 images and tags, 1.0 KiB of 4.0 KiB, 512 B/s, 6s left"


async def test_a_plan_shows_each_step_of_the_peers_named(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.planned = [
        PlannedImage(peer="us-east", action="fetch", reference=ALPINE, digest=DIGEST, size=2048),
        PlannedImage(peer="us-east", action="fetch", reference="docker.io/library/new:1", digest=DIGEST),
        PlannedImage(peer="us-east", action="remove", reference="docker.io/library/old:1", reason="its grace is over"),
        PlannedImage(peer="ap-south", action="tag", reference="docker.io/library/far:1", digest=DIGEST),
    ]
    result = await entrepot(running, "sync", "plan", "us-east")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"fetch {ALPINE} {DIGEST} (us-east), 2.0 KiB",
        f"fetch docker.io/library/new:1 {DIGEST} (us-east)",
        "remove docker.io/library/old:1 (us-east): its grace is over",
        "2 images to fetch, 2.0 KiB, and 1 of a size not known yet; 3 steps in all",
    ]
    assert len((await as_json(running, "sync", "plan"))[1]["images"]) == 4  # type: ignore[index]


async def test_a_comparison_that_finds_something_ends_with_3(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.verified = [VerifyReport(peer="us-east", records=1000, differing=0)]
    assert (await entrepot(running, "sync", "verify")).stdout == (
        "peer us-east: 1000 records, all alike here; all that was chosen is here\n"
    )
    for found in (
        VerifyReport(peer="us-east", records=1000, differing=2),
        VerifyReport(peer="us-east", records=1000, differing=0, missing=(ALPINE,)),
        VerifyReport(peer="us-east", records=0, differing=0, error="it does not answer"),
    ):
        syncing.verified = [found]
        assert (await entrepot(running, "sync", "verify")).exit_code == 3


async def test_conflicts_tell_both_sides(running: Mirror, syncing: FakeSyncing) -> None:
    assert (await entrepot(running, "sync", "conflicts")).stdout == "no conflict is known\n"
    syncing.conflicting = [
        ConflictReport(
            reference=ALPINE, winner="sha256:b", winner_region="us", loser="sha256:a", loser_region="eu", found_at=0.0
        )
    ]
    said = (await entrepot(running, "sync", "conflicts")).stdout
    assert f"{ALPINE}: sha256:b of us counts; sha256:a of eu is kept" in said
    assert (await as_json(running, "sync", "conflicts"))[1] == {"conflicts": msgspec.to_builtins(syncing.conflicting)}


async def test_pause_and_resume_end_with_how_the_peers_stand(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.peers = [msgspec.structs.replace(PEER, held="paused")]
    result = await entrepot(running, "sync", "pause")
    assert result.stdout.startswith("peer us-east at https://us.mirror.example: held, paused\n")
    await entrepot(running, "sync", "resume", "us-east")
    assert syncing.asked == [("pause", ()), ("resume", ("us-east",))]


async def test_run_beside_a_mirror_says_that_it_syncs_already(running: Mirror) -> None:
    result = await entrepot(running, "sync", "run")
    assert (result.exit_code, result.stdout) == (
        0,
        f"the mirror that serves {running.config.data} syncs already, with us-east\n",
    )


async def test_status_shows_peers_and_grants(running: Mirror, syncing: FakeSyncing) -> None:
    syncing.peers = [msgspec.structs.replace(PEER, state="failing", error="it refuses our token")]
    lines = (await entrepot(running, "status")).stdout.splitlines()
    assert "peer us-east at https://us.mirror.example: failing" in lines
    assert "  it refuses our token" in lines
    assert "region us-east may read docker.io/**" in lines
    code, document = await as_json(running, "status")
    assert code == 0
    assert isinstance(document, dict)
    assert document["state"] == "ready"  # a peer that fails takes no traffic away from those who pull
    assert document["regions"]["grants"] == [{"name": "us-east", "repositories": ["docker.io/**"], "proof": "token"}]
    assert document["regions"]["peers"] == msgspec.to_builtins(syncing.peers)


@dataclass
class Alone(FakeSyncing):
    """What syncs without a mirror; `run` has this process told to end, and notes how it ended."""

    ended: str = "never began"

    async def run(self) -> None:
        self.ended = "ended by itself"
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Alone:
    """Let commands that find no mirror work with this."""
    made = Alone()

    @asynccontextmanager
    async def syncing_alone(config: Config) -> AsyncIterator[Alone]:
        assert config.region == "eu-west"
        yield made

    monkeypatch.setitem(sys.modules, "entrepot.syncing", SimpleNamespace(syncing_alone=syncing_alone))
    return made


@pytest.fixture
def configured(tmp_path: Path) -> list[str]:
    """The flags of a command that is told of a peer, and finds no mirror."""
    (tmp_path / "us.token").write_text("a-token")
    (tmp_path / "entrepot.toml").write_text(
        'region = "eu-west"\n[[peer]]\nname = "us-east"\nurl = "http://127.0.0.1:1"\ntoken_file = "us.token"\n'
    )
    return ["--config", str(tmp_path / "entrepot.toml"), "--data", str(tmp_path / "data")]


def test_without_a_mirror_the_command_does_the_work(alone: Alone, configured: list[str]) -> None:
    alone.passed = PassReport(images=1, failed=((ALPINE, "a blob is missing"),))
    result = CliRunner(catch_exceptions=False).invoke(main, ["sync", "once", "us-east", *configured])
    assert (result.exit_code, alone.asked) == (3, [("once", ("us-east",), False)])
    alone.fault = Unavailable("the upstream does not answer")
    result = CliRunner(catch_exceptions=False).invoke(main, ["sync", "once", *configured])
    assert (result.exit_code, result.stderr) == (1, "entrepot: the upstream does not answer\n")
    unknown = CliRunner().invoke(main, ["sync", "once", "us-west", *configured])
    assert (unknown.exit_code, len(alone.asked)) == (2, 2)
    assert "no [[peer]] is named us-west; there is us-east" in unknown.stderr


def test_without_a_mirror_it_is_said_that_nothing_syncs_and_a_pause_is_kept(configured: list[str]) -> None:
    shown = CliRunner(catch_exceptions=False).invoke(main, ["sync", "status", *configured])
    assert shown.stdout == "peer us-east at http://127.0.0.1:1: not synced with now, as no mirror runs here\n"
    CliRunner(catch_exceptions=False).invoke(main, ["sync", "pause", *configured])
    shown = CliRunner(catch_exceptions=False).invoke(main, ["sync", "status", *configured, "--format", "json"])
    (peer,) = json.loads(shown.stdout)["peers"]
    assert (peer["state"], peer["held"]) == ("held", "paused: `entrepot sync resume us-east` goes on")


def test_run_without_a_mirror_logs_as_a_mirror_does(configured: list[str]) -> None:
    """A region that cannot be reached is told of while the sync goes on."""
    argv = [sys.executable, "-m", "entrepot", "sync", "run", *configured]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "[warning" in line:
                break
        running.terminate()
        rest = running.stderr.read()
    assert "us-east" in line
    assert "connection refused" in line
    assert (running.returncode, "Traceback" in rest) == (0, False)


def test_run_without_a_mirror_syncs_until_it_is_told_to_end(alone: Alone, configured: list[str]) -> None:
    result = CliRunner(catch_exceptions=False).invoke(main, ["sync", "run", *configured])
    assert (result.exit_code, alone.ended) == (0, "cancelled")
    assert "syncing with us-east" in result.stderr


def test_a_peer_is_told_in_words() -> None:
    behind = PeerReport(
        name="us",
        url="https://us",
        state="fetching",
        seconds_behind=90,
        images_behind=1,
        bytes_behind=2048,
        rate=512.0,
        failures=2,
        removals=3,
        refused_clock=1,
    )
    first, *rest = of_peer(behind)
    assert first == (
        "peer us at https://us: fetching, 1 image or tag, 2.0 KiB behind, not all has been here for 1m30s, 512 B/s"
    )
    assert [line.strip().split(";")[0] for line in rest] == [
        "2 failures of images since the start",
        "3 removals to come, for what it waits see: entrepot sync plan us",
        "1 record from a clock ahead of ours: to be taken over when its time has come",
    ]
    assert "  2 failures of images since the start" in of_peer(msgspec.structs.replace(behind, images_behind=0))
    refused = of_peer(msgspec.structs.replace(behind, removals_refused="3 of 4 images"))
    assert "  removals are refused: 3 of 4 images" in refused


def test_of_many_missing_images_some_are_named() -> None:
    lines = of_verify(VerifyReport(peer="us", records=30, differing=3, missing=tuple(map(str, range(25)))))
    assert lines[0] == "peer us: 30 records, 3 of them differ here; 25 images not here:"
    assert lines[-1] == "  and 5 more"
