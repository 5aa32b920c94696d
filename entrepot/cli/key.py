"""`entrepot key new`: the keys that sign bundles."""

from __future__ import annotations

import re
from pathlib import Path

import click

from entrepot.cli.exits import DONE, USAGE, CommandFailed
from entrepot.cli.lazy import LazyGroup
from entrepot.cli.options import bare_command, unread_config_option
from entrepot.cli.output import Output

key = LazyGroup("key", {"new": "entrepot.cli.key:new"}, help="Make the keys that sign bundles.")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.command(short_help="Make a key to sign bundles with.")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to put it.  [default: here]",
)
@unread_config_option
@bare_command
def new(output: Output, name: str, folder: Path) -> int:
    """Make a key to sign bundles with: NAME.key, which stays here, and NAME.pub, for those who check what it signed.

    entrepot export --sign NAME.key signs. Other sites trust it once NAME.pub is in their configuration. Nothing is
    ever overwritten.
    """
    from sync.bundle.errors import BundleError
    from sync.bundle.keys import PrivateKey

    if not _NAME.fullmatch(name):
        accepted = "letters, digits, '.', '_' and '-', the first a letter or digit"
        raise CommandFailed(f"{name!r} can be no name of a key, as files are named so; accepted: {accepted}", USAGE)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    try:
        if public.exists():
            raise BundleError(f"{public} is there already, and no key is overwritten: choose another name")
        made = PrivateKey.new()
        made.save(private)
        try:
            made.public.save(public)
        except BundleError:
            private.unlink()
            raise
    except BundleError as error:
        raise CommandFailed(str(error)) from None
    document = {"name": name, "id": made.public.id, "private": str(private), "public": str(public)}
    output.result(document, "\n".join(_lines(name, made.public.id, private, public)))
    return DONE


def _lines(name: str, identity: str, private: Path, public: Path) -> list[str]:
    return [
        f"key {name}, {identity}",
        f"  {private} signs: keep it to yourself; with it: entrepot export --sign {private}",
        f"  {public} checks: bring it to the sites, over a way that you trust, and there into the configuration:",
        "",
        "[[trusted_key]]",
        f'name = "{name}"',
        f'file = "/etc/entrepot/{public.name}"',
        'repositories = ["*"]',
    ]
