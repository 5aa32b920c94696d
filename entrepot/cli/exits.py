"""How a command ends: the exit codes of the contract, and the error that carries one."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
IN_PART = 3


class CommandFailed(Exception):
    """The command cannot do what was asked. The message says what happened and what to do next."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
