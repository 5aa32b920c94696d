"""However large what a bundle brings is, exports and imports stay below 150 MiB of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundle.writing import make_bundle
from tests.support.bundles import Site
from tests.support.contents import blob, make_image

MIB = 1 << 20
MEMORY = 150 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_large_blob_is_sent_and_taken_in_in_little_memory(tmp_path: Path) -> None:
    """One layer of 512 MiB; bench/bundles.py measures 2 GiB and more."""
    layer = bytes(512 * MIB)
    (bundle,) = make_bundle(tmp_path, [("docker.io/library/large:1", make_image([layer]))])
    del layer
    site = Site(tmp_path, "site")
    taken = site.begin("import", bundle).watched()
    bundle.unlink()
    sent = site.begin("export", "--offline", "-o", tmp_path / "again.tar", "docker.io/library/large:1").watched()
    print(f"import {taken.resident // MIB} MiB, export {sent.resident // MIB} MiB")
    assert taken.resident < MEMORY
    assert sent.resident < MEMORY


def test_very_many_small_images_are_taken_in_and_sent_in_little_memory(tmp_path: Path) -> None:
    images = [
        (f"docker.io/team/app{number % 500}:{number}", make_image([blob(1024, seed=number), blob(900, seed=-number)]))
        for number in range(8000)
    ]
    (bundle,) = make_bundle(tmp_path, images)
    del images
    site = Site(tmp_path, "site")
    taken = site.begin("import", bundle).watched()
    sent = site.begin("export", "--offline", "-o", tmp_path / "again.tar", "--repository", "**").watched()
    print(f"import {taken.resident // MIB} MiB, export {sent.resident // MIB} MiB")
    assert taken.resident < MEMORY
    assert sent.resident < MEMORY
