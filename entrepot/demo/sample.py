"""The bundle of the sample images, which the demo's registry serves. Blocks: for threads.

What is in the images is `images`'s, and how a bundle is written `sync.bundle`'s.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from entrepot.demo.images import CREATED, Manifest, make_samples
from proxy.oci.digest import Digest
from proxy.oci.manifests import parse_manifest
from sync.bundle import layout
from sync.bundle.errors import Interrupted
from sync.bundle.making import Choice, Top, make, manifest_of
from sync.bundle.plan import Tagged
from sync.bundle.writing import Work, write_volume

_MADE = int(datetime.fromisoformat(CREATED).timestamp())


def write_sample(folder: Path, upstream: str, stop: threading.Event) -> Path:
    """Write a bundle of the images of the upstream named so into a folder, and return the one volume that it is.

    Raises Interrupted once `stop` is set, OSError.
    """
    blobs = folder / "blobs"
    blobs.mkdir()

    def path(digest: Digest) -> Path:
        return blobs / digest.hex

    def put(digest: Digest, body: bytes) -> None:
        if stop.is_set():
            raise Interrupted("the demo was ended before its images were made")
        path(digest).write_bytes(body)

    samples = make_samples(put)
    manifests = {
        str(one.digest): manifest_of(parse_manifest(one.body, one.media_type), len(one.body))
        for sample in samples
        for one in _walk(sample.index)
    }
    tops = [
        Top(f"{upstream}/{sample.repository}", str(sample.index.digest), Tagged(sample.tag, 1 << 40, "demo", _MADE))
        for sample in samples
    ]
    draft = make(Choice(series="demo", region="demo", created=_MADE, tops=tops, manifests=manifests))
    sealed = layout.seal(layout.cut(draft.plan, None, 0))
    bundle = folder / "demo.tar"
    work = Work(sealed, None, draft.documents, 1, path, stop=stop)
    write_volume(work, bundle, None, lambda mark: None)
    shutil.rmtree(blobs)
    return bundle


def _walk(manifest: Manifest) -> Iterator[Manifest]:
    yield manifest
    for child in manifest.children:
        yield from _walk(child)
