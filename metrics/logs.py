"""Logs: JSON lines or console text, one line per client request, secrets redacted, never in the loop's way.

The standard library's loggers (`logging.getLogger(__name__)`) and the structlog logger `Logs.logger` end in
the same lines. `metrics.redaction` says what is hidden, `metrics.sink` writes. Which level and format are
wanted is the configuration's business.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, Self

import structlog
from structlog.dev import ConsoleRenderer
from structlog.typing import FilteringBoundLogger

from metrics.events import RequestFinished, UpstreamRequest
from metrics.redaction import has_token, redact, redact_text
from metrics.sink import LineSink

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

_NUMBERS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_RECORD_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_encode = json.JSONEncoder(separators=(",", ":")).encode
# Words of a request that are the same escaped or not: what the grammar of names allows, and addresses.
_PLAIN = re.compile(r"[A-Za-z0-9._/:,-]*")
# RFC 9110 §10.1.5 without comments: nothing in it is to be escaped.
_PRODUCT = re.compile(r"[A-Za-z0-9._+-]{1,32}/[A-Za-z0-9._+-]{1,32}")
_MAX_AGENT = 64
_Queued = bytes | tuple[float, RequestFinished]


class Logs:
    """The log of this process while it is entered; it takes over the root logger and gives it back.

    `descriptor` is where lines go, standard error unless told. `dropped` counts lines lost to a slow reader.
    `worker` numbers the lines of a process that is one of several. Console lines have colours on a terminal, unless
    the environment has NO_COLOR.
    """

    def __init__(
        self, *, level: Level = "info", style: Format = "json", descriptor: int = 2, worker: int | None = None
    ) -> None:
        self._worker = worker
        self._threshold = _NUMBERS[level]
        self._coloured = style == "console" and _shows_colours(descriptor)
        self._console = ConsoleRenderer(colors=self._coloured, sort_keys=False) if style == "console" else None
        self._sink: LineSink[_Queued] = LineSink(descriptor, self._line, self._dropped_line)
        self._handler = _Handler(self)
        self._replaced: tuple[list[logging.Handler], int] = ([], logging.WARNING)
        self.logger: FilteringBoundLogger = structlog.wrap_logger(
            _SinkLogger(self._sink),
            processors=[self._filter, structlog.processors.format_exc_info, self._rendered],
            wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        )

    @property
    def dropped(self) -> int:
        return self._sink.dropped

    def set_level(self, level: Level) -> None:
        """Change what is shown from now on."""
        self._threshold = _NUMBERS[level]
        logging.getLogger().setLevel(self._threshold)

    def log_request(self, event: RequestFinished) -> None:
        """Write the line of one client request: a warning when the answer was a 5xx, else info."""
        if self._threshold <= (logging.WARNING if event.status >= 500 else logging.INFO):
            self._sink.put((time.time(), event))

    def log_upstream(self, event: UpstreamRequest) -> None:
        """Write the line of one question to an upstream, which is of interest while something is looked for."""
        if self._threshold <= logging.DEBUG:
            self.logger.debug(
                "upstream request",
                upstream=event.upstream,
                method=event.method,
                kind=event.kind,
                status=event.status,
                seconds=round(event.seconds, 6),
            )

    def __enter__(self) -> Self:
        self._sink.start()
        root = logging.getLogger()
        self._replaced = (root.handlers[:], root.level)
        root.handlers[:] = [self._handler]
        root.setLevel(self._threshold)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        root.handlers[:], level = self._replaced
        root.setLevel(level)
        self._sink.close()

    def log_record(self, record: logging.LogRecord) -> None:
        """Write the line of a record of the standard library."""
        self._sink.put(self._render(record.created, _level_name(record.levelno), _record_context(record)))

    def _filter(self, logger: object, method: str, context: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if _NUMBERS.get(method, logging.ERROR) < self._threshold:
            raise structlog.DropEvent
        return context

    def _rendered(self, logger: object, method: str, context: MutableMapping[str, Any]) -> bytes:
        return self._render(time.time(), method if method in _NUMBERS else "error", context)

    def _line(self, item: _Queued) -> bytes:
        if isinstance(item, bytes):
            return item
        moment, event = item
        level = "warning" if event.status >= 500 else "info"
        words = (
            f"{event.method},{event.kind},{event.upstream}/{event.repository},{event.reference},{event.digest},"
            f"{event.client}"
        )
        if self._coloured or _PLAIN.fullmatch(words) is None or has_token(words):
            return self._render(moment, level, _request_context(event))
        return (_plain_json if self._console is None else _plain_console)(_stamp(moment), level, event, self._worker)

    def _dropped_line(self, count: int) -> bytes:
        return self._render(
            time.time(), "warning", {"event": "log lines dropped: more than could be written", "lines": count}
        )

    def _render(self, moment: float, level: str, context: Mapping[str, Any]) -> bytes:
        line = {"timestamp": _stamp(moment), "level": level, **redact(dict(context))}
        if self._worker is not None:
            line["worker"] = self._worker
        if self._console is not None:
            return (self._console(None, level, line) + "\n").encode()
        return (_encode(line) + "\n").encode()


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _shows_colours(descriptor: int) -> bool:
    """Tell whether a terminal reads `descriptor` that wants colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.isatty(descriptor)


def _products(agent: str) -> str:
    """Return the `name/version` words that a User-Agent begins with, at most `_MAX_AGENT` characters of them."""
    return _known_products(agent[: _MAX_AGENT + 1]) if agent else ""


@lru_cache(maxsize=256)
def _known_products(agent: str) -> str:
    shown = ""
    for word in agent.split(" "):
        longer = f"{shown} {word}".lstrip()
        if len(longer) > _MAX_AGENT or _PRODUCT.fullmatch(word) is None:
            break
        shown = longer
    return redact_text(shown)


def _plain_json(stamp: str, level: str, event: RequestFinished, worker: int | None) -> bytes:
    """What rendering `_request_context` gives, for words that need neither escapes nor redaction, in a tenth of it."""
    image = f"{event.upstream}/{event.repository}" if event.repository else ""
    digest = f',"digest":"{event.digest}"' if event.digest and event.digest != event.reference else ""
    waited = f',"upstream_seconds":{round(event.upstream_wait, 6)}' if event.upstream_wait > 0 else ""
    agent = f',"agent":"{products}"' if (products := _products(event.agent)) else ""
    last = "" if worker is None else f',"worker":{worker}'
    return (
        f'{{"timestamp":"{stamp}","level":"{level}","event":"request","request_id":"{event.request_id}",'
        f'"method":"{event.method}","kind":"{event.kind}","image":"{image}","reference":"{event.reference}"{digest},'
        f'"outcome":"{event.outcome}","status":{event.status},"bytes":{event.sent},'
        f'"seconds":{round(event.duration, 6)},"first_byte":{round(event.first_byte, 6)}{waited},'
        f'"client":"{event.client}"{agent}{last}}}\n'
    ).encode()


def _plain_console(stamp: str, level: str, event: RequestFinished, worker: int | None) -> bytes:
    image = f"{event.upstream}/{event.repository}" if event.repository else ""
    digest = f" digest={event.digest}" if event.digest and event.digest != event.reference else ""
    waited = f" upstream_seconds={round(event.upstream_wait, 6)}" if event.upstream_wait > 0 else ""
    products = _products(event.agent)
    agent = f" agent={products!r}" if " " in products else f" agent={products}" if products else ""
    last = "" if worker is None else f" worker={worker}"
    return (
        f"{stamp} [{level:<9}] {'request':<30} request_id={event.request_id} method={event.method} kind={event.kind} "
        f"image={image} reference={event.reference}{digest} outcome={event.outcome} status={event.status} "
        f"bytes={event.sent} seconds={round(event.duration, 6)} first_byte={round(event.first_byte, 6)}{waited} "
        f"client={event.client}{agent}{last}\n"
    ).encode()


def _request_context(event: RequestFinished) -> dict[str, object]:
    context: dict[str, object] = {
        "event": "request",
        "request_id": event.request_id,
        "method": event.method,
        "kind": event.kind,
        "image": f"{event.upstream}/{event.repository}" if event.repository else "",
        "reference": event.reference,
    }
    if event.digest and event.digest != event.reference:
        context["digest"] = event.digest
    context |= {
        "outcome": event.outcome,
        "status": event.status,
        "bytes": event.sent,
        "seconds": round(event.duration, 6),
        "first_byte": round(event.first_byte, 6),
    }
    if event.upstream_wait > 0:
        context["upstream_seconds"] = round(event.upstream_wait, 6)
    context["client"] = event.client
    if products := _products(event.agent):
        context["agent"] = products
    return context


class _SinkLogger:
    """What structlog calls with a finished line."""

    def __init__(self, sink: LineSink[_Queued]) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink.put(line)

    debug = info = warning = error = critical = exception = msg


class _Handler(logging.Handler):
    """The standard library's records, as lines of `Logs`."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        self._logs.log_record(record)


def _level_name(number: int) -> str:
    return max((name for name, least in _NUMBERS.items() if least <= number), key=_NUMBERS.__getitem__, default="debug")


def _record_context(record: logging.LogRecord) -> dict[str, Any]:
    context: dict[str, Any] = {"event": _message(record), "logger": record.name}
    context.update((key, value) for key, value in vars(record).items() if key not in _RECORD_OWN)
    if record.exc_info:
        context["exception"] = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        context["stack"] = record.stack_info
    return context


def _message(record: logging.LogRecord) -> str:
    # logging's own answer to a bad format prints the arguments to standard error, secrets and all.
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg} (arguments that do not fit the message)"
