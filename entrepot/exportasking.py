"""What is asked of an export, what is told of it meanwhile, and what it came to. Carried out in `exporting`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from entrepot.config import Config
from entrepot.images import Pattern
from entrepot.wording import words_of
from proxy.oci.errors import BadRequest, NotFound
from proxy.oci.names import Reference, Repository
from proxy.oci.platforms import Platform
from proxy.oci.references import parse_full
from sync.bundle.choosing import Lacking
from sync.bundle.errors import BundleError
from sync.bundle.plan import Sealed
from sync.bundle.receipts import spoken

ALL = "all"


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Sizes in bytes; `recut`: numbers of volumes to be written anew, of a bundle that was exported.

    epoch: the time of the bundle in seconds, in place of the newest image's (SOURCE_DATE_EPOCH).
    """

    output: Path
    references: tuple[str, ...] = ()
    file: Path | None = None
    repositories: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    referrers: bool = True
    bases: tuple[str, ...] = ()
    series: str | None = None
    split: int | None = None
    recut: tuple[int, ...] = ()
    key: Path | None = None
    dry_run: bool = False
    epoch: int | None = None


class Note(msgspec.Struct, frozen=True):
    """Something to be said beside the progress."""

    text: str


class Progress(msgspec.Struct, frozen=True):
    """How far a piece of work is, in things or (slices, volume) in bytes; volume 0: none is being written."""

    what: str
    done: int
    total: int
    volume: int = 0


ExportEvent = Note | Progress
Report = Callable[[ExportEvent], None]


class VolumeReport(msgspec.Struct, frozen=True):
    """A volume that was written."""

    file: str
    size: int
    sha256: str


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported, or, `dry_run`, would be. `bytes`: of the blobs that are brought.

    plan: what the bundle is named by, empty where it was not made; spoken: the same in digits. requires: how many blobs
    the base must have. missing: blobs that would be pulled. lacking: what was asked for and could not be had.
    """

    plan: str = ""
    spoken: str = ""
    series: str
    images: int
    blobs: int
    bytes: int
    requires: int
    number_of_volumes: int
    volumes: tuple[VolumeReport, ...] = ()
    signed_by: str | None = None
    missing: int = 0
    missing_bytes: int = 0
    lacking: tuple[Lacking, ...] = ()
    dry_run: bool = False


class WrongRequest(BundleError):
    """The request itself makes no sense."""


def read_references(config: Config, request: ExportRequest) -> list[tuple[Repository, Reference]]:
    """Return the references that are named, in order and once each. Raises WrongRequest, which names line and file."""
    names = frozenset(upstream.name for upstream in config.upstreams)
    written = [(text, text) for text in request.references]
    if request.file is not None:
        try:
            lines = request.file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise WrongRequest(f"the list {request.file} is not text in UTF-8: save it as such") from None
        except OSError as error:
            raise WrongRequest(f"the list {request.file} cannot be read: {words_of(error)}") from None
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if text:
                written.append((f"{request.file}, line {number}: {text}", text))
    found: dict[tuple[Repository, Reference], None] = {}
    for where, text in written:
        try:
            found[parse_full(text, names, config.default_upstream)] = None
        except (BadRequest, NotFound) as error:
            raise WrongRequest(f"{where}: {error.message}") from None
    try:
        for text in request.repositories:
            Pattern.parse(text, names, config.default_upstream)
        for text in request.platforms:
            if text != ALL:
                Platform.parse(text)
    except BadRequest as error:
        raise WrongRequest(error.message) from None
    if request.series is not None and not (0 < len(request.series) <= 255 and request.series.isprintable()):
        raise WrongRequest(f"the series {request.series!r} is no name: give one of up to 255 letters, digits and signs")
    if not request.recut and not found and not request.repositories:
        raise WrongRequest("nothing was named to be exported: give references, -f FILE or --repository GLOB")
    if request.recut and min(request.recut) < 1:
        raise WrongRequest("volumes are counted from 1")
    return list(found)


def epoch_of(environ: Mapping[str, str]) -> int | None:
    """Return SOURCE_DATE_EPOCH. Raises WrongRequest for what is no number of seconds."""
    text = environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not text.isdecimal() or len(text) > 10 or int(text) > 1 << 33:
        raise WrongRequest(f"SOURCE_DATE_EPOCH is {text!r}, which is no number of seconds since 1970")
    return int(text)


def report_of(
    sealed: Sealed, signature: bytes | None, volumes: tuple[VolumeReport, ...], lacking: tuple[Lacking, ...]
) -> ExportReport:
    plan = sealed.plan
    return ExportReport(
        plan=str(sealed.name),
        spoken=spoken(sealed.name),
        series=plan.series,
        images=len(plan.images),
        blobs=len(plan.blobs),
        bytes=plan.size,
        requires=len(plan.requires),
        number_of_volumes=len(plan.volumes),
        volumes=volumes,
        signed_by=None if signature is None else str(msgspec.json.decode(signature).get("key")),
        lacking=lacking,
    )
