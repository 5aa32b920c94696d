"""From what was seen to findings. Pure: no clock, no disk, no network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from entrepot.cli.output import format_size
from entrepot.config import Config, Problem
from entrepot.doctor.consumers import ClientSeen
from entrepot.doctor.findings import Finding, ok, problem, warning
from entrepot.doctor.folder import FolderSeen
from entrepot.doctor.running import MirrorSeen
from entrepot.doctor.upstream import HostSeen

LEAST_FREE = 0.05
SLOW_SYNC_SECONDS = 0.25
SKEW_SECONDS = 300.0
FEW_FILES = 4096
SOON_DAYS = 14.0
DEFAULT_SHARE = 0.8
FEW_REQUESTS = 0.1


def judge_configuration(problems: Sequence[Problem]) -> list[Finding]:
    """Judge the files that the configuration names; that it can be read at all was seen before."""
    if not problems:
        return [ok("configuration", "it can be read, and so can the files that it names")]
    return [
        problem("configuration", f"{fault.key}: {fault.where} {fault.message}", f"accepted: {fault.accepted}")
        for fault in problems
    ]


def judge_folder(seen: FolderSeen) -> list[Finding]:
    """Judge whose the data folder is and whether it can be written."""
    check = "data folder"
    if not seen.exists and seen.path != seen.base and seen.refused is not None:
        advice = "make it for the user that the mirror runs as, or name another with --data"
        return [problem(check, f"{seen.path} is not there, and {seen.base} cannot be written: {seen.refused}", advice)]
    if not seen.exists:
        return [ok(check, f"{seen.path} is not there yet; the mirror makes it when it starts")]
    if seen.refused is not None:
        advice = "run this as the mirror's user; if you did, mend owner and permissions, or the disk (see dmesg)"
        return [problem(check, f"{seen.path} cannot be written by user {seen.user}: {seen.refused}", advice)]
    findings = []
    if seen.mode is not None and seen.mode & 0o022:
        findings.append(
            problem(check, f"others may write to {seen.path} (mode {seen.mode:04o})", f"chmod 0700 {seen.path}")
        )
    if seen.user == 0 and seen.owner not in (0, None):
        note = f", it belongs to user {seen.owner}"
    else:
        note = ""
        if seen.owner not in (seen.user, None):
            advice = "run mirror and commands as one user"
            findings.append(warning(check, f"{seen.path} belongs to user {seen.owner}, this is {seen.user}", advice))
    if seen.apart:
        advice = "files are renamed between them: put the whole data folder on one volume"
        findings.append(problem(check, f"on another volume than {seen.path}: {', '.join(seen.apart)}", advice))
    if seen.sync_seconds is not None and seen.sync_seconds > SLOW_SYNC_SECONDS:
        advice = (
            "every stored blob waits for a few of these: put the data folder on a faster disk, see what else uses it"
        )
        findings.append(warning(check, f"a small write takes {seen.sync_seconds * 1000:.0f} ms to be durable", advice))
    return findings or [ok(check, f"{seen.path} can be written{note}")]


def judge_space(seen: FolderSeen, quota: int | None, stored: int | None) -> list[Finding]:
    """Judge the volume: `quota` as configured, `stored` as far as somebody tells."""
    check = "disk space"
    if not seen.total:
        return []
    findings = []
    free = f"{format_size(seen.free)} of {format_size(seen.total)} free at {seen.base}"
    if seen.free < LEAST_FREE * seen.total:
        advice = "set or lower `quota`, or free some: new images are not kept while the disk is full"
        findings.append(problem(check, free, advice))
    if seen.inodes and seen.free_inodes < LEAST_FREE * seen.inodes:
        advice = "remove small files from the volume, or make it anew with more inodes"
        findings.append(problem(check, f"{seen.free_inodes} of {seen.inodes} inodes free at {seen.base}", advice))
    limit = quota if quota is not None else int(DEFAULT_SHARE * seen.total)
    if limit > seen.total:
        advice = f"set `quota` below {format_size(int((1 - LEAST_FREE) * seen.total))}"
        findings.append(problem(check, f"the quota of {format_size(limit)} is larger than the volume", advice))
    elif limit - (stored or 0) > seen.free and (stored is not None or quota is not None):
        missing = format_size(limit - (stored or 0) - seen.free)
        most = max(0, (stored or 0) + seen.free - int(LEAST_FREE * seen.total))
        advice = f"set `quota` to {format_size(most)} at most, or remove what else is on the volume"
        which = "quota" if quota is not None else "default quota"
        findings.append(warning(check, f"{free}: {missing} too little for the {which} of {format_size(limit)}", advice))
    return findings or [ok(check, free)]


def judge_files(limit: int | None, pid: int | None) -> list[Finding]:
    """Judge how many files the mirror may have open: each client and each blob under way takes one or two."""
    check = "open files"
    whose = f"process {pid}" if pid is not None else "a mirror started from here"
    if limit is None:
        return []
    if limit != -1 and limit < FEW_FILES:
        advice = "set LimitNOFILE=65536 in its systemd unit, or `ulimit -n 65536` before it is started"
        return [warning(check, f"{whose} may have {limit} open", advice)]
    return [ok(check, f"{whose} may have {'any number' if limit == -1 else limit} open")]


def judge_clock(hosts: Iterable[HostSeen]) -> list[Finding]:
    """Judge our clock by those of the upstreams: one that agrees with it is enough."""
    skews = [host.skew for host in hosts if host.skew is not None]
    if not skews:
        return []
    skew = min(skews, key=abs)
    if abs(skew) > SKEW_SECONDS:
        side = "behind" if skew > 0 else "ahead of"
        advice = "set it, and keep it set: timedatectl set-ntp true; certificates and tokens fail otherwise"
        return [problem("clock", f"this machine is {abs(skew) / 60:.0f} minutes {side} the upstreams", advice)]
    return [ok("clock", f"it differs from the upstreams' by {abs(skew):.0f} s")]


def judge_host(seen: HostSeen) -> list[Finding]:
    """Judge one host of an upstream: reached, trusted, logged in, and how many requests are left."""
    check = f"upstream {seen.upstream}"
    through = f" through the proxy {seen.proxy}" if seen.proxy else ""
    if seen.failed:
        return [problem(check, f"{seen.url}{through}: {_what_failed(seen)}: {seen.failure}", _what_to_do(seen))]
    findings = []
    if seen.days_left is not None and seen.days_left < SOON_DAYS:
        advice = "its operator has to renew it; TLS will fail after that"
        findings.append(warning(check, f"the certificate of {seen.url} ends in {seen.days_left:.0f} days", advice))
    if seen.status == 429:
        advice = "wait, log in with `username` and `password_file`, or add `alternates`; what is stored is served on"
        return [*findings, problem(check, f"{seen.url} answers 429, too many requests", advice)]
    if seen.status == 407:
        advice = "set `proxy_username` and `proxy_password_file`, or mend what they say"
        return [*findings, problem(check, f"{seen.url}{through}: the proxy wants a login", advice)]
    if seen.status not in (200, 401):
        advice = "see that `url` is that of a registry (it answers /v2/), and whether it has an outage"
        return [*findings, problem(check, f"{seen.url}{through} answers /v2/ with {seen.status}", advice)]
    findings += _judge_login(check, seen) + _judge_quota(check, seen) + _judge_told(check, seen)
    return findings or [ok(check, f"{seen.url}{through} answers, {_logged_in(seen)}")]


def as_told(seen: HostSeen, document: Mapping[str, Any] | None) -> HostSeen:
    """Return `seen` with what the running mirror says of the host in its status `document`, its quota too (P35)."""
    if document is None:
        return seen
    name = urlsplit(seen.url).netloc
    for upstream in document["upstreams"]:
        for host in upstream["hosts"]:
            if upstream["name"] == seen.upstream and host["host"] == name:
                seen = replace(seen, told=host)
                if seen.remaining is None and host["quota"]:
                    seen = replace(seen, limit=host["quota"]["limit"], remaining=host["quota"]["remaining"])
    return seen


def judge_mirror(seen: MirrorSeen, folder: FolderSeen | None, config: Config, version: str) -> list[Finding]:
    """Judge the mirror that runs, or that none does."""
    check = "mirror"
    holder = folder.holder if folder else None
    if seen.failure:
        advice = "run this as the mirror's user; if it is, see the mirror's log, then restart it"
        return [problem(check, seen.failure, advice)]
    if seen.document is None:
        if holder is not None:
            advice = "wait if it is starting or ending; otherwise see its log and restart it"
            return [problem(check, f"process {holder} holds {config.data} but no control socket answers", advice)]
        return [ok(check, f"none is running on {config.data}", "start it with: entrepot serve")]
    document = seen.document
    findings = []
    if document["version"] != version:
        findings.append(
            warning(check, f"it is version {document['version']}, this is {version}", "restart the mirror to have it")
        )
    if document["state"] != "ready":
        reasons = "; ".join(document["reasons"]) or "no reason given"
        findings.append(
            warning(check, f"it is {document['state']}: {reasons}", "see what else is said here, and the mirror's log")
        )
    for worker in document.get("workers", ()):
        if not worker["answers"]:
            advice = "see the mirror's log; if the process stays, kill it: the supervisor starts another"
            findings.append(problem(check, f"worker {worker['number']}, process {worker['pid']}, is silent", advice))
        elif worker["restarts"]:
            words = f"worker {worker['number']} died and was started again, {worker['restarts']} times so far"
            advice = "see the mirror's log, and dmesg for what the kernel killed for want of memory"
            findings.append(warning(check, words, advice))
    for address, answer in seen.listeners:
        if answer not in (200, 401, 403):
            advice = "see the mirror's log and what else listens there; clients cannot pull"
            findings.append(problem(check, f"{address} does not answer as a registry: {answer}", advice))
    where = ", ".join(document["listen"]) or "no address of this process"
    return findings or [ok(check, f"process {document['pid']} is ready at {where}")]


def judge_client(seen: ClientSeen, ours: Collection[str]) -> Finding:
    """Judge whether a client of this machine asks the mirror at one of `ours` (hosts with ports)."""
    check = f"client {seen.name}"
    if seen.broken:
        return warning(check, seen.broken, "mend the file: the client may not start with it")
    if not set(seen.mirrors) & set(ours):
        others = f"; it asks {', '.join(seen.mirrors)}" if seen.mirrors else ""
        return ok(check, f"it does not ask this mirror{others}", f"if it should: entrepot client {seen.name} --write")
    if seen.unread:
        advice = "set config_path in /etc/containerd/config.toml, as `entrepot client containerd` says, and restart it"
        return warning(check, "its files name this mirror, but its configuration has no config_path for CRI", advice)
    return ok(check, "it asks this mirror")


def _what_failed(seen: HostSeen) -> str:
    return {
        "credential": "its credential cannot be had",
        "name": "the name cannot be resolved",
        "connection": "no connection",
        "tls": "TLS fails",
        "ping": "no answer to /v2/",
    }[seen.failed]


def _what_to_do(seen: HostSeen) -> str:
    if seen.failed == "credential":
        return "mend the file or helper that the configuration names"
    if seen.failed == "name":
        return "see /etc/resolv.conf and the spelling in `url`; where only a proxy leads out, set `proxy`"
    if seen.failed == "tls":
        return {
            "authority": "set `ca_file` to the PEM of its private authority, or of the proxy that looks into TLS",
            "expired": "its certificate has ended: its operator has to renew it; see also this machine's clock",
            "name": "its certificate is for another name: write `url` with that name",
        }.get(seen.tls, "see whether it speaks TLS at all: http:// or https:// in `url`")
    if seen.proxy:
        return "see that the proxy is right and lets this host through"
    return "see the firewall and the port in `url`; where only a proxy leads out, set `proxy`"


def _judge_login(check: str, seen: HostSeen) -> list[Finding]:
    who = f"as {seen.user}" if seen.user else "without a login"
    if seen.login == "refused":
        advice = "put the right password into `password_file`, or `docker login` again for `docker_config`"
        return [problem(check, f"{seen.url} refuses our login {who} ({seen.login_failure})", advice)]
    if seen.login == "wanted":
        advice = "configure `username` and `password_file`, or `docker_config`"
        return [problem(check, f"{seen.url} wants a login and none is configured", advice)]
    if seen.login == "unclear":
        advice = "see whether its token server is reached; hosts it is at may have to go into `redirect_hosts`"
        return [problem(check, f"{seen.url} gives no token {who}: {seen.login_failure}", advice)]
    return []


def _judge_quota(check: str, seen: HostSeen) -> list[Finding]:
    if seen.remaining is None or seen.limit is None:
        return []
    left = f"{seen.remaining} of {seen.limit} pulls are left at {seen.url}"
    advice = "log in with `username` and `password_file`, add `alternates`, or lengthen `tag_ttl`"
    if seen.remaining <= 0:
        return [problem(check, left, advice)]
    if seen.remaining < FEW_REQUESTS * seen.limit:
        return [warning(check, left, advice)]
    return []


def _judge_told(check: str, seen: HostSeen) -> list[Finding]:
    """Judge what the running mirror met with at a host that answers the doctor."""
    told = seen.told or {}
    findings = []
    if told.get("credential_refused") and seen.login != "refused":
        why = f" ({told['credential_error']})" if told.get("credential_error") else ""
        advice = (
            "renew what `password_file` or `docker_config` holds, which the mirror reads again when it is refused; "
            "where another file is named now, restart the mirror"
        )
        findings.append(problem(check, f"{seen.url} refuses the credential that the mirror has{why}", advice))
    elif told.get("credential_error") and not seen.failed:
        words = f"the mirror has no credential for {seen.url}, or an old one: {told['credential_error']}"
        findings.append(warning(check, words, "mend the file or helper that the configuration names"))
    for kind, seconds in told.get("held", {}).items():
        advice = "log in with `username` and `password_file`, add `alternates`, or lengthen `tag_ttl`"
        words = f"{seen.url} asks the mirror to wait {seconds:.0f} s with {kind} requests; what is stored is served on"
        findings.append(warning(check, words, advice))
    if told.get("breaker", "closed") != "closed":
        words = f"{seen.url} answers now, but failed when the mirror asked it last: {told.get('error')}"
        findings.append(warning(check, words, "the mirror finds out when it next asks; see its log if this stays"))
    return findings


def _logged_in(seen: HostSeen) -> str:
    login = {
        "open": "to everybody",
        "anonymous": "to everybody",
        "accepted": f"and accepts our login as {seen.user}",
    }.get(str(seen.login), "")
    left = f"; {seen.remaining} of {seen.limit} pulls left" if seen.remaining is not None else ""
    return login + left
