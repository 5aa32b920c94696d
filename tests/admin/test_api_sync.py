"""GET /api/sync, on the admin listener and the control socket: how other regions stand, and who may read from here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec

from entrepot.cli.running import RunningMirror
from entrepot.config import GrantConfig, PeerConfig
from entrepot.control import open_control
from entrepot.mirror import Mirror
from tests.admin.conftest import admin_of
from tests.support.syncing import PEER, FakeSyncing

GRANTS = (
    GrantConfig(name="us-east", repositories=("docker.io/**",), token_file=Path("/etc/entrepot/us.token")),
    GrantConfig(name="ap-south", repositories=("*",), certificate="mirror.ap.example"),
)


async def test_both_listeners_show_peers_and_grants_and_no_secret(running: Mirror, data: Path) -> None:
    running.config = msgspec.structs.replace(
        running.config, peers=(PeerConfig(name="us-east", url=PEER.url),), grants=GRANTS
    )
    running.part.syncing = FakeSyncing()
    async with admin_of(running) as session, session.get("/api/sync") as answer:
        shown = await answer.json()
    assert shown["peers"] == [msgspec.to_builtins(PEER)]
    assert [(grant["name"], grant["proof"]) for grant in shown["grants"]] == [
        ("us-east", "token"),
        ("ap-south", "certificate"),
    ]
    assert "us.token" not in json.dumps(shown)
    async with open_control(running):
        assert json.loads(await asyncio.to_thread(RunningMirror(data).get, "/api/sync")) == shown


async def test_a_peer_that_fails_leaves_the_mirror_ready(running: Mirror) -> None:
    failing = msgspec.structs.replace(PEER, state="failing", error="it does not answer")
    running.config = msgspec.structs.replace(running.config, peers=(PeerConfig(name="us-east", url=PEER.url),))
    running.part.syncing = FakeSyncing(peers=[failing])
    async with admin_of(running) as session, session.get("/readyz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ready")


async def test_a_mirror_of_one_region_shows_that_there_is_none(running: Mirror) -> None:
    async with admin_of(running) as session, session.get("/api/sync") as answer:
        assert (answer.status, await answer.json()) == (200, {"peers": [], "grants": []})
