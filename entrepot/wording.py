"""How things read to people: moments, volumes, and what the system refused, without Python's error numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime


def words_of(error: BaseException) -> str:
    """Return what happened, as `FILE: reason` where a file is concerned."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if isinstance(error.filename, str | bytes):
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return error.strerror


def volumes_of(numbers: Sequence[int]) -> str:
    """Return `volume 2` or `volumes 2, 3`."""
    return f"volume{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def format_time(moment: float) -> str:
    """Return a moment, in seconds since the epoch, as `2026-01-31 12:00:00Z`."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
