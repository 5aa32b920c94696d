"""What docs/regions.md shows is done as it is written: its two regions, and every command of it."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.docs.test_documents import ROOT, blocks
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.processes import Program, free_port, run

PAGE = ROOT / "docs/regions.md"


def shown(language: str) -> list[str]:
    return [text for kind, text in blocks(PAGE) if kind == language]


def commands(text: str) -> list[list[str]]:
    """Return what a block of shell runs of ours, without the name of the program."""
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("entrepot ")]


@dataclass
class Regions:
    """The folder with both files, and the environment in which only `eu` reaches an upstream."""

    folder: Path
    upstream: str

    async def entrepot(self, *words: str) -> CompletedProcess[str]:
        """Run a command as it stands on the page; without a file it is of `us`."""
        asked = words if "--config" in words else (*words, "--config", "us.toml")
        return await asyncio.to_thread(run, self.argv(asked), env=self.env(asked), ok=False)

    def argv(self, words: Sequence[str]) -> list[str]:
        own = [str(self.folder / word) if word.endswith(".toml") else word for word in words]
        return [sys.executable, "-m", "entrepot", *own]

    def env(self, words: Sequence[str]) -> dict[str, str]:
        url = self.upstream if "eu.toml" in words else "http://127.0.0.1:1"
        return {"ENTREPOT_UPSTREAM": f"docker.io={url}", "PYTHONPATH": str(ROOT)}

    async def until(self, words: list[str], wanted: str) -> str:
        """Run a command until it says what is `wanted`."""
        async with asyncio.timeout(60):
            while wanted not in (said := (await self.entrepot(*words)).stdout):
                pass
        return said


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Regions]:
    """The two regions of the page, on ports and in folders of their own; `eu` has been asked to pull alpine:3."""
    first, *_ = shown("sh")
    ports = {port: str(free_port()) for port in ("5010", "5011", "5020", "5021")}
    for name, text in zip(("eu.toml", "us.toml"), shown("toml"), strict=True):
        own = re.sub(r"50[12][01]", lambda found: ports[found[0]], text.replace("/tmp/regions", str(tmp_path)))
        (tmp_path / name).write_text(own)
    run(["sh", "-c", f"cd '{tmp_path}' && {first.splitlines()[0]}"])
    image = make_image([blob(70 * 1024, seed=1)])
    async with FakeUpstream() as upstream:
        image.publish(upstream, "library/alpine", "3")
        regions = Regions(tmp_path, upstream.url)
        *serving, pull = commands(first)[:3]
        assert [words[0] for words in (*serving, pull)] == ["serve", "serve", "pull"]
        programs = []
        try:
            for words in serving:
                programs.append(Program(regions.argv(words), tmp_path / f"{words[-1]}.log", regions.env(words)))
            for program in programs:
                await asyncio.to_thread(program.wait_line, "serving")
            assert (await regions.entrepot(*pull)).returncode == 0
            yield regions
        finally:
            for program in programs:
                await asyncio.to_thread(program.stop)


async def test_the_two_regions_shown_keep_alike(two: Regions) -> None:
    status, why = commands(shown("sh")[0])[3:]
    said = await two.until(why, "is served from the store")
    assert "what the tag is comes from region eu" in said
    assert (await two.entrepot(*status)).stdout.startswith("peer eu at http://127.0.0.1:")


def test_every_line_of_the_log_that_is_shown_is_one() -> None:
    _, _, table = PAGE.read_text().partition("| the log says |")
    told = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    said = "".join(path.read_text() for folder in ("sync", "proxy") for path in (ROOT / folder).rglob("*.py"))
    assert told
    for message in told:
        assert message in said, message


@pytest.mark.slow
async def test_every_command_shown_does_what_it_is_shown_for(two: Regions) -> None:
    await two.until(["why", "alpine:3"], "is served from the store")
    for block in shown("sh")[1:]:
        for words in commands(block):
            own = [{"us-east": "eu", "library/alpine:3.20": "alpine:3"}.get(word, word) for word in words]
            own = own[: own.index("--config")] if "--config" in own else own
            done = await two.entrepot(*own)
            assert done.returncode == 0 or own == ["doctor"], (own, done.stdout, done.stderr)
            assert "Traceback" not in done.stderr
    assert "current" in await two.until(["sync", "status"], "current")
