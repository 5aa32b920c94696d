"""What is found in bundles, as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from entrepot.bundles import ListedBundle, ListedImage
from entrepot.cli.output import counted, format_size
from entrepot.wording import format_time, volumes_of
from sync.bundle.checking import Checked, CheckedBundle
from sync.bundle.comparing import Amount, Difference
from sync.bundle.plan import Base
from sync.bundle.waiting import Waiting


def of_list(bundle: ListedBundle) -> Iterator[str]:
    """Give what a bundle is, then a line for each image."""
    yield f"bundle {bundle.series}, made by region {bundle.region}, of {format_time(bundle.created)}"
    yield f"  plan      {bundle.plan}, spoken {bundle.spoken}"
    yield f"  signature {_signature(bundle)}"
    volumes = ", ".join(bundle.present.values())
    yield f"  volumes   {len(bundle.present)} of {bundle.volumes}: {volumes}"
    if bundle.missing:
        yield f"  missing   {volumes_of(bundle.missing)}"
    yield f"  brings    {counted(bundle.blobs, 'blob')}, {format_size(bundle.bytes)}{_platforms(bundle)}"
    if bundle.required:
        bases = ", ".join(map(_base, bundle.bases)) or "what is not named"
        yield f"  stands on {bases}: {counted(bundle.required, 'blob')}, {format_size(bundle.required_bytes)}"
    for image in bundle.images:
        yield f"  {_image(image)}"


def _base(base: Base) -> str:
    return base.label if base.kind == "inventory" else f"{base.kind} {base.label}"


def _signature(bundle: ListedBundle) -> str:
    if bundle.refused is not None:
        return f"not trusted here: {bundle.refused}"
    if bundle.key is not None:
        return f"of {bundle.key} ({bundle.signed}), which is trusted here"
    return bundle.note or "none"


def _platforms(bundle: ListedBundle) -> str:
    return f", for {', '.join(bundle.platforms)} only" if bundle.platforms else ""


def _image(image: ListedImage) -> str:
    name = image.reference if "@" in image.reference else f"{image.reference:<40}  {image.digest[:19]}"
    least = "" if image.whole else "at least "
    size = f"{least}{format_size(image.size)}"
    if not image.brought:
        size = "all of it in the base"
    brought = "" if image.brought in (0, image.size) else f", {format_size(image.brought)} of it here"
    subject = f"  refers to {image.subject[:19]}" if image.subject is not None else ""
    return f"{name}  {size}{brought}{subject}"


def of_waiting(one: Waiting) -> str:
    """Return what an import that has not come to its end waits for."""
    waits = f"waits for {volumes_of(one.missing)} of {one.volumes}" if one.missing else "was cut short"
    return f"import of {one.series} from {one.region}, begun {format_time(one.since)}: {waits}"


def of_check(found: Checked) -> Iterator[str]:
    """Give what was checked and how that ended, all faults below."""
    for bundle in found.bundles:
        yield from _checked(bundle)
    for fault in found.faults:
        yield f"wrong: {fault.message}"


def _checked(bundle: CheckedBundle) -> Iterator[str]:
    faults = len(bundle.faults)
    result = "all as it must be" if not faults else f"{faults} wrong"
    volumes = f"{len(bundle.checked)} of {counted(bundle.volumes, 'volume')}"
    size = format_size(bundle.bytes)
    yield f"bundle {bundle.series} of {format_time(bundle.created)}: {volumes}, {size} read, {result}"
    if bundle.key is not None:
        yield f"  signed by {bundle.key}, which is trusted here"
    elif bundle.note is not None:
        yield f"  {bundle.note}"
    if bundle.missing:
        yield f"  missing: {volumes_of(bundle.missing)}"
    for fault in bundle.faults:
        yield f"  wrong: {fault.message}"


def of_difference(found: Difference) -> Iterator[str]:
    """Give the images that differ, then how much is where."""
    yield f"A: {found.a}"
    yield f"B: {found.b}"
    for reference in found.new:
        yield f"new    {reference}"
    for reference in found.gone:
        yield f"gone   {reference}"
    for moved in found.moved:
        yield f"moved  {moved.reference}  {moved.a} → {moved.b}"
    yield f"only in A: {_amount(found.only_a)}; only in B: {_amount(found.only_b)}; in both: {_amount(found.both)}"


def _amount(amount: Amount) -> str:
    blobs = counted(amount.blobs, "blob")
    if amount.unsized == amount.blobs and amount.blobs:
        return f"{blobs} of unknown size"
    unknown = f" and {amount.unsized} of unknown size" if amount.unsized else ""
    return f"{blobs}, {format_size(amount.bytes)}{unknown}"
