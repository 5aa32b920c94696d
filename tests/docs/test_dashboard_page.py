"""What docs/dashboard.md shows is asked as it is written, of a mirror that has been pulled through."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession

from entrepot.live import Live, Totals
from metrics.history import HistoryView, Point
from metrics.pulls.model import PullDetail, PullSummary, PullsView
from proxy.oci.digest import Digest
from tests.docs.test_documents import ROOT, blocks
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror
from tests.support.processes import run

PAGE = ROOT / "docs/dashboard.md"
TOKEN = "of the page's reader"
DOCUMENTS = {"live": Live, "history": HistoryView, "pulls": PullsView, "pulls/": PullDetail}


def table(heading: str) -> set[str]:
    """Return the members that the first column of a table names."""
    _, _, rest = PAGE.read_text().partition(f"| {heading} |")
    rows = [line.split("|")[1] for line in rest.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_member_of_the_documents_is_explained_and_no_other() -> None:
    assert table("member") == set(Live.__struct_fields__)
    assert table("member of a point") == set(Point.__struct_fields__)
    assert table("member of a pull") == set(PullSummary.__struct_fields__)
    for name in (*Totals.__struct_fields__, *PullsView.__struct_fields__):
        assert f"`{name}`" in PAGE.read_text(), name


def commands() -> list[str]:
    return [line for kind, text in blocks(PAGE) if kind == "sh" for line in text.splitlines()]


async def pull(mirror: Mirror, layer: bytes) -> None:
    """Pull alpine:3 as a client does, and wait until the mirror tells of the pull."""
    image = make_image([layer])
    async with ClientSession(headers={"User-Agent": "containers/5.0"}) as client, asyncio.timeout(30):
        async with client.get(f"{mirror.url}/v2/library/alpine/manifests/3") as answer:
            assert await answer.read() == image.body
        for digest in map(Digest.of, image.blobs):
            async with client.get(f"{mirror.url}/v2/library/alpine/blobs/{digest}") as answer:
                assert answer.status == 200
                await answer.read()
        async with client.get(f"{mirror.admin}/api/live") as answer:
            while not msgspec.json.decode(await answer.content.readline(), type=Live).pulls.recent:
                pass


@pytest.mark.needs("curl", "jq")
async def test_every_document_is_had_as_it_is_shown(tmp_path: Path) -> None:
    layer = blob(70 * 1024, seed=1)
    async with FakeUpstream() as upstream:
        make_image([layer]).publish(upstream, "library/alpine", "3")
        config = f'admin_token = "{TOKEN}"'
        with Mirror(tmp_path / "mirror", {"docker.io": upstream.url}, config=config) as mirror:
            await pull(mirror, layer)
            assert {document_of(command) for command in commands()} == set(DOCUMENTS)
            await asyncio.gather(*(is_had(mirror, command) for command in commands()))
            mirror.program.wait_line(f"dashboard={mirror.admin}/dashboard/")


def document_of(command: str) -> str:
    found = re.search(r"/api/(live|history|pulls/?)", command)
    assert found is not None, command
    return found[1]


async def is_had(mirror: Mirror, command: str) -> None:
    """Run a command of the page and see that it gives the document that it is there for."""
    own = command.replace("http://127.0.0.1:5001", mirror.admin)
    said = await asyncio.to_thread(run, ["sh", "-c", own], env={"ADMIN_TOKEN": TOKEN})
    msgspec.json.decode(said.stdout, type=DOCUMENTS[document_of(command)])
