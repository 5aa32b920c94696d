"""What commands ask of the catalog, and the answers, line by line: the same at the control socket and without a mirror.

The work is in `images`, `keeping` and `explaining`; here is only which question goes where.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from entrepot import images, keeping
from entrepot.config import Config
from entrepot.explaining import Running, why
from entrepot.images import ImageLine, Inspection, ListEnd, Pattern
from entrepot.keeping import Pinned, Removed
from entrepot.reasons import Why
from entrepot.regional_facts import gather
from entrepot.wording import words_of
from metrics.events import Emit, ignore
from proxy.oci.digest import Digest
from proxy.oci.errors import BadRequest, RegistryError
from proxy.oci.names import Reference, Repository
from proxy.oci.references import parse_full
from proxy.store.backup import BackupProgress
from proxy.store.disputed import read_origin
from proxy.store.inventory import Inventory
from proxy.store.store import Store
from proxy.store.sweep import free
from sync.reports import PeerReport

_log = logging.getLogger(__name__)


class Ls(msgspec.Struct, frozen=True, tag_field="ask", tag="ls", forbid_unknown_fields=True):
    """Which images are known; `pattern` as `images.Pattern` reads it."""

    pattern: str = "*"


class Inspect(msgspec.Struct, frozen=True, tag_field="ask", tag="inspect", forbid_unknown_fields=True):
    """All about one image."""

    reference: str


class Pin(msgspec.Struct, frozen=True, tag_field="ask", tag="pin", forbid_unknown_fields=True):
    """Keep it from eviction."""

    reference: str


class Unpin(msgspec.Struct, frozen=True, tag_field="ask", tag="unpin", forbid_unknown_fields=True):
    """Let eviction have it again."""

    reference: str


class Rm(msgspec.Struct, frozen=True, tag_field="ask", tag="rm", forbid_unknown_fields=True):
    """Remove a tag or digest, or all that a glob means: that only with `force`."""

    reference: str
    force: bool = False


class AskWhy(msgspec.Struct, frozen=True, tag_field="ask", tag="why", forbid_unknown_fields=True):
    """Why it is, or is not, here and served; a digest may stand alone."""

    reference: str


class BackUp(msgspec.Struct, frozen=True, tag_field="ask", tag="backup", forbid_unknown_fields=True):
    """Copy the catalog to `file`, an absolute path; None: to where recovery looks for it."""

    file: str | None = None


class Copied(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """How much of the catalog is copied, in bytes."""

    done: int
    total: int


class BackedUp(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """Where the copy is, and its size in bytes."""

    file: str
    size: int


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """It could not be done. `usage`: as it was asked in a way that cannot be answered."""

    message: str
    usage: bool = False


Question = Ls | Inspect | Pin | Unpin | Rm | AskWhy | BackUp
Line = ImageLine | ListEnd | Inspection | Pinned | Removed | Why | Copied | BackedUp | Failed


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What questions are answered from: the store, and what a running mirror knows beside it.

    said_missing: what an upstream said, a moment ago, of a reference that it does not have. peers: how other regions
    stand.
    """

    store: Store
    config: Config
    running: Callable[[], Awaitable[Running]] | None = None
    said_missing: Callable[[Repository, Reference], str | None] | None = None
    emit: Emit = ignore
    peers: Callable[[], Sequence[PeerReport]] | None = None


async def answers(question: Question, around: Surroundings) -> AsyncGenerator[Sequence[Line], None]:
    """Give the lines that answer `question`, some at a time; the last is the outcome. Raises nothing foreseeable."""
    try:
        async with aclosing(_answers(question, around)) as pages:
            async for lines in pages:
                yield lines
    except RegistryError as error:
        yield [Failed(error.message, isinstance(error, BadRequest))]
    except OSError as error:
        yield [Failed(words_of(error))]


async def _answers(question: Question, around: Surroundings) -> AsyncGenerator[Sequence[Line], None]:
    catalog = around.store.catalog
    inventory = Inventory(catalog)
    match question:
        case Ls():
            count = 0
            async for page in images.list_images(inventory, _pattern(around.config, question.pattern)):
                count += len(page)
                yield page
            yield [ListEnd(count)]
        case Inspect():
            yield [await _inspect(around, question.reference)]
        case Pin():
            yield [await keeping.pin(catalog, *_reference(around.config, question.reference))]
        case Unpin():
            yield [await keeping.unpin(catalog, *_reference(around.config, question.reference))]
        case Rm():
            yield [await _remove(question, around)]
        case AskWhy():
            yield [await _why(around, question.reference)]
        case BackUp():
            async with aclosing(_back_up(around, question.file)) as lines:
                async for line in lines:
                    yield [line]


async def _inspect(around: Surroundings, text: str) -> Inspection:
    catalog = around.store.catalog
    repository, reference = _reference(around.config, text)
    found = await images.inspect(Inventory(catalog), repository, reference)
    if isinstance(reference, Digest):
        return found
    tag = reference
    origin = await catalog.read(lambda connection: read_origin(connection, repository, tag))
    return found if origin is None or not origin[0] else msgspec.structs.replace(found, origin=origin[0])


async def _why(around: Surroundings, text: str) -> Why:
    catalog = around.store.catalog
    repository, reference = _anything(around.config, text)
    running = await around.running() if around.running else None
    said = around.said_missing(repository, reference) if around.said_missing and repository else None
    inventory, regions = Inventory(catalog), None
    if repository is not None:
        tag = None if isinstance(reference, Digest) else await inventory.tag(repository, reference)
        digest = Digest(tag.digest) if tag is not None and tag.digest is not None else None
        reports = around.peers() if around.peers is not None else ()
        regions = await gather(catalog, around.config, repository, reference, digest, reports)
    return await why(inventory, around.config, repository, reference, catalog.named_in, running, said, regions)


async def _remove(question: Rm, around: Surroundings) -> Removed:
    store = around.store
    if "*" not in question.reference:
        removed = await keeping.remove(store.catalog, *_reference(around.config, question.reference))
    elif question.force:
        removed = await keeping.remove_all(store.catalog, _pattern(around.config, question.reference))
    else:
        raise BadRequest(f"{question.reference} may name many images: look at `entrepot ls` with it, then give --force")
    if removed.unowned:
        await free(store, [Digest(digest) for digest in removed.unowned], around.emit)
    if removed.removed:
        _log.warning("removed by a command", extra={"removed": removed.removed, "disowned": len(removed.disowned)})
    return removed


async def _back_up(around: Surroundings, file: str | None) -> AsyncGenerator[Line, None]:
    target = await asyncio.to_thread(_target, around.config, file)
    # The newest progress, and the end, which must not wait for somebody to take the progress.
    news: asyncio.Queue[BackupProgress | None] = asyncio.Queue(2)

    def report(progress: BackupProgress) -> None:
        if not news.empty():
            news.get_nowait()
        news.put_nowait(progress)

    async def copy() -> BackedUp:
        try:
            made = await around.store.back_up(target, report)
            return BackedUp(str(made.path), made.size)
        finally:
            news.put_nowait(None)

    copying = asyncio.create_task(copy(), name="catalog backup for a command")
    try:
        while (progress := await news.get()) is not None:
            yield Copied(progress.done, progress.total)
        yield await copying
    finally:
        copying.cancel()
        await asyncio.wait([copying])


def _target(config: Config, file: str | None) -> Path | None:
    if file is None:
        return None
    target = Path(file)
    if not target.is_absolute() or target.name in ("", "..") or target.is_dir():
        raise BadRequest(f"{file!r} is no place for a backup: give the path of a file")
    if target.parent.resolve().is_relative_to(config.data.resolve()):
        raise BadRequest(
            f"{file!r} lies in the mirror's own data folder: give a place outside, or none for the usual one"
        )
    return target


def _names(config: Config) -> frozenset[str]:
    return frozenset(upstream.name for upstream in config.upstreams)


def _reference(config: Config, text: str) -> tuple[Repository, Reference]:
    return parse_full(text, _names(config), config.default_upstream)


def _anything(config: Config, text: str) -> tuple[Repository | None, Reference]:
    if text.startswith(("sha256:", "sha512:")):
        return None, Digest.parse(text)
    return _reference(config, text)


def _pattern(config: Config, text: str) -> Pattern:
    return Pattern.parse(text, _names(config), config.default_upstream)
