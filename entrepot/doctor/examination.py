"""The whole examination: everything is looked at at once, nothing for longer than `MOST_SECONDS`."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

from yarl import URL

from entrepot import __version__
from entrepot.config import Config, PeerConfig, UpstreamConfig, check_files
from entrepot.doctor import judging
from entrepot.doctor.bucket import BucketSeen, look_at_bucket
from entrepot.doctor.bundles import BundlesSeen, look_at_bundles
from entrepot.doctor.consumers import ClientSeen, look_at_clients
from entrepot.doctor.findings import Finding, look, problem
from entrepot.doctor.fleet import FleetSeen, look_at_fleet
from entrepot.doctor.folder import FolderSeen, look_at_folder, open_files_limit
from entrepot.doctor.judging_bundles import judge_bundles
from entrepot.doctor.judging_regions import judge_peer, judge_tokens
from entrepot.doctor.judging_shared import judge_bucket, judge_fleet
from entrepot.doctor.regions import TokenFileSeen, look_at_peer, look_at_tokens
from entrepot.doctor.running import MirrorSeen, look_at_mirror
from entrepot.doctor.upstream import HostSeen, look_at_host
from entrepot.upstreams import settings_of
from proxy.upstream.credentials import CredentialError

FILES_SECONDS = 5.0
MOST_SECONDS = 10.0


async def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Return what there is to say of the mirror that `config` describes. `root`: where clients' files lie."""
    offline = config.offline
    async with asyncio.TaskGroup() as tasks:
        folder = tasks.create_task(_folder(config.data))
        mirror = tasks.create_task(look_at_mirror(config))
        clients = tasks.create_task(_clients(root))
        files = tasks.create_task(_files(config))
        hosts = [tasks.create_task(_hosts(upstream)) for upstream in (() if offline else config.upstreams)]
        fleet = tasks.create_task(_fleet(config))
        bucket = tasks.create_task(_bucket(config))
        tokens = tasks.create_task(_tokens(config))
        bundles = tasks.create_task(_bundles(config.data))
        peers = [tasks.create_task(_peer(peer, config.region)) for peer in config.peers]

    findings = files.result()
    seen_mirror = mirror.result()
    seen_folder = folder.result()
    if isinstance(seen_folder, Finding):
        findings += [seen_folder, *judging.judge_mirror(seen_mirror, None, config, __version__)]
    else:
        findings += judging.judge_folder(seen_folder)
        findings += judging.judge_space(seen_folder, config.quota, seen_mirror.stored)
        findings += judging.judge_mirror(seen_mirror, seen_folder, config, __version__)
    findings += judging.judge_files(open_files_limit(seen_mirror.pid), seen_mirror.pid)
    outcomes = [host.result() for host in hosts]
    seen_hosts = [host for outcome in outcomes if isinstance(outcome, list) for host in outcome]
    findings += judging.judge_clock(seen_hosts)
    for outcome in outcomes:
        if isinstance(outcome, Finding):
            findings.append(outcome)
        else:
            told = (judging.as_told(host, seen_mirror.document) for host in outcome)
            findings += [finding for host in told for finding in judging.judge_host(host)]
    findings += _shared(config, seen_mirror, fleet.result(), bucket.result())
    findings += judge_tokens(tokens.result())
    findings += judge_bundles(bundles.result(), config, _room(config, seen_folder))
    findings += [finding for peer in peers for finding in peer.result()]
    ours = _ours(config, seen_mirror)
    return findings + [judging.judge_client(client, ours) for client in clients.result()]


async def _files(config: Config) -> list[Finding]:
    try:
        return judging.judge_configuration(await look(lambda: check_files(config), FILES_SECONDS))
    except TimeoutError:
        seen = f"the files that it names do not answer within {FILES_SECONDS:g} s"
        return [problem("configuration", seen, "see whether the disk or network volume they are on hangs")]


async def _folder(data: Path) -> FolderSeen | Finding:
    try:
        return await look(lambda: look_at_folder(data), FILES_SECONDS)
    except TimeoutError:
        seen = f"{data} does not answer within {FILES_SECONDS:g} s"
        return problem("data folder", seen, "see whether its disk or network volume hangs (dmesg, mount)")
    except OSError as error:
        seen = f"{data} cannot be looked at: {error.strerror or error}"
        return problem("data folder", seen, "run this as the mirror's user, or name another folder with --data")


async def _clients(root: Path) -> list[ClientSeen]:
    try:
        return await look(lambda: look_at_clients(root), FILES_SECONDS)
    except TimeoutError:
        return []


async def _hosts(upstream: UpstreamConfig) -> list[HostSeen] | Finding:
    check = f"upstream {upstream.name}"
    try:
        async with asyncio.timeout(MOST_SECONDS):
            settings = await look(lambda: settings_of(upstream, 1), FILES_SECONDS)
            looks = (look_at_host(settings, url) for url in (URL(upstream.url), *map(URL, upstream.alternates)))
            return list(await asyncio.gather(*looks))
    except (CredentialError, OSError) as error:
        if isinstance(error, TimeoutError):
            seen = f"{upstream.url} could not be looked at within {MOST_SECONDS:g} s"
            return problem(check, seen, "see the network of this machine")
        return problem(check, f"{error}", "mend the file that the configuration names")


async def _fleet(config: Config) -> FleetSeen | Finding | None:
    if config.redis is None:
        return None
    try:
        async with asyncio.timeout(MOST_SECONDS):
            return await look_at_fleet(config, config.redis.reveal())
    except TimeoutError:
        seen = f"Redis and the nodes could not be looked at within {MOST_SECONDS:g} s"
        return problem("fleet", seen, "see the network of this machine, and where the secret lies")


async def _bucket(config: Config) -> BucketSeen | Finding | None:
    if config.store is None:
        return None
    try:
        async with asyncio.timeout(MOST_SECONDS):
            return await look_at_bucket(config.store)
    except TimeoutError:
        seen = f"{config.store} could not be looked at within {MOST_SECONDS:g} s"
        return problem("bucket", seen, "see the network of this machine, and the endpoint in the environment")


async def _tokens(config: Config) -> list[TokenFileSeen]:
    try:
        return await look(lambda: look_at_tokens(config), FILES_SECONDS)
    except TimeoutError:
        return []  # as the other files there, of which this was said


async def _bundles(data: Path) -> BundlesSeen:
    try:
        return await look(lambda: look_at_bundles(data), FILES_SECONDS)
    except (TimeoutError, OSError):
        return BundlesSeen()  # as of the folder itself, of which this is said


def _room(config: Config, folder: FolderSeen | Finding) -> int | None:
    """Return how many bytes may be stored, None where the volume could not be looked at."""
    if config.quota is not None or isinstance(folder, Finding) or not folder.total:
        return config.quota
    return int(judging.DEFAULT_SHARE * folder.total)


async def _peer(peer: PeerConfig, region: str) -> list[Finding]:
    try:
        async with asyncio.timeout(MOST_SECONDS):
            return judge_peer(await look_at_peer(peer, region), peer, region)
    except TimeoutError:
        seen = f"{peer.url} could not be looked at within {MOST_SECONDS:g} s"
        return [problem(f"peer {peer.name}", seen, "see the network of this machine")]


def _shared(
    config: Config, mirror: MirrorSeen, fleet: FleetSeen | Finding | None, bucket: BucketSeen | Finding | None
) -> list[Finding]:
    """Judge what this node shares with others."""
    findings: list[Finding] = []
    if isinstance(fleet, Finding):
        findings.append(fleet)
    elif fleet is not None:
        findings += judge_fleet(fleet, config.region, runs=mirror.document is not None)
    if isinstance(bucket, Finding):
        findings.append(bucket)
    elif bucket is not None:
        findings += judge_bucket(bucket, mirror.document)
    return findings


def _ours(config: Config, mirror: MirrorSeen) -> set[str]:
    """Return the hosts, with ports, under which clients of this machine may name the mirror."""
    ours = set()
    listening = (mirror.document["listen"] if mirror.document else ()) or [f"http://{config.listen}"]
    for url in listening:
        parts = urlsplit(url)
        ours |= {f"{name}:{parts.port}" for name in ("127.0.0.1", "localhost", "[::1]", socket.gethostname())}
        ours.add(parts.netloc)
    return ours
