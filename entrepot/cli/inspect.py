"""`entrepot inspect`: all that is known of one image."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from entrepot.cli.asking import ask
from entrepot.cli.exits import DONE
from entrepot.cli.options import command
from entrepot.cli.output import Output, format_size
from entrepot.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrepot.images import Inspection, Node


@click.command(short_help="Show what an image is made of and what of it is stored.")
@click.argument("reference")
@command("data", "upstream")
def inspect(config: Config, output: Output, reference: str) -> int:
    """Show what REFERENCE is made of, what of it is stored, which tags point to it, and who is proven to have it."""
    from entrepot.asking import Inspect
    from entrepot.images import Inspection

    found = ask(config, Inspect(reference), Inspection)
    output.result(found, "\n".join(_lines(found)))
    return DONE


def _lines(found: Inspection) -> list[str]:
    lines = [
        found.reference,
        f"digest: {found.digest}",
        f"type: {found.media_type or 'a blob, no manifest'}{f' ({found.kind})' if found.kind else ''}",
        f"state: {found.state}, {format_size(found.stored)} of {format_size(found.size)} stored",
        f"pinned: {'yes' if found.pinned else 'no'}",
        f"stored: {_when(found.stored_at)}, last used: {_when(found.last_use)}",
        f"tags: {', '.join(found.tags) or 'none'}",
    ]
    if found.origin is not None:
        lines.append(f"seen as it is by region {found.origin}")
    lines += [f"in {member.repository}: {member.proof}, {_when(member.proved_at)}" for member in found.memberships] or [
        "in no repository for sure: the upstream is asked"
    ]
    lines += _tree(found.children, 0)
    return lines + (["… and more, which is not shown"] if found.cut else [])


def _tree(nodes: Sequence[Node], depth: int) -> list[str]:
    lines: list[str] = []
    for node in nodes:
        about = node.platform or node.role
        state = ("stored" if node.state == "complete" else node.state) if node.role == "manifest" else _here(node)
        lines.append(f"{'  ' * depth}- {about} {node.digest} {format_size(node.size)} {state}")
        lines += _tree(node.children, depth + 1)
    return lines


def _here(node: Node) -> str:
    if node.state == "complete":
        return "stored"
    return "missing" if node.required else "not mirrored, given by its vendor"


def _when(moment: float | None) -> str:
    return "never" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
