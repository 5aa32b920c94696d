"""What commands print: results for people or for machines on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from typing import Literal

import click
import msgspec

from entrepot.config import ConfigError

Format = Literal["text", "json"]


class Output:
    """Prints in one of two formats. In `json` stdout carries exactly one document."""

    def __init__(self, form: Format) -> None:
        self.form: Format = form

    def result(self, document: object, text: str) -> None:
        """Print `text` for people, or `document` for machines."""
        click.echo(text if self.form == "text" else _json(document))

    def note(self, text: str) -> None:
        """Say something to people beside the result; nothing for machines."""
        if self.form == "text":
            click.echo(text, err=True)

    def failed(self, message: str, problems: ConfigError | None = None) -> None:
        """Print why the command failed."""
        if self.form == "text":
            click.echo(f"entrepot: {message}", err=True)
            return
        document: dict[str, object] = {"error": message}
        if problems is not None:
            document["problems"] = problems.problems
        click.echo(_json(document))

    def shows_progress(self) -> bool:
        """Tell whether somebody watches: text, on a terminal that can write over what it has shown."""
        return self.form == "text" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _json(document: object) -> str:
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode()


def format_size(count: int) -> str:
    """Return a number of bytes for people: `0 B`, `1.5 KiB`, `12.0 GiB`."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} PiB"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number of things for people: `1 tag`, `2 tags`; `many` where the plural is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"
