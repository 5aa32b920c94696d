"""The keys of the configuration: how each value is read, and the form that an error offers.

One table per section. A key that is in none of them is refused, not ignored: whoever writes it counts on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from entrepot.config import values
from entrepot.config.problems import Problem


class Setting(NamedTuple):
    """A value as somebody wrote it, where it was written, and the folder at which its relative paths start."""

    value: object
    where: str
    base: Path


Section = dict[str, Setting]


class Key(NamedTuple):
    """How a value is read (the folder goes to those that are paths) and what is accepted."""

    parse: Callable[[object, Path], object]
    accepted: str


def _plain(parse: Callable[[object], object], accepted: str) -> Key:
    return Key(lambda value, _base: parse(value), accepted)


def _path(accepted: str) -> Key:
    return Key(lambda value, base: values.path_from(base)(value), accepted)


_ADDRESS = _plain(values.address, 'HOST:PORT, such as "127.0.0.1:5000" or "[::]:5000"')
_DURATION = _plain(values.duration, 'a number with a unit, such as "30s", "15m", "1h30m" or "7d"')
_LEVELS = ("debug", "info", "warning", "error")
_FORMATS = ("console", "json")

TOP = {
    "listen": _ADDRESS,
    "admin": _ADDRESS,
    "data": _path('a folder, such as "/var/lib/entrepot"'),
    "region": _plain(values.region, 'lowercase letters, digits, "-" and "_", at most 64, such as "eu-west"'),
    "drain_timeout": _DURATION,
    "offline": _plain(values.boolean, "true or false"),
    "quota": _plain(values.size, 'a size, such as "500GiB" or "2TB"'),
    "workers": _plain(values.whole(1, 64), "a number of processes from 1 to 64"),
    "trusted_proxies": _plain(values.many(values.network), 'an array of networks, such as ["10.0.0.0/8"]'),
    "client_concurrency": _plain(values.whole(1, 1_000_000), "a number of requests, such as 256"),
    "catalog": _plain(values.boolean, "true or false"),
    "admin_token": _plain(values.secret, "a secret of at least 16 characters"),
    "admin_token_file": _path("a file that holds the token alone"),
    "redis": _plain(
        values.redis_url,
        'a URL, such as "redis://redis.example:6379/0", "redis+sentinel://one:26379,two:26379/NAME" or '
        '"redis+cluster://one:7000,two:7000"',
    ),
    "advertise": _plain(values.registry_url, 'how neighbours reach this node, such as "http://10.0.0.5:5000"'),
    "neighbours": _plain(
        values.many(values.neighbour), 'an array of networks and host globs, such as ["10.0.0.0/8", "*.mirror.example"]'
    ),
    "fleet_secret": _plain(values.secret, "a secret of at least 16 characters, the same on every node"),
    "fleet_secret_file": _path("a file that holds the secret alone"),
    "store": _plain(values.store_url, '"s3://bucket/prefix", "gs://bucket/prefix" or "az://container/prefix"'),
    "store_redirect": _plain(values.boolean, "true or false"),
    "store_grace": _DURATION,
    "from": _path('a bundle, or a folder of bundles, such as "/media/disk/site.tar"'),
}
LOG = {
    "level": _plain(values.one_of(*_LEVELS), ", ".join(_LEVELS)),
    "format": _plain(values.one_of(*_FORMATS), ", ".join(_FORMATS)),
}
TLS = {
    "cert": _path("a PEM file with the certificate and its chain"),
    "key": _path("a PEM file with the private key"),
    "client_ca": _path("a PEM file with the certificates that sign clients'"),
}
_MODES = ("open", "htpasswd", "token", "upstream")
ACCESS = {
    "mode": _plain(values.one_of(*_MODES), ", ".join(_MODES)),
    "htpasswd": _path("a file as `htpasswd -B` writes it"),
    "token_file": _path("a file with one token a line"),
}
BUNDLES = {"require_signature": _plain(values.boolean, "true or false")}
SECTIONS = {"log": LOG, "tls": TLS, "access": ACCESS, "bundles": BUNDLES}
WARM = {
    "references": _plain(values.many(values.text), 'an array of references, such as ["docker.io/library/alpine:3.*"]'),
    "platforms": _plain(values.many(values.platform), 'an array of platforms, such as ["linux/amd64"]'),
    "every": _DURATION,
}
_GLOBS = _plain(values.many(values.glob), 'an array of globs of repositories, such as ["library/*"]')
UPSTREAM = {
    "name": _plain(values.upstream_name, 'the first component of a path, such as "docker.io" or "private"'),
    "url": _plain(values.registry_url, "http:// or https:// with a host, such as https://registry-1.docker.io"),
    "alternates": _plain(
        values.many(values.registry_url), 'an array of URLs of registries, such as ["https://mirror.example"]'
    ),
    "username": _plain(values.text, "the name to log in with"),
    "password_file": _path("a file that holds the password alone"),
    "docker_config": _path('a file as `docker login` writes it, such as "~/.docker/config.json"'),
    "tag_ttl": _DURATION,
    "stale_while_revalidate": _DURATION,
    "stale_if_error": _plain(values.duration_or_forever, 'a duration such as "24h", or "forever"'),
    "negative_ttl": _DURATION,
    "cooldown": _DURATION,
    "allow": _GLOBS,
    "deny": _GLOBS,
    "concurrency": _plain(values.whole(0, 100_000), "a number of requests at once, 0 for no limit"),
    "requests_per_second": _plain(values.per_second, "a number of requests a second, 0 for no limit"),
    "proxy_username": _plain(values.text, "the name to log in to the proxy with"),
    "proxy_password_file": _path("a file that holds the proxy's password alone"),
    "proxy": _plain(values.proxy_url, 'an HTTP proxy, such as "http://proxy.example:3128"'),
    "ca_file": _path("a file with PEM certificates"),
    "redirect_hosts": _plain(values.many(values.host_name), 'an array of host names, such as ["blobs.example"]'),
}
PEER = {
    "name": _plain(values.region, 'the region\'s name, as its own configuration has it, such as "us-east"'),
    "url": _plain(values.registry_url, 'http:// or https:// with a host, such as "https://us.mirror.example"'),
    "token_file": _path("a file that holds the token that the region's grant knows"),
    "ca_file": _path("a file with PEM certificates"),
    "cert": _path("a PEM file with the certificate to show the region"),
    "key": _path("a PEM file with that certificate's private key"),
    "repositories": _plain(values.many(values.glob), 'an array of globs, such as ["docker.io/library/*"]'),
    "tags": _plain(values.many(values.tag_choice), 'an array of globs and versions, such as [">=3.18", "latest"]'),
    "newest": _plain(values.whole(1, 1_000_000), "a number of tags, such as 10"),
    "platforms": _plain(values.many(values.platform), 'an array of platforms, such as ["linux/amd64"]'),
    "referrers": _plain(values.boolean, "true or false"),
    "bandwidth": _plain(values.bandwidth, 'bytes a second, such as "50MiB/s"'),
    "window": _plain(values.windows, '"22:00-06:00", "22:00-06:00 Europe/Berlin", or an array of such'),
    "removal_grace": _DURATION,
    "removal_share": _plain(values.share, 'a share, such as "25%"'),
}
GRANT = {
    "name": _plain(values.region, 'the region\'s name, as its own configuration has it, such as "ap-south"'),
    "token_file": _path("a file with one token a line, two while they are rotated"),
    "certificate": _plain(values.text, "the name in the certificate that the region shows"),
    "repositories": _plain(values.many(values.glob), 'an array of globs, such as ["docker.io/library/*"] or ["*"]'),
}
TRUSTED_KEY = {
    "name": _plain(values.text, 'what the key is called, such as "headquarters"'),
    "file": _path("a PEM file with the public key, as `entrepot key new` writes it"),
    "repositories": _plain(values.many(values.glob), 'an array of globs, such as ["docker.io/library/*"] or ["*"]'),
}
LISTS = {"warm": WARM, "peer": PEER, "grant": GRANT, "trusted_key": TRUSTED_KEY}
"""Sections that may come several times, upstreams aside."""


def read_section(
    section: Mapping[str, Setting], keys: Mapping[str, Key], prefix: str, problems: list[Problem]
) -> dict[str, object]:
    """Return the parsed values of `section`; what is wrong with any of them is added to `problems`."""
    parsed: dict[str, object] = {}
    for name, setting in section.items():
        key = keys.get(name)
        if key is None:
            problems.append(unknown(setting.where, prefix, name, keys))
            continue
        try:
            parsed[name] = key.parse(setting.value, setting.base)
        except ValueError as error:
            problems.append(Problem(setting.where, prefix + name, str(error), key.accepted))
    return parsed


def unknown(where: str, prefix: str, name: str, known: Iterable[str]) -> Problem:
    """Return the problem of a key that is not `known` here: mistyped, or nothing at all."""
    names = sorted(known)
    accepted = "one of " + ", ".join(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return Problem(where, prefix + name, f"no such key{hint}", accepted)
