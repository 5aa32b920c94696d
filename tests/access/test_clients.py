"""How skopeo, which speaks podman's library, meets a mirror that asks who it is (P1, P32)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from entrepot.config import AccessConfig
from tests.access.support import admission
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

pytestmark = [pytest.mark.real, pytest.mark.needs("skopeo")]

IMAGE = make_image([blob(100)])


async def inspect(lab: Lab, repository: str, *flags: str) -> tuple[int, bytes]:
    """Return skopeo's exit code and the manifest that it got."""
    where = f"docker://{lab.url.removeprefix('http://')}/{repository}:1"
    process = await asyncio.create_subprocess_exec(
        *("skopeo", "inspect", "--raw", "--tls-verify=false", *flags, where),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out


async def test_skopeo_gets_what_is_public_without_a_login_and_what_is_private_with_one(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.auth, upstream.private = "bearer", {"team/secret"}
        upstream.logins = {"ann": ("ann's password", True), "eve": ("eve's password", False)}
        for repository in ("library/alpine", "team/secret"):
            IMAGE.publish(upstream, repository, "1")
        opened = admission(AccessConfig(mode="upstream"), tmp_path)
        async with laboratory(tmp_path / "data", {HUB: [upstream]}, admission=opened) as lab:
            assert await inspect(lab, "library/alpine", "--no-creds") == (0, IMAGE.body)
            assert await inspect(lab, "team/secret", "--creds", "ann:ann's password") == (0, IMAGE.body)
            for flags in (("--no-creds",), ("--creds", "eve:eve's password")):
                code, out = await inspect(lab, "team/secret", *flags)
                assert code != 0
                assert not out
