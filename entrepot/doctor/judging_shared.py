"""From what was seen of what nodes share (Redis, one another, the bucket) to findings. Pure, as `judging`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from entrepot.cli.output import counted, format_size
from entrepot.config.values import format_duration
from entrepot.doctor.bucket import BucketSeen
from entrepot.doctor.findings import Finding, ok, problem, warning
from entrepot.doctor.fleet import FleetSeen, NodeSeen, RedisSeen
from proxy.fleet.link import SLOW_SECONDS as UNUSED
from proxy.fleet.protocol import PROTOCOL, node_name

TESTED_VERSION = 7
SLOW_SECONDS = 0.02
SKEW_SECONDS = 60.0
FULL = 0.9
LONG_BACKLOG_SECONDS = 600.0

_ONE_SECRET = (
    "give every node the same ENTREPOT_FLEET_SECRET (or fleet_secret_file), keep the clocks of all machines right"
)


def judge_fleet(seen: FleetSeen, region: str, *, runs: bool) -> list[Finding]:
    """Judge Redis, how this node is reached, and the others. `runs`: a mirror runs on our data folder."""
    findings = judge_redis(seen.redis)
    if seen.failure:
        advice = "mend the secret or the certificate that the configuration names: nodes cannot ask each other"
        return [*findings, problem("fleet", seen.failure, advice)]
    findings += judge_own(seen.own, seen.others, runs=runs)
    if not seen.others and not seen.redis.failure:
        advice = "where there should be: give them the same `redis`, `region` and fleet secret"
        findings.append(ok("fleet", f"Redis knows no other node in the region {region}", advice))
    return findings + [judge_node(node) for node in seen.others]


def judge_redis(seen: RedisSeen) -> list[Finding]:
    """Judge whether Redis can be used, and is as fast and roomy as it should be."""
    check = "redis"
    if seen.failure:
        advice = "see `redis`, its user's rights and the firewall; until then each node works on alone, and downloads"
        return [problem(check, seen.failure, f"{advice} for itself")]
    findings = []
    if seen.version.partition(".")[0].isdecimal() and int(seen.version.partition(".")[0]) < TESTED_VERSION:
        advice = f"it may do, but nobody has tried: take Redis {TESTED_VERSION} or later, or Valkey"
        findings.append(warning(check, f"Redis at {seen.address} is version {seen.version}", advice))
    if seen.seconds > SLOW_SECONDS:
        words = f"a call to Redis at {seen.address} takes {seen.seconds * 1000:.0f} ms"
        advice = f"over {UNUSED * 1000:.0f} ms it is not used: put it into the region, see `redis-cli --latency`"
        findings.append(warning(check, words, advice))
    if abs(seen.skew) > SKEW_SECONDS:
        words = f"the clock of Redis at {seen.address} and this one differ by {abs(seen.skew):.0f} s"
        findings.append(warning(check, words, "set both, and keep them set: timedatectl set-ntp true"))
    if seen.policy == "noeviction" and seen.used > FULL * seen.most > 0:
        words = f"{format_size(seen.used)} of the {format_size(seen.most)} that Redis may have are used"
        advice = "raise its maxmemory, or set maxmemory-policy volatile-lru: full, it is of no use to the fleet"
        findings.append(warning(check, words, advice))
    version = f", version {seen.version}," if seen.version else ""
    return findings or [ok(check, f"{seen.address}{version} answers in {seen.seconds * 1000:.1f} ms")]


def judge_own(seen: NodeSeen, others: Iterable[NodeSeen], *, runs: bool) -> list[Finding]:
    """Judge whether this node is reached at the URL that it tells the others."""
    check = "advertise"
    if _is_loopback(seen.url) and not all(_is_loopback(node.url) for node in others):
        advice = "set `advertise` to a URL by which the other machines reach this one"
        return [problem(check, f"{seen.url} is reached from this machine alone", advice)]
    if seen.failed == "silent" and not runs:
        return [ok(check, f"{seen.url} is asked once a mirror runs here")]
    remedies = {
        "refused": "see that it leads to this node alone, never to a load balancer; " + _ONE_SECRET,
        "stranger": "see that `advertise` is the URL of this node's own listener, with http or https as `tls` has it",
        "silent": "see `advertise`, `listen`, the certificate, the firewall: the other nodes may not reach it either",
    }
    if seen.failed in remedies:
        words = f"{seen.url} does not answer as this node: {seen.failure}"
        return [problem(check, words, remedies[seen.failed])]
    return [ok(check, f"{seen.url} answers as this node")]


def judge_node(seen: NodeSeen) -> Finding:
    """Judge another node as this one sees it."""
    check = f"node {node_name(seen.url)}"
    match seen.failed:
        case "outside":
            words = f"Redis tells of {seen.url}, and `neighbours` admits no node there: it is never asked"
            return problem(
                check, words, "add its network or name to `neighbours`; if it is none of yours, see to Redis"
            )
        case "protocol":
            words = f"version {seen.version} speaks fleet protocol {seen.protocol}, this one {PROTOCOL}"
            older = "that node" if seen.protocol < PROTOCOL else "this node"
            return warning(check, words, f"upgrade {older}: until then the two do not help each other")
        case "refused":
            return problem(check, seen.failure, _ONE_SECRET)
        case "stranger":
            advice = "see what that node advertises: something else answers there, or a node with another secret"
            return problem(check, seen.failure, advice)
        case "silent":
            advice = "see whether it runs, what it advertises, and the firewall between the two"
            return problem(check, seen.failure, advice)
    if seen.skew is not None and abs(seen.skew) > SKEW_SECONDS:
        words = f"its clock and this one differ by {abs(seen.skew):.0f} s"
        return warning(check, words, "set both: beyond 5 minutes nodes believe each other nothing")
    return ok(check, f"version {seen.version} answers")


def judge_bucket(seen: BucketSeen, document: Mapping[str, Any] | None) -> list[Finding]:
    """Judge whether all that is done with the bucket works; `document` is the status of a running mirror."""
    check = "bucket"
    if seen.failed == "open":
        advice = "run this with the environment that the mirror has; docs/object-storage.md has the variables"
        return [problem(check, seen.failure, advice)]
    findings = []
    if seen.failed is not None:
        advice = (
            "see the bucket's name, endpoint and policy (docs/object-storage.md); run this with the environment that "
            "the mirror has. Until then pulls go on, and uploads wait"
        )
        findings.append(problem(check, f"{seen.url}: an object cannot be {_DONE[seen.failed]}: {seen.failure}", advice))
    if seen.left is not None:
        advice = "allow deleting; the object has a few bytes and does no harm"
        findings.append(warning(check, f"{seen.url}: {seen.left}, put there to try it, is left", advice))
    if abs(seen.skew) > SKEW_SECONDS:
        words = f"the clock of {seen.url} and this one differ by {abs(seen.skew):.0f} s"
        advice = "set this one: signatures are refused when they differ by some minutes, and `store_grace` is off by it"
        findings.append(warning(check, words, advice))
    told = (document or {}).get("bucket")
    if told and told["age"] > LONG_BACKLOG_SECONDS:
        waits = (
            f"{counted(told['waiting'], 'blob')} to be uploaded, the oldest for {format_duration(round(told['age']))}"
        )
        advice = "see `entrepot status` and the mirror's log: the bucket fails, or takes less than is pulled"
        findings.append(warning(check, waits, advice))
    return findings or [ok(check, f"{seen.url} can be written, read, listed and deleted from")]


_DONE = {"write": "written", "read": "read", "list": "listed", "delete": "deleted"}


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
