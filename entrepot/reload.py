"""SIGHUP: the configuration read again, and what of it holds only after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from entrepot.config import Config, ConfigError, check_files

Load = Callable[[], Config]
FIXED = (
    *("peers", "grants"),
    *("data", "listen", "admin", "workers", "region", "tls", "drain_timeout"),
    *(
        "redis",
        "advertise",
        "neighbours",
        "fleet_secret",
        "fleet_secret_file",
        "store",
        "store_redirect",
        "store_grace",
    ),
)
log = logging.getLogger(__name__)


async def reloaded(old: Config, load: Load) -> Config | None:
    """Return the configuration as it is now, the `FIXED` keys of `old` apart; None, and a log line, if it is faulty."""
    try:
        new = await asyncio.to_thread(load)
        problems = await asyncio.to_thread(check_files, new)
    except ConfigError as error:
        problems = list(error.problems)
    if problems:
        log.error("the new configuration is faulty, the old one stays", extra={"problems": [*map(str, problems)]})
        return None
    return kept(old, new)


def kept(old: Config, new: Config) -> Config:
    """Return `new` with what a running mirror cannot change; say which keys those are."""
    changed = [key for key in FIXED if getattr(old, key) != getattr(new, key)]
    if old.log.format != new.log.format:
        changed.append("log.format")
    if changed:
        log.warning("some keys change only with a restart", extra={"keys": changed})
    log_as_before = msgspec.structs.replace(new.log, format=old.log.format)
    return msgspec.structs.replace(new, log=log_as_before, **{key: getattr(old, key) for key in FIXED})


def changes_level_alone(old: Config, new: Config) -> bool:
    """Tell whether nothing but the level of the log changes: then nothing else is read, opened or replaced."""
    return old != new and old == msgspec.structs.replace(new, log=old.log)
