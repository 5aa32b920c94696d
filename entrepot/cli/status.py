"""`entrepot status`: what the running mirror says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from entrepot.cli.exits import CommandFailed
from entrepot.cli.options import command
from entrepot.cli.output import Output, counted, format_size
from entrepot.cli.running import find
from entrepot.config import Config
from entrepot.config.values import format_duration

Document = Mapping[str, Any]


@click.command(short_help="Show how the running mirror is.")
@command("data")
def status(config: Config, output: Output) -> int:
    """Show how the running mirror is: upstreams, downloads under way, what is stored."""
    running = find(config.data)
    if running is None:
        raise CommandFailed(f"no mirror is running on {config.data}; start one with: entrepot serve")
    document: Document = msgspec.json.decode(running.get("/api/status"))
    output.result(document, "\n".join(people(document)))
    return 0


def people(document: Document) -> list[str]:
    """Return the document of /api/status (`entrepot.status.Status`) for people."""
    uptime = format_duration(round(document["uptime"]))
    lines = [f"entrepot {document['version']} is {document['state']}, up {uptime}, pid {document['pid']}"]
    lines += [f"  {reason}" for reason in document["reasons"]]
    lines.append(f"listens on {', '.join(document['listen'])}, region {document['region']}")
    if document["offline"]:
        lines.append("offline: no upstream is asked")
    if store := document["store"]:
        lines.append(
            f"stored: {counted(store['blobs'], 'blob')}, {format_size(store['bytes'])}, "
            f"{counted(store['manifests'], 'manifest')}, "
            f"{counted(store['tags'], 'tag')} in {counted(store['repositories'], 'repository', 'repositories')}"
        )
    if space := document["space"]:
        used = space["stored"] + space["reserved"]
        lines.append(
            f"quota: {format_size(used)} of {format_size(space['high'])} used, the disk has "
            f"{format_size(space['free'])} free"
        )
    if bases := document["bases"]:
        kept = ", ".join(f"{base['series']} ({counted(base['digests'], 'blob')})" for base in bases)
        lines.append(f"kept as bases of bundles: {kept}")
    if imports := document["imports"]:
        from entrepot.cli.bundlelines import of_waiting
        from sync.bundle.waiting import Waiting

        lines += map(of_waiting, msgspec.convert(imports, tuple[Waiting, ...]))
    looked_up = ", ".join(f"{outcome} {number}" for outcome, number in document["totals"].items() if number)
    lines.append(f"requests: {looked_up or 'none yet'}")
    if traffic := document["traffic"]:
        sent, received, saved = (format_size(traffic[name]) for name in ("sent", "received", "saved"))
        lines.append(f"bytes: {sent} to clients, {received} from upstreams, {saved} saved")
    if pulls := document["pulls"]:
        lines.append(_pulls(pulls))
    lines += [_host(upstream["name"], host) for upstream in document["upstreams"] for host in upstream["hosts"]]
    lines += [_worker(worker) for worker in document["workers"]]
    if fleet := document["fleet"]:
        lines += _fleet(fleet)
    if bucket := document["bucket"]:
        health = "good" if bucket["problem"] is None else "out of reach"
        waits = f", {counted(bucket['waiting'], 'blob')} to be uploaded" if bucket["waiting"] else ""
        lines.append(f"bucket {bucket['url']}: {health}{waits}")
    if regions := document["regions"]:
        lines += _regions(regions)
    lines += [_fill(fill) for fill in document["fills"]]
    lines += [_warm(section) for section in document["warm"]]
    return lines


def _host(upstream: str, host: Document) -> str:
    if not host["reachable"]:
        health = f"fails: {host['error'] or 'no answer'}"
    else:
        health = "good" if host["answered"] else "not asked yet"
    quota = host["quota"]
    left = f", {quota['remaining']} of {quota['limit']} requests left" if quota else ""
    refused = ", it refuses our credential" if host["credential_refused"] else ""
    held = "".join(f", asks to wait {seconds:.0f} s with {kind} requests" for kind, seconds in host["held"].items())
    return f"upstream {upstream} at {host['host']}: {health}{left}{refused}{held}"


def _pulls(pulls: Document) -> str:
    latency = pulls["latency"]
    text = f"pulls of the last hour: {latency['count']}"
    if latency["count"]:
        text += f", half of them within {latency['p50']:.1f} s, nine of ten within {latency['p90']:.1f} s"
    if pulls["had_share"] is not None:
        text += f", clients had {pulls['had_share']:.0%} of the layers"
    return text


def _worker(worker: Document) -> str:
    health = "good" if worker["answers"] else "does not answer"
    restarts = f", started again {counted(worker['restarts'], 'time')}" if worker["restarts"] else ""
    return f"worker {worker['number']}, pid {worker['pid']}: {health}{restarts}"


def _fleet(fleet: Document) -> list[str]:
    lines = [f"node {fleet['url']} of a fleet of {counted(len(fleet['nodes']) + 1, 'node')}"]
    for node in fleet["nodes"]:
        behind = "" if not node["behind"] else f", its records are {format_duration(round(node['behind']))} behind here"
        lines.append(f"node {node['url']}: {node['state']}, version {node['version']}{behind}")
    return lines


def _regions(regions: Document) -> list[str]:
    from entrepot.cli.synclines import of_peer
    from sync.reports import PeerReport

    lines = [line for peer in msgspec.convert(regions["peers"], list[PeerReport]) for line in of_peer(peer)]
    return lines + [
        f"region {grant['name']} may read {', '.join(grant['repositories'])}" for grant in regions["grants"]
    ]


def _fill(fill: Document) -> str:
    size = "?" if fill["size"] is None else format_size(fill["size"])
    progress = f"{format_size(fill['received'])} of {size}, {counted(fill['readers'], 'reader')}"
    return f"filling {fill['digest']} of {fill['repository']} from {fill['source']}: {progress}"


def _warm(section: Document) -> str:
    every = format_duration(section["every"])
    what = f"warms {', '.join(section['references'])} every {every}, next at {_when(section['next'])}"
    if section["last"] is None:
        return what
    failed = f", {section['failures']} failed" if section["failures"] else ""
    images = counted(section["images"], "image")
    return f"{what}; last at {_when(section['last'])}: {section['outcome']}, {images}{failed}"


def _when(moment: str) -> str:
    return moment.replace("T", " ").replace("+00:00", "Z")
