"""What `entrepot bundle list` and `diff` say: bundles, inventories and receipts as they lie there. Blocking.

Checking a bundle is `sync.bundle.checking`'s; what a site holds, and lets go of, is `holdings`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

import msgspec

from entrepot.descriptors import raise_limit
from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from sync.bundle.comparing import Difference, Side, compare, side_of
from sync.bundle.digestfile import INVENTORY, DigestFile, ReceiptHeader, kind_of
from sync.bundle.errors import BundleError, NotABundle, Untrusted
from sync.bundle.keys import Trust
from sync.bundle.opened import Bundle, open_bundles
from sync.bundle.plan import Base, Plan, reference_of
from sync.bundle.receipts import spoken
from sync.bundle.source import BundleSource

_PARSED = 4096


class ListedImage(msgspec.Struct, frozen=True):
    """An image of a bundle. size: bytes of what it needs, of that `brought` by the bundle.

    whole: all of its manifests could be read, so that the sizes are not only the least. subject: what it refers to.
    """

    reference: str
    digest: str
    size: int
    brought: int
    whole: bool
    subject: str | None


class ListedBundle(msgspec.Struct, frozen=True):
    """A bundle. created: seconds since the epoch. spoken: what its receipt says aloud. bytes: of the blobs it brings.

    signed: the id of the key that did; key: its name where it is trusted here; note: what is to be said of that,
    refused: why it would not be taken over here. present, missing: numbers of its volumes, and the files of those here.
    """

    plan: str
    series: str
    region: str
    created: int
    spoken: str
    signed: str | None
    key: str | None
    note: str | None
    refused: str | None
    volumes: int
    present: dict[int, str]
    missing: tuple[int, ...]
    blobs: int
    bytes: int
    bases: tuple[Base, ...]
    required: int
    required_bytes: int
    platforms: tuple[str, ...]
    images: tuple[ListedImage, ...]


def list_bundles(paths: Sequence[Path], trust: Trust) -> tuple[ListedBundle, ...]:
    """Return the bundles whose volumes are named, or lie in the folders that are. Raises BundleError, OSError."""
    with _opened(paths) as bundles:
        return tuple(_listed(bundle, trust) for bundle in bundles)


def diff(a: Path, b: Path) -> Difference:
    """Compare two bundles, inventories or receipts. Raises BundleError, OSError."""
    with ExitStack() as stack:
        return compare(_side(stack, a), _side(stack, b))


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[Bundle]]:
    raise_limit()
    bundles = open_bundles(paths)
    try:
        yield bundles
    finally:
        for bundle in bundles:
            bundle.close()


def _listed(bundle: Bundle, trust: Trust) -> ListedBundle:
    plan = bundle.plan
    verdict, refused = None, None
    try:
        verdict = trust.judge(bundle.sealed, bundle.signature)
    except Untrusted as error:
        refused = str(error)
    return ListedBundle(
        plan=str(bundle.name),
        series=plan.series,
        region=plan.region,
        created=plan.created,
        spoken=spoken(bundle.name),
        signed=verdict.id if verdict is not None else None,
        key=verdict.key if verdict is not None else None,
        note=verdict.note if verdict is not None else None,
        refused=refused,
        volumes=len(plan.volumes),
        present={number: str(volume.path) for number, volume in sorted(bundle.volumes.items())},
        missing=tuple(bundle.missing),
        blobs=len(plan.blobs),
        bytes=plan.size,
        bases=plan.bases,
        required=len(plan.requires),
        required_bytes=sum(one.size for one in plan.requires),
        platforms=plan.platforms,
        images=tuple(_images(bundle)),
    )


def _images(bundle: Bundle) -> Iterator[ListedImage]:
    plan, source = bundle.plan, BundleSource([bundle])
    required = {one.digest: one.size for one in plan.requires}

    @lru_cache(maxsize=_PARSED)
    def parsed(digest: str) -> ParsedManifest | None:
        return source.parsed(Digest(digest))

    for image in plan.images:
        size, brought, whole = 0, 0, True
        seen, waiting = {image.digest}, [(image.digest, True)]
        while waiting:
            digest, is_manifest = waiting.pop()
            place = bundle.place(digest)
            if place is not None:
                size += plan.blobs[place].size
                brought += plan.blobs[place].size
            elif digest in required:
                size += required[digest]
            else:
                continue  # left out: another platform's, or a layer that its vendor keeps
            manifest = parsed(digest) if is_manifest else None
            whole = whole and (manifest is not None or not is_manifest)
            for child in manifest.children if manifest is not None else ():
                if child.descriptor.digest not in seen:
                    seen.add(str(child.descriptor.digest))
                    waiting.append((str(child.descriptor.digest), child.role == "manifest"))
        yield ListedImage(reference_of(plan, image), image.digest, size, brought, whole, image.subject)


def _side(stack: ExitStack, path: Path) -> Side:
    if path.is_file():
        with path.open("rb") as file:
            kind = kind_of(file.read(len(INVENTORY)))
        if kind is not None:
            digests = DigestFile.open(path)
            stack.callback(digests.close)
            return Side(_label(digests), digests)
    # Closed before the other side is opened: two large plans at once would take too much memory.
    with _told_of(path) as bundles:
        if len(bundles) > 1:
            named = ", ".join(f"{volume.path.name}" for bundle in bundles for volume in bundle.volumes.values())
            raise BundleError(
                f"{path} holds {len(bundles)} bundles, and one is compared: name a volume of it ({named})"
            )
        plan = bundles[0].plan
        return side_of(f"bundle {plan.series} of {_day(plan)}", plan)


@contextmanager
def _told_of(path: Path) -> Iterator[list[Bundle]]:
    try:
        with _opened([path]) as bundles:
            yield bundles
    except NotABundle as error:
        raise NotABundle(f"{error}; it is no inventory and no receipt either") from None


def _label(digests: DigestFile) -> str:
    header = digests.header
    if isinstance(header, ReceiptHeader):
        return f"receipt of {header.site} for {header.series}"
    return f"inventory of {header.region}"


def _day(plan: Plan) -> str:
    from entrepot.wording import format_time

    return format_time(plan.created)
