"""A site under test whose upstream is fake: exports in this process, and what the volumes hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrepot.config import load
from entrepot.exportasking import ExportEvent, ExportReport, ExportRequest, Note
from entrepot.exporting import export
from proxy.oci.digest import Digest
from proxy.store.layout import Layout
from sync.bundle.layout import BlobPart
from sync.bundle.plan import Plan
from sync.bundle.volume import Volume
from sync.bundle.writing import STEP
from tests.support.fake_upstream import FakeUpstream


@dataclass
class Home:
    """A data folder and where its images come from; `notes` are what exports said."""

    folder: Path
    upstream: FakeUpstream
    notes: list[str] = field(default_factory=list)
    offline: bool = False
    name: str = "home"

    async def export(
        self,
        *references: str,
        name: str = "site.tar",
        step: int = STEP,
        told: Callable[[ExportEvent], None] = lambda event: None,
        **asked: Any,
    ) -> ExportReport:
        flags: dict[str, object] = {
            "data": str(self.folder / "data"),
            "upstream": (f"docker.io={self.upstream.url}",),
            "region": self.name,
            "offline": self.offline or None,
        }
        config = load(None, {}, flags)

        def report(event: ExportEvent) -> None:
            if isinstance(event, Note):
                self.notes.append(event.text)
            told(event)

        request = ExportRequest(output=self.folder / name, references=references, **asked)
        return await export(config, request, report, step=step)

    def file(self, digest: Digest | str) -> Path:
        return Layout(self.folder / "data").blob(Digest(str(digest)))

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "data")


def plan_of(path: Path) -> Plan:
    volume = Volume.open(path)
    volume.close()
    return volume.sealed.plan


def checked(path: Path) -> Volume:
    """Return a volume, closed, of which every byte was compared with its plan."""
    volume = Volume.open(path)
    try:
        for entry in volume.walk():
            volume.check_frame(entry)
            if isinstance(entry.part, BlobPart):
                volume.check_blob(entry)
            else:
                volume.check_small(entry)
        volume.check_end()
    finally:
        volume.close()
    return volume


def tags(plan: Plan) -> dict[str, str]:
    return {
        f"{plan.repositories[image.repository]}:{image.tag.name}": image.digest for image in plan.images if image.tag
    }
