"""Regions under test: mirrors with a data folder and a configuration file each, whose peers they reach over links.

    async with regions(folder, {"a": upstream.url, "b": None}, {"b": ["a"]}) as world:
        world["a"], world.link("b", "a")

`b` asks `a` with a token of its own, which `a` grants. How a region stands is read from its catalog, which every
process may read, since asking for an image would fetch it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from subprocess import CompletedProcess
from sys import executable
from typing import Any, TypeVar

from tests.support.fleet import Node
from tests.support.link import Link
from tests.support.processes import ProgramFailed, run

UPSTREAM = "docker.io"
SOON = 60.0
LOOK = 0.05
_Seen = TypeVar("_Seen")

_DAY_AHEAD = """\
import time

_now = time.time
time.time = lambda: _now() + {seconds}
"""


NOWHERE = "http://127.0.0.1:1"
"""Nothing ever listens there; a port that is merely free now may be another test's in a moment."""


class Region(Node):
    """One region. Without `upstream_url` its upstream is a port of this machine where nothing listens."""

    def __init__(self, folder: Path, name: str, upstream_url: str | None) -> None:
        super().__init__(folder / name, {})
        self.name = name
        self.upstream_url = upstream_url or NOWHERE
        self.peers: dict[str, str] = {}
        self.grants: list[str] = []
        self.upstream_settings: dict[str, object] = {"tag_ttl": "1h"}
        self.peer_settings: dict[str, object] = {"removal_grace": "1s"}

    def configure(self) -> None:
        """Write the configuration file that the next start reads."""
        upstream = {"name": UPSTREAM, "url": self.upstream_url, **self.upstream_settings}
        parts = [f'region = "{self.name}"', "", table("upstream", upstream)]
        for peer, url in self.peers.items():
            told = {"name": peer, "url": url, "token_file": self._token(self.name, peer), **self.peer_settings}
            parts.append(table("peer", told))
        for asker in self.grants:
            granted = {"name": asker, "token_file": self._token(asker, self.name), "repositories": ["*"]}
            parts.append(table("grant", granted))
        self.config = "\n".join(parts)

    def shift_clock(self, seconds: float) -> None:
        """Have the process, when it is started again, take it to be so many seconds later than it is."""
        folder = self.folder / "clock"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_DAY_AHEAD.format(seconds=seconds))
        self.env["PYTHONPATH"] = f"{folder}:{self.env['PYTHONPATH']}"

    def set_clock_right(self) -> None:
        """Undo `shift_clock` from the next start on."""
        self.env["PYTHONPATH"] = self.env["PYTHONPATH"].removeprefix(f"{self.folder / 'clock'}:")

    def entrepot(self, *words: str, codes: Sequence[int] = (0,)) -> CompletedProcess[str]:
        """Run a command on this region's data and configuration. Raises ProgramFailed at another exit code."""
        file = self.folder / "entrepot.toml"
        argv = [executable, "-m", "entrepot", *words, "--config", str(file), "--data", str(self.data)]
        done = run(argv, env=self.env, ok=False)
        if done.returncode not in codes:
            raise ProgramFailed(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def said(self, *words: str, codes: Sequence[int] = (0,)) -> Any:
        """Run a command with `--format json` and return what it says."""
        return json.loads(self.entrepot(*words, "--format", "json", codes=codes).stdout)

    def sync_status(self) -> dict[str, dict[str, Any]]:
        """Return what `/api/sync` says of each peer, by name."""
        with urllib.request.urlopen(f"{self.admin}/api/sync", timeout=10) as answer:
            return {peer["name"]: peer for peer in json.load(answer)["peers"]}

    def tags(self) -> dict[str, str | None]:
        """Return the digest of every tag that the catalog knows, by PATH:TAG; None where it was removed."""
        asked = "SELECT path || ':' || name, digest FROM tag JOIN repository ON repository.id = tag.repository"
        return dict(self.read(asked))

    def present(self) -> set[str]:
        """Return the digests that are stored here."""
        return {digest for (digest,) in self.read("SELECT digest FROM blob WHERE present")}

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the catalog's file; a catalog that is not made yet has nothing."""
        with contextlib.suppress(sqlite3.OperationalError):
            file = f"file:{self.data / 'catalog.sqlite'}?mode=ro"
            with closing(sqlite3.connect(file, uri=True, timeout=5)) as connection:
                return connection.execute(query).fetchall()
        return []

    def _token(self, asker: str, asked: str) -> str:
        file = self.folder.parent / f"token-{asker}-{asked}"
        if not file.exists():
            file.write_text(f"token-of-{asker}-for-{asked}-0123456789\n")
            file.chmod(0o600)
        return str(file)


class World:
    """Regions by name, and the links between them."""

    def __init__(self, members: Mapping[str, Region]) -> None:
        self.members = members
        self.links: dict[tuple[str, str], Link] = {}

    def __getitem__(self, name: str) -> Region:
        return self.members[name]

    def link(self, asker: str, asked: str) -> Link:
        """Return the link over which `asker` asks `asked`."""
        return self.links[asker, asked]

    def links_between(self, one: str, other: str) -> list[Link]:
        return [link for pair, link in self.links.items() if set(pair) == {one, other}]

    async def start(self, *names: str) -> None:
        """Start what does not run, all at once; without names, all."""
        async with asyncio.TaskGroup() as group:
            for name in names or self.members:
                if not self[name].running:
                    self[name].configure()
                    group.create_task(asyncio.to_thread(self[name].start))


@asynccontextmanager
async def regions(
    folder: Path,
    upstreams: Mapping[str, str | None],
    peers: Mapping[str, Sequence[str]],
    *,
    upstream_settings: Mapping[str, object] | None = None,
    peer_settings: Mapping[str, object] | None = None,
    prepare: Callable[[World], None] = lambda world: None,
) -> AsyncIterator[World]:
    """Start regions with their upstreams' URLs, each with a link to every one of its `peers`; end them at exit.

    The settings are keys that are added to every `[[upstream]]` and `[[peer]]`; `prepare` is done before any starts.
    """
    world = World({name: Region(folder, name, url) for name, url in upstreams.items()})
    async with AsyncExitStack() as stack:
        for asker, asked in ((asker, asked) for asker, all_asked in peers.items() for asked in all_asked):
            link = world.links[asker, asked] = await stack.enter_async_context(Link(world[asked].url))
            world[asker].peers[asked] = link.url
            world[asked].grants.append(asker)
        for region in world.members.values():
            region.upstream_settings |= upstream_settings or {}
            region.peer_settings |= peer_settings or {}
        prepare(world)
        try:
            await world.start()
            yield world
        finally:
            for region in world.members.values():
                if region.running:
                    region.resume()
                    await asyncio.to_thread(region.kill)


def table(name: str, settings: Mapping[str, object]) -> str:
    """Return a `[[name]]` of a configuration file; what JSON writes of strings, numbers and arrays is TOML too."""
    return "\n".join([f"[[{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), ""])


async def until(
    what: str, look: Callable[[], _Seen], wanted: Callable[[_Seen], object], seconds: float = SOON
) -> _Seen:
    """Look, in a thread, until what is seen is `wanted`; `what` and what was seen last are told where it never is."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        seen = await asyncio.to_thread(look)
        if wanted(seen):
            return seen
        if asyncio.get_running_loop().time() > deadline:
            raise ProgramFailed(f"after {seconds} s it is not so that {what}: {seen}")
        await asyncio.sleep(LOOK)


async def shows(region: Region, tag: str, digest: str | None) -> None:
    """Wait until a region's catalog has PATH:TAG at `digest`; None: removed."""
    await until(f"{region.name} has {tag} at {digest}", region.tags, lambda tags: tag in tags and tags[tag] == digest)
