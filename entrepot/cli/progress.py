"""Progress of long work: bars on a terminal, plain lines elsewhere, nothing where machines read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from entrepot.cli.output import Output

LINE_SECONDS = 5.0


class Meter(Protocol):
    """Shows how far one piece of work is."""

    def at(self, done: int, total: int, text: str) -> None:
        """Tell how much of `total` is done by now, in whatever unit, and the same in words."""
        ...

    def say(self, text: str) -> None:
        """Put a line above what is shown."""
        ...


class _Silent:
    def at(self, done: int, total: int, text: str) -> None:
        return None

    def say(self, text: str) -> None:
        return None


class _Lines:
    """At most one line in `LINE_SECONDS`, on standard error."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def at(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS:
            self._shown = now
            self.say(text)

    def say(self, text: str) -> None:
        click.echo(text, err=True)


@contextmanager
def meter(output: Output, title: str) -> Iterator[Meter]:
    """Show progress under `title` for as long as the context lasts."""
    if output.form == "json":
        yield _Silent()
    elif output.shows_progress():
        with _bar(title) as bar:
            yield bar
    else:
        yield _Lines()


@contextmanager
def _bar(title: str) -> Iterator[Meter]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)

        class Bar:
            def at(self, done: int, total: int, text: str) -> None:
                progress.update(task, completed=done, total=total or None, description=text)

            def say(self, text: str) -> None:
                progress.console.print(text, markup=False, highlight=False)

        yield Bar()
