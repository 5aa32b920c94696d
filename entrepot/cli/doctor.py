"""`entrepot doctor`: look at everything that a mirror needs, and say what is wrong and what to do."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

import click

from entrepot.cli.exits import DONE, IN_PART
from entrepot.cli.options import command
from entrepot.cli.output import Output, counted
from entrepot.config import Config

if TYPE_CHECKING:
    from entrepot.doctor.findings import Finding

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("PROBLEM", "bold red")}


@click.command(short_help="Find what is wrong, and say what to do about it.")
@command("listen", "data", "upstream", "offline", "region", "redis", "advertise", "store")
def doctor(config: Config, output: Output) -> int:
    """Look at the data folder, the machine, the upstreams, the running mirror and the clients of this machine.

    In a fleet also at Redis, the other nodes, how they reach this one, and the bucket; with other regions at each
    [[peer]] and at the tokens of each [[grant]].

    It works with or without a running mirror and takes at most some ten seconds. Exit code 3 when there is a problem;
    warnings alone leave it at 0.
    """
    from entrepot.doctor.examination import examine
    from entrepot.doctor.findings import worst

    # What a node's log would say besides, the findings say here.
    logging.getLogger("proxy").addHandler(logging.NullHandler())
    findings = asyncio.run(examine(config))
    level = worst(findings)
    output.result({"level": level, "findings": findings}, _table(findings))
    return IN_PART if level == "problem" else DONE


def _table(findings: list[Finding]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        word, style = _MARKS[finding.level]
        seen = Text(finding.seen)
        if finding.advice is not None:
            seen.append(f"\n→ {finding.advice}", style="italic")
        table.add_row(Text(word, style=style), Text(finding.check), seen)
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    console = Console(width=max(60, shutil.get_terminal_size((120, 24)).columns), highlight=False)
    with console.capture() as captured:
        console.print(table)
        console.print(
            f"{len(findings)} looked at, {counted(problems, 'problem')}, {counted(warnings, 'warning')}", end=""
        )
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
