"""Print tables for people, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from bench.figures import Spread, Table, Verdict, spread


def machine() -> str:
    """Describe the machine without naming it, and how busy it was just now."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    kernel = platform.release().partition("-")[0]
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {kernel}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f} before the run, everything over loopback"
    )


def show(console: Console, tables: Sequence[Table]) -> None:
    for table in tables:
        console.print(_grid(table))
        for server, reason in table.absent.items():
            console.print(f"  {escape(server)}: not measured: {escape(reason)}", style="red")
        console.print()
    verdicts = Grid(title="Floors", title_justify="left")
    for title in ("promise", "value", "verdict"):
        verdicts.add_column(title)
    for table in tables:
        for verdict in table.verdicts():
            value = "–" if verdict.value is None else f"{verdict.value:.2f}"
            verdicts.add_row(f"{verdict.promise} ({table.name})", value, _word(verdict))
    console.print(verdicts)


def _grid(table: Table) -> Grid:
    rounds = max(map(len, table.samples.values()), default=0)
    grid = Grid(title=f"{table.title}; median (least–greatest) of {rounds}", title_justify="left")
    grid.add_column("server")
    for column in table.columns:
        grid.add_column(column.title, justify="right")
    grid.add_column(f"× {table.baseline}", justify="right")
    for server in table.samples:
        cells = [_cell(spread(table.figures(server, column.key)), column.decimals) for column in table.columns]
        ratio = table.ratio(server, table.main, table.baseline)
        grid.add_row(server, *cells, "–" if ratio is None else _cell(ratio, 3))
    return grid


def _cell(figure: Spread, decimals: int) -> str:
    return f"{figure.median:.{decimals}f} ({figure.least:.{decimals}f}–{figure.greatest:.{decimals}f})"


def _word(verdict: Verdict) -> str:
    if verdict.met is None:
        return "[yellow]not measured[/]"
    return "[green]met[/]" if verdict.met else "[red]MISSED[/]"


def write(file: Path, where: str, others: float, tables: Sequence[Table]) -> None:
    """Write every sample, ratio and verdict; `where` describes the machine, `others` is the cores that others used."""
    file.write_text(
        json.dumps({"machine": where, "others": others, "tables": [_plain(table) for table in tables]}, indent=2) + "\n"
    )


def _plain(table: Table) -> dict[str, Any]:
    ratios = {server: table.ratio(server, table.main, table.baseline) for server in table.samples}
    return {
        "name": table.name,
        "title": table.title,
        "main": table.main,
        "baseline": table.baseline,
        "samples": table.samples,
        "ratios": {server: vars(ratio) if ratio else None for server, ratio in ratios.items()},
        "floors": [vars(verdict) for verdict in table.verdicts()],
        "absent": table.absent,
    }
