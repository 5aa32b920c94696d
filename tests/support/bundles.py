"""Bundles under test: sites whose data the real commands export from and import into, and what the files hold.

A site is a region without peers (`tests.support.regions`): its commands run on its data folder with its configuration,
whether or not its mirror runs. What tests/bundle/writing.py writes needs no site.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import shutil
import signal
import sqlite3
import tarfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from sys import executable
from typing import Any, Self
from urllib.parse import urlsplit

from proxy.oci.digest import Digest
from sync.bundle.layout import BlobPart
from sync.bundle.opened import open_bundles
from tests.support import images
from tests.support.contents import Image, Registry
from tests.support.processes import Program, ProgramFailed
from tests.support.regions import Region

HALF_SERVABLE = """
    SELECT path || ':' || name FROM tag JOIN repository ON repository.id = tag.repository
    LEFT JOIN blob ON blob.digest = tag.digest
    WHERE tag.digest IS NOT NULL AND (blob.present IS NOT 1 OR blob.missing > 0)
"""
_OWN = ("catalog.sqlite", "run", "backup")
"""What a store keeps for itself, which a refused import may touch."""


class Site(Region):
    """A data folder, its configuration, and the mirror on it where one is started. Without a URL it has no upstream."""

    def __init__(
        self, folder: Path, name: str, upstream_url: str | None = None, *, flags: Sequence[str] = (), more: str = ""
    ) -> None:
        super().__init__(folder, name, upstream_url)
        self.flags = tuple(flags)
        self.more = more
        self.upstream_settings["tag_ttl"] = "0s"
        self.configure()

    def configure(self) -> None:
        """Write the configuration file, for commands too; `more` is added to it."""
        super().configure()
        self.config += f"\n{self.more}"
        (self.folder / "entrepot.toml").write_text(self.config)

    def copy(self, folder: Path) -> Self:
        """Return a site with a copy of this one's data, which nothing may be writing to."""
        other = type(self)(folder, self.name, self.upstream_url, flags=self.flags, more=self.more)
        shutil.copytree(self.data, other.data, ignore=shutil.ignore_patterns("*.sock"))
        return other

    def begin(self, *words: str | Path, wrapped: Sequence[str] = ()) -> Command:
        """Start a command on this site's data, with `--format json`; `wrapped` are the words before it."""
        file = self.folder / "entrepot.toml"
        argv = [*wrapped, executable, "-m", "entrepot", *words, "--config", file, "--data", self.data]
        return Command([*argv, "--format", "json"], self.folder / "command.log", self.env)

    def refused(self, *words: str, code: int = 1) -> str:
        """Run a command that must end with `code`, and return what it says, on one line."""
        done = self.entrepot(*words, codes=(code,))
        return " ".join((done.stdout + done.stderr).split())

    async def runs(self, *words: str) -> None:
        """Run a command that must succeed."""
        await asyncio.to_thread(self.entrepot, *words)

    async def says(self, *words: str, codes: Sequence[int] = (0,)) -> Any:
        """Run a command and return the document that it prints."""
        return await asyncio.to_thread(self.said, *words, codes=codes)

    async def refuses(self, *words: str, code: int = 1) -> str:
        """Run a command that must end with `code`, and return what it says, on one line."""
        return await asyncio.to_thread(self.refused, *words, code=code)

    async def pulls(self, wanted: Mapping[str, str]) -> None:
        """Pull images by tag with all that they name; PATH:TAG must be at its digest. The mirror must run."""
        await asyncio.to_thread(pull_all, self, wanted)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Have the mirror run on the data."""
        await asyncio.to_thread(self.start)
        try:
            yield
        finally:
            if self.running:
                await asyncio.to_thread(self.kill)

    def half_servable(self) -> list[str]:
        """Return the tags that the catalog shows and that are not whole."""
        return [tag for (tag,) in self.read(HALF_SERVABLE)]

    def shown(self) -> dict[str, str]:
        """Return the digest of every tag that is not removed, by PATH:TAG."""
        return {tag: digest for tag, digest in self.tags().items() if digest is not None}

    def leftovers(self) -> list[Path]:
        """Return what an export or import that has ended must not leave: state, spools, slices."""
        found = [path for path in (self.data / "ingest").glob("*") if path.suffix != ".lock"]
        found += (self.data / "bundles" / "imports").glob("*")
        return found + list(self.data.rglob("*.partial"))

    def state(self) -> tuple[dict[str, str], list[str]]:
        """Return all that is stored: the files with their hashes, and the rows of the catalog."""
        files = {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.data.rglob("*")
            if path.is_file() and not str(path.relative_to(self.data)).startswith(_OWN) and path.suffix != ".lock"
        }
        with closing(sqlite3.connect(f"file:{self.data / 'catalog.sqlite'}?mode=ro", uri=True)) as catalog:
            return files, list(catalog.iterdump())


@dataclass(frozen=True)
class Used:
    """How many bytes a command wrote in all, and how many were resident at most."""

    written: int
    resident: int


class Command(Program):
    """A command that runs, and is watched and killed at points of its work."""

    def said(self) -> Any:
        """Wait for its end and return the document that it prints. Raises ProgramFailed where there is none."""
        self.wait()
        text = "".join(self._seen)
        try:
            return json.loads(text[text.index("{") :])
        except ValueError:
            raise self.failed("it printed no document") from None

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end and return its exit code."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise self.failed(f"it does not end within {timeout} s")
            time.sleep(0.01)
        return self.stop()

    def written(self) -> int:
        """Return the bytes that it has handed to write(2) and its kin so far, 0 once it is gone."""
        return self._number("io", "wchar")

    def watched(self) -> Used:
        """Wait for its end, which must be a good one, and return what it had used when it was seen last."""
        written = resident = 0
        while self.running:
            written = max(written, self.written())
            resident = max(resident, self._number("status", "VmHWM") * 1024)
            time.sleep(0.002)
        if self.stop() != 0:
            raise self.failed("it should have ended with 0")
        return Used(written, resident)

    def _number(self, file: str, key: str) -> int:
        try:
            lines = Path(f"/proc/{self.pid}/{file}").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)

    def paused_after(self, written: int) -> bool:
        """Stop it where it is (SIGSTOP) once it has written so many bytes; tell whether it had not ended before."""
        while self.running:
            if self.written() >= written:
                self.signal(signal.SIGSTOP)
                return True
            time.sleep(0.0005)
        return False

    def go_on(self) -> None:
        """Let it go on after a pause."""
        self.signal(signal.SIGCONT)

    def killed_after(self, written: int, seconds: float = 0.0) -> int:
        """Kill it so many seconds after it has written so many bytes; return how many it was, 0 where it had ended."""
        if not self.paused_after(written):
            return 0
        self.go_on()
        time.sleep(seconds)
        if not self.running:
            self.stop()
            return 0
        self.signal(signal.SIGSTOP)
        wrote = self.written()
        self.kill()
        return wrote


def offer(registry: Registry, repository: str, tag: str | None, image: images.Image) -> None:
    """Put a real image into a registry of tests, children first."""
    for blob in image.all_blobs().values():
        assert isinstance(blob.data, bytes)
        registry.add_blob(repository, blob.data)
    for one in image.walk():
        registry.add_manifest(repository, one.body, one.media_type, tag if one is image else None)


def entries(*volumes: Path) -> list[str]:
    """Return the names of all entries of volumes, as tar tells them."""
    names = []
    for volume in volumes:
        with tarfile.open(volume) as tar:
            names += tar.getnames()
    return names


def brought(*volumes: Path) -> set[str]:
    """Return the digests of which volumes hold at least a part."""
    found = set()
    for name in entries(*volumes):
        parts = name.split("/")
        if parts[0] == "blobs":
            found.add(":".join(parts[1:]))
        elif parts[:2] == ["entrepot", "slices"]:
            found.add(f"{parts[2]}:{parts[3].partition('.')[0]}")
    return found


def checked(folder: Path) -> set[str]:
    """Verify every byte of the one bundle in a folder, whose volumes must all be there; return what blobs it brings."""
    (bundle,) = open_bundles([folder])
    try:
        assert not bundle.missing
        for volume in bundle.volumes.values():
            for entry in volume.entries():
                volume.check_frame(entry)
                if isinstance(entry.part, BlobPart):
                    volume.check_blob(entry)
                else:
                    volume.check_small(entry)
            volume.check_end()
        return {blob.digest for blob in bundle.plan.blobs}
    finally:
        bundle.close()


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Turn one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ (1 << bit)]))


def pull_all(site: Site, wanted: Mapping[str, str]) -> None:
    """Pull by tag, from a site's running mirror, images with all that they name; PATH:TAG must be at its digest."""
    address = urlsplit(site.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        for tag, digest in wanted.items():
            repository, _, name = tag.rpartition(":")
            assert f"sha256:{hashlib.sha256(_manifest(connection, repository, name)).hexdigest()}" == digest, tag
            _pull(connection, repository, digest)
    finally:
        connection.close()


def _manifest(connection: http.client.HTTPConnection, repository: str, reference: str) -> bytes:
    return _get(connection, f"/v2/{repository}/manifests/{reference}")


def _pull(connection: http.client.HTTPConnection, repository: str, digest: str) -> None:
    document = json.loads(_manifest(connection, repository, digest))
    for child in document.get("manifests", ()):
        _pull(connection, repository, child["digest"])
    for part in (document["config"], *document["layers"]) if "config" in document else ():
        data = _get(connection, f"/v2/{repository}/blobs/{part['digest']}")
        assert Digest.of(data) == part["digest"]


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path, headers={"Accept": "*/*"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise ProgramFailed(f"{path} was answered {answer.status}: {body[:500]!r}")
    return body


def closure(wanted: Iterable[Image]) -> set[str]:
    """Return the digests of all that images are made of."""
    found: set[str] = set()
    for image in wanted:
        found |= {str(image.digest), *(str(Digest.of(data)) for data in image.blobs)}
        found |= closure(image.children)
    return found
