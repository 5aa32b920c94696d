"""What docs/logs.md says of the lines is what is written."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from metrics.events import RequestFinished
from metrics.logs import Logs
from metrics.sink import LIMIT

PAGE = (Path(__file__).parents[2] / "docs/logs.md").read_text()
SHOWN = re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)[0]


def test_the_line_shown_is_one_that_is_written() -> None:
    line = json.loads(SHOWN)
    upstream, _, repository = line["image"].partition("/")
    event = RequestFinished(
        kind=line["kind"],
        method=line["method"],
        status=line["status"],
        outcome=line["outcome"],
        upstream=upstream,
        repository=repository,
        reference=line["reference"],
        sent=line["bytes"],
        first_byte=line["first_byte"],
        duration=line["seconds"],
        client=line["client"],
        request_id=line["request_id"],
        digest=line["digest"],
        agent=line["agent"],
        upstream_wait=line["upstream_seconds"],
    )
    moment = datetime.fromisoformat(line["timestamp"]).timestamp()
    assert Logs(worker=line["worker"])._line((moment, event)).decode() == SHOWN + "\n"


def test_each_field_of_a_line_is_explained() -> None:
    section = PAGE.partition("## The line of a request")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(json.loads(SHOWN))


def test_the_bound_of_what_waits_is_told() -> None:
    assert f"Lines wait in memory, {LIMIT} of them in each process" in PAGE
