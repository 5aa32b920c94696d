"""What docs/air-gap.md shows is done as it is written: its site's configuration, and every command of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from entrepot.bundles import ListedBundle, ListedImage
from entrepot.cli import main
from entrepot.exportasking import ExportReport, VolumeReport
from entrepot.holdings import GivenUp, HeldBase, InventoryReport, Released
from entrepot.importing import Imported, ImportReport, TagOutcome
from entrepot.views import BaseView
from sync.bundle.checking import Checked, CheckedBundle, Fault
from sync.bundle.choosing import Lacking
from sync.bundle.comparing import Amount, Difference, Moved
from sync.bundle.waiting import Waiting
from tests.docs.test_documents import ROOT, blocks
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.hosting import Hosting
from tests.support.processes import Program, free_port, run

PAGE = ROOT / "docs/air-gap.md"
IMAGES = {"library/alpine": "3.20", "our-team/service": "1.4", "library/busybox": "1"}
AT_HOME = ("key", "export")
"""The commands that are given where the network is; the others are the site's."""


def shown(language: str) -> list[str]:
    return [text for kind, text in blocks(PAGE) if kind == language]


def commands() -> list[list[str]]:
    """Return what the page runs, one command after the other, without its comments."""
    lines = "".join(shown("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@dataclass
class Page:
    """Both places on one machine, in `folder`: what stands for /media/disk and /etc/entrepot lies there, too."""

    folder: Path
    spoken: str = ""

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def config(self, words: list[str]) -> Path:
        return self.folder / ("home.toml" if words[0] in AT_HOME else "site.toml")

    def own(self, words: list[str]) -> list[str]:
        """Return a command as it is given here."""
        told = {"4GiB": "50KiB", "2367 5873 7275": self.spoken}
        return [told.get(word, word).replace("/media/disk", "disk").replace("/etc/entrepot", "etc") for word in words]

    def run(self, words: list[str]) -> Result:
        """Run a command of the page; the digits that an import ends with are those that are said from then on."""
        own = [*self.own(words), "--config", str(self.config(words))]
        result = CliRunner().invoke(main, own, catch_exceptions=False)
        if digits := re.search(r"receipt: (\d{4} \d{4} \d{4})\n", result.stdout):
            self.spoken = digits[1]
        assert "Traceback" not in result.stderr
        return result

    def done(self, words: list[str]) -> str:
        """Run a command of the page, which must succeed, and return what it says."""
        result = self.run(words)
        assert result.exit_code == 0, (words, result.stdout, result.stderr)
        return result.stdout


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with Hosting() as hosting:
        upstream = FakeUpstream()
        hosting.call(upstream.__aenter__())
        for number, (repository, tag) in enumerate(IMAGES.items()):
            make_image([blob(40_000, seed=number)]).publish(upstream, repository, tag)
        yield upstream.url
        hosting.call(upstream.__aexit__())


@pytest.fixture
def page(tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page's site, with a home whose upstreams are both the same registry; the list has all images."""
    (site,) = shown("toml")
    both = "".join(f'[[upstream]]\nname = "{name}"\nurl = "{upstream}"\n' for name in ("docker.io", "ghcr.io"))
    (tmp_path / "home.toml").write_text(f'data = "{tmp_path}/home"\n{both}')
    (tmp_path / "site.toml").write_text(
        f'data = "{tmp_path}/site"\n' + site.replace("/etc/entrepot", f"{tmp_path}/etc")
    )
    (tmp_path / "images.txt").write_text("alpine:3.20  # the base\n\nghcr.io/our-team/service:1.4\nbusybox:1\n")
    for name in ("disk", "etc"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return Page(tmp_path)


def test_every_command_shown_does_what_it_is_shown_for(page: Page) -> None:
    said: dict[str, list[str]] = {}
    imports = 0
    for program, *words in commands():
        if program != "entrepot" or words[0] == "serve":
            continue
        if words[0] == "import" and (imports := imports + 1) == 2:
            volumes = one_after_the_other(page, words)
            continue
        if "--recut" in words:
            lost = volumes[1].read_bytes()
            volumes[1].unlink()
        said.setdefault(" ".join(words[:2] if words[0] == "bundle" else words[:1]), []).append(page.done(words))
        if "--recut" in words:
            assert volumes[1].read_bytes() == lost
    assert imports == 2
    first, thin, third, *_ = said["export"]
    assert first.startswith("local: 2 images, ")
    assert "blobs must be there already" in thin
    assert "blobs must be there already" in third
    assert said["import"][0].startswith("local of local (2 images, signed by headquarters): imported; ")
    assert "which ship has" in said["bundle list"][0]
    assert said["bundle diff"][0].splitlines()[2] == "new    docker.io/library/busybox:1"
    assert [word for word in ("wrong", "missing") if word in said["bundle verify"][0]] == []
    run(["sha256sum", "-c", "site.sha256"])


def one_after_the_other(page: Page, words: list[str]) -> list[Path]:
    """Bring the volumes of site.tar to the site by the same disk, the last one first."""
    volumes = sorted(page.folder.glob("site.0*.tar"))
    before = page.folder / "before"
    page.disk.rename(before)
    for volume in reversed(volumes):
        page.disk.mkdir()
        shutil.copy(volume, page.disk)
        result = page.run(words)
        if volume != volumes[0]:
            assert result.exit_code == 3
            assert "still to come: 1" in result.stdout
        shutil.rmtree(page.disk)
    assert (result.exit_code, "imported" in result.stdout) == (0, True)
    before.rename(page.disk)
    return volumes


@pytest.mark.slow
def test_every_server_shown_gives_what_the_bundle_brought(page: Page) -> None:
    ours = [words for program, *words in commands() if program == "entrepot"]
    for words in [words for words in ours if words[0] != "serve"][:3]:
        page.done(words)
    servers = [words for words in ours if words[0] == "serve"]
    assert len(servers) == 2
    for number, words in enumerate(servers):
        port = free_port()
        listen = ["--listen", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{free_port()}"]
        argv = [sys.executable, "-m", "entrepot", *page.own(words), *listen, "--config", str(page.config(words))]
        with Program(argv, page.folder / f"{number}.log", {"PYTHONPATH": os.fspath(ROOT)}) as program:
            program.wait_line("serving")
            url = f"http://127.0.0.1:{port}/v2/library/alpine/manifests/3.20"
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200


def test_every_field_for_programs_is_told_and_is_one() -> None:
    _, _, table = PAGE.read_text().partition("| command | fields |")
    told = {
        row.split("|")[1].strip(" `"): set(re.findall(r"`(\w+)`", row.split("|")[2])) for row in table.splitlines()[2:]
    }
    others = {"new", "moved", "same", "kept", "bundles", "bases", "imports"}
    structs: dict[str, tuple[type[msgspec.Struct], ...]] = {
        "export": (ExportReport, VolumeReport, Lacking),
        "import": (ImportReport, Imported, TagOutcome),
        "inventory": (InventoryReport,),
        "bundle list": (ListedBundle, ListedImage),
        "bundle verify": (Checked, CheckedBundle, Fault),
        "bundle diff": (Difference, Moved, Amount),
        "bundle release": (HeldBase, Released, GivenUp),
        "status": (BaseView, Waiting),
    }
    for command, made in structs.items():
        fields = {name for one in made for name in one.__struct_fields__}
        assert told[command] - others == fields - others, command


def test_every_message_shown_is_one() -> None:
    _, _, table = PAGE.read_text().partition("| message |")
    told = re.findall(r"^\| `([^`]+)`", table.partition("\n## ")[0], re.MULTILINE)
    folders = (ROOT / "sync/bundle", ROOT / "entrepot")
    source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    said = re.sub(r'"\s*f?"', "", source)
    assert len(told) > 8
    for message in told:
        for part in re.split(r"…|volume 2 \(site\.002\.tar\):", message):
            assert part.strip() in said, message
