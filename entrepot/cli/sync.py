"""`entrepot sync run|once|plan|status|verify|conflicts|pause|resume`: the images of other regions, kept here too.

A running mirror is asked at its control socket; where none runs, the work is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE
from entrepot.cli.lazy import LazyGroup
from entrepot.cli.options import command
from entrepot.cli.output import Output
from entrepot.cli.running import find
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.syncasking import Question

sync = LazyGroup(
    "sync",
    {
        name: f"entrepot.cli.sync:{name}"
        for name in ("run", "once", "plan", "status", "verify", "conflicts", "pause", "resume")
    },
    help="Keep the images of other regions, the [[peer]]s of the configuration, here too. A mirror that serves does so "
    "by itself.",
    short_help="Keep the images of other regions here too.",
)

_PEERS = click.argument("peers", metavar="[PEER]...", nargs=-1)
_KEYS = ("data", "upstream", "region", "redis", "store")


def _command(short_help: str) -> Callable[[Callable[..., int]], click.Command]:
    def decorate(function: Callable[..., int]) -> click.Command:
        name = function.__name__
        return click.command(name, short_help=short_help)(_PEERS(command(*_KEYS)(function)))

    return decorate


@click.command(short_help="Sync in the foreground, without serving.")
@command(*_KEYS)
def run(config: Config, output: Output) -> int:
    """Sync with all peers until SIGTERM or SIGINT, without serving.

    A mirror that serves syncs by itself: beside one, this only says so.
    """
    from entrepot.cli.syncwork import ask, run_alone
    from entrepot.syncasking import Standing, SyncStatus

    if find(config.data) is None:
        return run_alone(config, output)
    standing = ask(config, output, SyncStatus())
    names = [peer.name for peer in standing.peers] if isinstance(standing, Standing) else []
    output.result({"syncs": names}, f"the mirror that serves {config.data} syncs already, with {', '.join(names)}")
    return DONE


@click.option("--force", is_flag=True, help="Remove all that was removed there: now, however much it is.")
def _once(config: Config, output: Output, peers: tuple[str, ...], force: bool) -> int:
    """Bring all that is missing from the peers, or those named, and apply their removals that are due.

    Exit code 3 when an image failed, removals were refused, or a peer could not be asked.
    """
    from entrepot.syncasking import SyncOnce

    return _ask_and_tell(config, output, SyncOnce(peers, force))


_once.__name__ = "once"
once = click.command("once", short_help="Bring all that is missing, then end.")(_PEERS(command(*_KEYS)(_once)))


@_command("Show what would be fetched and removed.")
def plan(config: Config, output: Output, peers: tuple[str, ...]) -> int:
    """Show what a pass would fetch and remove, in its order."""
    from entrepot.syncasking import SyncPlan

    return _ask_and_tell(config, output, SyncPlan(peers))


@_command("Show how the peers stand.")
def status(config: Config, output: Output, peers: tuple[str, ...]) -> int:
    """Show how the peers stand: how far this region is behind, what is held, what failed."""
    from entrepot.syncasking import SyncStatus

    return _ask_and_tell(config, output, SyncStatus(peers))


@_command("Compare this region with its peers.")
def verify(config: Config, output: Output, peers: tuple[str, ...]) -> int:
    """Compare the records of this region with those of its peers, and see that all that was chosen is here.

    Exit code 3 when records differ, an image is missing, or a peer could not be asked.
    """
    from entrepot.syncasking import SyncVerify

    return _ask_and_tell(config, output, SyncVerify(peers))


@click.command(short_help="List the tags that two regions changed at once.")
@command(*_KEYS)
def conflicts(config: Config, output: Output) -> int:
    """List the tags that two regions changed without knowing of each other.

    The newer one counts everywhere. What lost is kept under its digest.
    """
    from entrepot.syncasking import SyncConflicts

    return _ask_and_tell(config, output, SyncConflicts())


@_command("Fetch and remove nothing until resumed.")
def pause(config: Config, output: Output, peers: tuple[str, ...]) -> int:
    """Fetch and remove nothing more for all peers, or those named, until they are resumed.

    Records go on being compared, so that it stays known what is missing. A restart does not end a pause.
    """
    from entrepot.syncasking import SyncPause

    return _ask_and_tell(config, output, SyncPause(peers))


@_command("Go on with what was paused.")
def resume(config: Config, output: Output, peers: tuple[str, ...]) -> int:
    """Go on with all peers, or those named."""
    from entrepot.syncasking import SyncResume

    return _ask_and_tell(config, output, SyncResume(peers))


def _ask_and_tell(config: Config, output: Output, question: Question) -> int:
    from entrepot.cli.synclines import tell
    from entrepot.cli.syncwork import ask

    return tell(output, ask(config, output, question))
