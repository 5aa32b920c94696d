"""Commands that work for long in a data folder: as its owner, or beside the mirror, whose end they hear of."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from entrepot.beside import WrongUser, opened_store, owner_watched, until
from entrepot.cli.running import RunningMirror
from entrepot.config import Config, UpstreamConfig
from entrepot.control import open_control
from entrepot.mirror import Mirror, mirror
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from sync.bundle.errors import Interrupted
from tests.admin.conftest import config_for
from tests.support.contents import make_image
from tests.support.fake_upstream import FakeUpstream

ALPINE = Repository("docker.io", "library/alpine")


def alone(data: Path) -> Config:
    return Config(data=data, upstreams=(UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),))


async def test_where_no_mirror_runs_the_folder_is_the_commands_own(data: Path) -> None:
    async with opened_store(alone(data)) as (store, ended):
        assert ended is None
        assert (await store.stats()).blobs == 0


async def test_a_command_beside_a_mirror_hears_of_its_end_though_nothing_is_said(running: Mirror) -> None:
    async with owner_watched(running.config.data) as none_yet:
        assert none_yet is None
    async with open_control(running):
        context = owner_watched(running.config.data)
        ended = await context.__aenter__()
        assert ended is not None
        await asyncio.to_thread(RunningMirror(running.config.data).get, "/api/status")  # who came before was let in
        assert not ended.is_set()
    try:
        await asyncio.wait_for(ended.wait(), 30)
    finally:
        await context.__aexit__(None, None, None)


async def test_what_a_command_pulls_beside_a_mirror_the_mirror_serves(upstream: FakeUpstream, running: Mirror) -> None:
    image = make_image([b"one", b"two"])
    image.publish(upstream, ALPINE.path, "1")
    config = config_for(upstream, running.config.data)
    async with open_control(running), mirror(config, role="command", beside=True) as command:
        manifest = await command.cache.manifest(ALPINE, Tag("1"))
        for data in image.blobs:
            await command.cache.ensure_blob(ALPINE, Digest.of(data))
        asked = len(upstream.requests)
        served = await running.cache.manifest(ALPINE, manifest.descriptor.digest)
        assert served.body == image.body
        assert len(upstream.requests) == asked


@pytest.mark.needs("root")
async def test_root_leaves_no_files_in_the_folder_of_another_user(data: Path) -> None:
    await asyncio.to_thread(data.mkdir)
    os.chown(data, 65534, 65534)
    with pytest.raises(WrongUser, match="run this as that user, with sudo -u nobody"):
        async with opened_store(alone(data)):
            pass
    assert os.listdir(data) == []


async def test_work_that_fails_as_the_mirror_ends_leaves_nothing_to_complain_of() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    ended = asyncio.Event()

    async def work() -> None:
        ended.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the catalog is gone with the mirror")

    with pytest.raises(Interrupted):
        await until(ended, work())
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
