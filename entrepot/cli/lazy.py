"""A click group that imports a command when it is asked for, so that every command starts quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

import click


class LazyGroup(click.Group):
    """A group of commands given as `name -> "module:attribute"`, listed in that order."""

    def __init__(self, name: str, commands: Mapping[str, str], **attributes: object) -> None:
        super().__init__(name, **attributes)  # type: ignore[arg-type]
        self._modules = dict(commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._modules.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@contextmanager
def importing() -> Iterator[None]:
    """Import much: nothing of it is garbage, so that none is looked for, here or at the end. That saves a fifth."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
