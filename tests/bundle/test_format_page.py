"""docs/bundle-format.md says what the code does: its fields, its limits, and its program and commands work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proxy.oci.digest import Digest
from proxy.oci.manifests import MAX_MANIFEST
from proxy.store.exchanged import Past
from sync.bundle import layout
from sync.bundle.keys import PrivateKey, sign
from sync.bundle.opened import open_bundles
from sync.bundle.plan import (
    MAX_BLOB,
    MAX_BLOBS,
    MAX_IMAGES,
    MAX_PLAN,
    MAX_VALUES,
    MAX_VOLUMES,
    Base,
    Blob,
    Cut,
    Document,
    Image,
    Plan,
    Required,
    Slice,
    Tagged,
)
from sync.bundle.volume import MAX_SIGNATURE
from tests.bundle.test_volume import check_whole
from tests.bundle.writing import make_bundle, plan_of
from tests.support.contents import blob, make_image

PAGE = (Path(__file__).parents[2] / "docs/bundle-format.md").read_text()
IMAGES = [("docker.io/library/alpine:3.20", make_image([blob(10)]))]


def section(heading: str) -> str:
    return re.split(r"\n##+ ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1)[0]


def fields_of(heading: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)


def program() -> str:
    return section("A worked example").split("```python\n")[1].split("```")[0]


def shown(command: str) -> str:
    """Return the block of output that follows the mention of a command."""
    return PAGE.split(command, 1)[1].split("```text\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("The plan", Plan),
        ("An image", Image),
        ("A tag", Tagged),
        ("A past", Past),
        ("A blob", Blob),
        ("A required blob", Required),
        ("A base", Base),
        ("A document", Document),
        ("A cut", Cut),
        ("A slice", Slice),
    ],
)
def test_page_names_every_field_of_the_plan_and_no_other(heading: str, struct: type[msgspec.Struct]) -> None:
    told, there = fields_of(heading), list(struct.__struct_fields__)
    assert sorted(told) == sorted(there)
    if struct.__struct_config__.array_like:
        assert told == there


def test_page_names_the_fields_of_the_other_files_in_their_order() -> None:
    sealed = layout.seal(plan_of(IMAGES)[0])
    assert fields_of(layout.VOLUME) == list(json.loads(layout.volume_document(sealed, 1)))
    assert fields_of(layout.SIGNATURE) == list(json.loads(sign(sealed, PrivateKey.new())))


def test_page_tells_the_limits() -> None:
    assert f"| {MAX_BLOBS:,} with `requires` |" in section("The plan")
    assert f"| {MAX_BLOBS:,} with `blobs` |" in section("The plan")
    assert section("The plan").count(f"| {MAX_IMAGES:,} |") == 2
    assert f"| {2 * MAX_VOLUMES:,} |" in section("The plan")
    assert f"more than {MAX_VALUES:,} commas" in section(layout.PLAN)
    assert f"to {MAX_PLAN >> 20} MiB" in section("What a reader checks")
    assert f"at most {MAX_PLAN >> 20} MiB" in section("A document")
    assert f"| {MAX_VOLUMES:,} |" in section("The plan")
    assert f"more than {MAX_PLAN >> 20} MiB" in section(layout.PLAN)
    assert f"2<sup>{MAX_BLOB.bit_length() - 1}</sup>; of a manifest {MAX_MANIFEST >> 20} MiB" in section("A blob")
    assert f"multiple of {layout.PLAN_UNIT} bytes" in section(layout.PLAN)
    assert f"at most {MAX_SIGNATURE} bytes" in section("What a reader checks")


def test_program_of_the_page_writes_a_bundle_that_is_whole(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", "-c", program()], cwd=tmp_path, check=True)
    (bundle,) = open_bundles([tmp_path])
    check_whole(bundle.volumes[1])
    assert bundle.missing == []
    for place, one in enumerate(bundle.plan.blobs):
        (extent,) = bundle.extents(place) or []
        assert Digest.of(extent.file.read(extent.offset, extent.size)) == one.digest
    bundle.close()


def test_output_that_the_page_shows_is_what_its_program_gives(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", "-c", program()], cwd=tmp_path, check=True)
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}

    def run(command: str) -> str:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.rstrip("\n") + "\n"

    assert shown("tar -tvf tiny.tar") == run("tar -tvf tiny.tar")
    offsets = run("tar -xOf tiny.tar entrepot/offsets.json")
    assert json.loads(shown("tar -xOf tiny.tar entrepot/offsets.json")) == json.loads(offsets)
    found = re.search(r"xxd -a -s (\d+) -l 512 tiny\.tar", PAGE)
    assert found is not None
    body = (tmp_path / "tiny.tar").read_bytes()
    assert body[int(found[1]) :].startswith(b"blobs/sha256/")
    lines = re.findall(r"^([0-9a-f]{8}): ((?:[0-9a-f]{4} ?)+) ", shown(found[0]), re.MULTILINE)
    assert len(lines) > 6
    for at, text in lines:
        line = bytes.fromhex(text)
        assert body[int(at, 16) :][: len(line)] == line
    assert run("sha256sum -c tiny.sha256") == "tiny.tar: OK\n"


def test_commands_of_the_page_check_a_signature(tmp_path: Path) -> None:
    key = PrivateKey.new()
    key.public.save(tmp_path / "site.pub")
    make_bundle(tmp_path, IMAGES, key=key)
    commands = section(layout.SIGNATURE).split("```sh\n")[1].split("```")[0]
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["Signature Verified Successfully", key.public.id]
    checked = subprocess.run(
        ["sha256sum", "-c", "site.sha256"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert checked.stdout == "site.tar: OK\n"
