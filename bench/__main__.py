"""`python -m bench`: run the scenarios, print the tables, judge the floors."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from bench.bundles import SCENARIOS as CARRIED
from bench.clients import ClientFailed
from bench.fleet import SCENARIOS as TOGETHER
from bench.metrics_cost import SCENARIOS as COUNTED
from bench.processes import DidNotStart, busy_seconds
from bench.regions import SCENARIOS as APART
from bench.report import machine, show, write
from bench.scenarios import SCENARIOS as ALONE
from bench.servers import bed
from bench.turns import FULL, QUICK

SCENARIOS = ALONE | TOGETHER | APART | CARRIED | COUNTED


@click.command()
@click.option("--only", type=click.Choice(list(SCENARIOS)), multiple=True, help="Run this scenario; repeatable.")
@click.option("--rounds", type=click.IntRange(1), help="How often each server is measured.  [5, with --quick 2]")
@click.option("--quick", is_flag=True, help="Smaller, shorter, rougher.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples to FILE.")
def main(only: tuple[str, ...], rounds: int | None, quick: bool, file: Path | None) -> None:
    """Measure Entrepot beside nginx and docker-registry; exit 1 when a floor is missed or was not measured."""
    scale = QUICK if quick else FULL
    if rounds:
        scale = replace(scale, rounds=rounds)
    console = Console(width=None if sys.stdout.isatty() else 160)
    progress = Console(stderr=True)
    where = machine()
    console.print(where, highlight=False)
    began, (all_before, own_before) = time.monotonic(), busy_seconds()
    try:
        with bed() as place:
            tables = [
                table
                for name, scenario in SCENARIOS.items()
                if not only or name in only
                for table in scenario(place, scale, lambda text: progress.print(text, style="dim", highlight=False))
            ]
    except (DidNotStart, ClientFailed) as error:
        raise click.ClickException(str(error)) from error
    all_after, own_after = busy_seconds()
    others = (all_after - all_before - own_after + own_before) / (time.monotonic() - began)
    show(console, tables)
    console.print(f"Other programs kept {max(0.0, others):.2f} of the cores busy meanwhile.", highlight=False)
    if file:
        write(file, where, others, tables)
    if not all(verdict.met for table in tables for verdict in table.verdicts()):
        sys.exit(1)


if __name__ == "__main__":
    main()
