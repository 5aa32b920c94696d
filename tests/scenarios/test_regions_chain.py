"""A chain: A has a docker-registry, B knows A alone, and C knows B alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.fleets import pull
from tests.support import images
from tests.support.hosting import Hosting
from tests.support.processes import run
from tests.support.regions import Region, World, regions, shows, until
from tests.support.registry import Registry, start_open

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.needs("docker-registry", "skopeo"),
    pytest.mark.real,
]


@dataclass
class Chain:
    """The registry behind A, and the regions."""

    registry: Registry
    world: World


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A docker-registry that lets everybody push."""
    folder = tmp_path_factory.mktemp("registry")
    with Hosting() as hosting:
        started = start_open(hosting, folder, folder / "storage")
        yield started
        started.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    """The chain, which has nothing at first."""
    upstreams = {"a": registry.gate.url, "b": None, "c": None}
    async with regions(tmp_path_factory.mktemp("chain"), upstreams, {"b": ["a"], "c": ["b"]}) as world:
        yield Chain(registry, world)


async def skopeo(url: str, reference: str, folder: Path) -> Path:
    """Copy an image whole out of a mirror, and return where it is."""
    source = f"docker://{url.removeprefix('http://')}/{reference}"
    await asyncio.to_thread(run, ["skopeo", "copy", "--all", "--src-tls-verify=false", source, f"dir:{folder}"])
    return folder


async def test_skopeo_pulls_at_the_end_of_the_chain_what_was_pulled_at_its_beginning(
    chain: Chain, tmp_path: Path
) -> None:
    """An image of a real registry that was pulled in A is servable in B and C, which have no upstream."""
    image = images.multi_arch("regions")
    await asyncio.to_thread(images.push, chain.registry.direct, "library/multi", "1.0", image)
    world = chain.world
    await skopeo(world["a"].url, "library/multi:1.0", tmp_path / "a")
    for name in ("b", "c"):
        await shows(world[name], "library/multi:1.0", image.digest)
        assert image.digests() <= await asyncio.to_thread(world[name].present)
        copied = await skopeo(world[name].url, "library/multi:1.0", tmp_path / name)
        assert (copied / "manifest.json").read_bytes() == image.body
    assert max(chain.registry.gate.blob_gets().values()) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_too_many_removals_at_once_are_refused_with_their_number_until_they_are_forced(chain: Chain) -> None:
    """40 % at once: refused with the number; `sync once --force` does it, region by region."""
    a, b, c = (chain.world[name] for name in "abc")
    made: dict[str, str] = {}
    for number in range(10):
        repo = f"guarded/{'kept' if number > 4 else 'gone'}{number}"
        layer = images.layer({"number": f"{number}".encode()}, images.DOCKER_LAYER)
        image = images.manifest((layer,), images.DOCKER_MANIFEST)
        await asyncio.to_thread(images.push, chain.registry.direct, repo, "1", image)
        assert set(await pull(a, repo, "1")) == {200}
        made[f"{repo}:1"] = image.digest
    for region in (b, c):
        for tag, digest in made.items():
            await shows(region, tag, digest)
    await asyncio.to_thread(a.entrepot, "rm", "--force", "docker.io/guarded/gone*:1")
    for region, peer in ((b, "a"), (c, "b")):
        refused = await until("removals are refused", partial(why_refused, region, peer), bool)
        assert "5 of" in refused
        assert "--force" in refused
        assert await asyncio.to_thread(region.tags) | made == await asyncio.to_thread(region.tags)
        done = await asyncio.to_thread(region.entrepot, "sync", "once", "--format", "json", codes=(3,))
        assert "5 of" in done.stdout
        assert await asyncio.to_thread(region.tags) | made == await asyncio.to_thread(region.tags)
        await asyncio.to_thread(region.entrepot, "sync", "once", "--force")
        for tag, digest in made.items():
            await shows(region, tag, None if "gone" in tag else digest)


def why_refused(region: Region, peer: str) -> str:
    """Return why removals of the peer's are not done, "" where none are refused."""
    return str(region.sync_status()[peer]["removals_refused"] or "")


async def test_each_region_finds_itself_alike_with_its_peer(chain: Chain) -> None:
    """`entrepot sync verify` compares what is chosen with what is here."""
    image = images.manifest((images.layer({"alike": b"1"}, images.DOCKER_LAYER),), images.DOCKER_MANIFEST)
    await asyncio.to_thread(images.push, chain.registry.direct, "library/compared", "1", image)
    assert set(await pull(chain.world["a"], "library/compared", "1")) == {200}
    for name in ("b", "c"):
        await shows(chain.world[name], "library/compared:1", image.digest)

    def compared(region: Region) -> dict[str, Any]:
        (report,) = json.loads(region.entrepot("sync", "verify", "--format", "json", codes=(0, 3)).stdout)["peers"]
        return dict(report)

    for name in ("b", "c"):
        seen = await until(
            f"{name} is like its peer",
            partial(compared, chain.world[name]),
            lambda report: (report["differing"], report["missing"], report["error"]) == (0, [], None),
        )
        assert seen["records"] > 0
