"""The forms that values take in a configuration: durations, addresses, URLs, names. Pure.

Every parser takes what TOML, the environment or a flag gave, and raises ValueError with the reason alone: the
caller knows the key and the accepted form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from entrepot.config.model import Address, Secret, SecretUrl, Window
from proxy.fleet.address import parse as parse_address
from proxy.oci.choosing import TagChoice
from proxy.oci.globs import Glob

T = TypeVar("T")

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|[smhd]))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_LONGEST = 100 * 365 * 86400.0
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15} | {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "PiB": 1 << 50,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*")
_UPSTREAM_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9_.]+)?")
_STORE = re.compile(r"(?:s3|gs|az)://[a-zA-Z0-9][a-zA-Z0-9._-]{1,62}(?:/[a-zA-Z0-9._~-]+)*")
_HOST_GLOB = re.compile(r"(?:\*|[a-z0-9*](?:[a-z0-9*-]{0,62}))(?:\.[a-z0-9*-]{1,63})*")
_TIME = r"([01]?\d|2[0-4]):([0-5]\d)"
_WINDOW = re.compile(rf"{_TIME}\s*-\s*{_TIME}(?:\s+([A-Za-z0-9_+/-]+))?")
_REGION = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def text(value: object) -> str:
    """Return `value`, a string that is not empty."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    if not value.strip():
        raise ValueError("it is empty")
    return value


def glob(value: object) -> str:
    """Return a glob of repositories as it was written: `library/*`, `team/**`."""
    return Glob.parse(text(value)).text


def duration(value: object) -> float:
    """Return the seconds of `15m`, `1h30m`, `500ms`: numbers with a unit, the longest 100 years."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value!r} has no unit")
    written = text(value)
    if not _DURATION.fullmatch(written):
        raise ValueError(f"{written!r} is not a duration")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(written))
    if seconds > _LONGEST:
        raise ValueError(f"{written!r} is longer than 100 years")
    return seconds


def format_duration(seconds: float) -> str:
    """Return `seconds` as `duration` reads it, to the millisecond: `1h30m`, `0s`."""
    left = round(seconds * 1000)
    parts = []
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size(value: object) -> int:
    """Return the bytes of `500GiB`, `1.5TB` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    written = text(value)
    match = _SIZE.fullmatch(written.strip())
    unit = match and next((unit for unit in _SIZES if unit.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise ValueError(f"{written!r} is not a size")
    count = int(float(match[1]) * _SIZES[unit])
    if count <= 0:
        raise ValueError(f"{written!r} leaves no room for anything")
    return count


def bandwidth(value: object) -> int:
    """Return the bytes a second of `50MiB/s`."""
    written = text(value)
    amount, slash, unit = written.strip().rpartition("/")
    if not slash or unit.strip() != "s":
        raise ValueError(f"{written!r} does not say bytes a second")
    return size(amount.strip())


def share(value: object) -> float:
    """Return the part of one that `25%` is."""
    written = text(value).strip()
    number = written.removesuffix("%").strip()
    if not written.endswith("%") or not re.fullmatch(r"\d{1,3}(\.\d+)?", number) or float(number) > 100:
        raise ValueError(f"{written!r} is not a share from 0% to 100%")
    return float(number) / 100


def windows(value: object) -> tuple[Window, ...]:
    """Return the times of day of `22:00-06:00`, with a zone after them or without, or of several such."""
    return tuple(_window(one) for one in (value if isinstance(value, list) else [value]))


def _window(value: object) -> Window:
    written = text(value).strip()
    match = _WINDOW.fullmatch(written)
    if match is None:
        raise ValueError(f"{written!r} is not a time of day from HH:MM to HH:MM")
    zone = match[5] or ""
    if zone:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"there is no time zone {zone!r} on this machine") from None
    begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if begin == end:
        raise ValueError(f"{written!r} ends when it begins")
    return Window(begin % 1440, end % 1440, zone)


def tag_choice(value: object) -> str:
    """Return what chooses tags: a glob such as `latest` or `3.*`, or a range of versions such as `>=3.18 <4`."""
    written = text(value).strip()
    TagChoice.parse(written)
    return written


def format_exact_size(count: int) -> str:
    """Return a number of bytes as `size` reads it, without loss: `500GiB`, `1234`."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        if count and count % _SIZES[unit] == 0:
            return f"{count // _SIZES[unit]}{unit}"
    return str(count)


def whole(least: int, most: int) -> Callable[[object], int]:
    """Return a parser of whole numbers from `least` to `most`."""

    def parse(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not a whole number")
        if not least <= value <= most:
            raise ValueError(f"{value} is not from {least} to {most}")
        return value

    return parse


def per_second(value: object) -> float:
    """Return a number of requests a second; 0 is no limit."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number")
    if not 0 <= value <= 1e6:
        raise ValueError(f"{value} is not from 0 to 1000000")
    return float(value)


def network(value: object) -> IPv4Network | IPv6Network:
    """Return an address or a network, such as `10.0.0.0/8`."""
    try:
        return ip_network(text(value).strip())
    except ValueError as error:
        raise ValueError(str(error)) from None


def secret(value: object) -> Secret:
    """Return a secret that does not show itself."""
    if not isinstance(value, str) or len(value.strip()) < 16:
        raise ValueError("it is shorter than 16 characters")
    return Secret(value.strip())


def redis_url(value: object) -> SecretUrl:
    """Return where Redis is."""
    written = text(value).strip()
    parse_address(written)
    return SecretUrl(written)


def store_url(value: object) -> str:
    """Return a bucket and the prefix in it, without a trailing slash."""
    written = text(value).strip().rstrip("/")
    match = _STORE.fullmatch(written)
    if match is None:
        raise ValueError(f"{_shown(written)} is not a bucket's URL")
    return written


def neighbour(value: object) -> str:
    """Return a network (`10.0.0.0/8`, one address too) or a glob of host names (`*.mirror.example`)."""
    written = text(value).strip().lower()
    if _HOST_GLOB.fullmatch(written) and not written.replace(".", "").isdecimal():
        return written
    return str(network(written))


def duration_or_forever(value: object) -> float | None:
    """Return seconds, or None for `forever`."""
    return None if value == "forever" else duration(value)


def address(value: object) -> Address:
    """Return `HOST:PORT` with a host name, an IPv4 address or an IPv6 address in brackets."""
    written = text(value)
    host, colon, port = written.rpartition(":")
    if not colon:
        raise ValueError(f"{written!r} has no port")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port from 0 to 65535")
    return Address(_host(host), int(port))


def host_name(value: object) -> str:
    """Return a host name or an IP address, without a port, in lower case."""
    return _host(text(value)).lower()


def _host(written: str) -> str:
    if written.startswith("[") and written.endswith("]"):
        bare = written[1:-1]
        if ":" not in bare:
            raise ValueError(f"{written!r} is not an IPv6 address in brackets")
        return str(ip_address(bare))
    if ":" in written:
        raise ValueError(f"host {written!r} has a ':'; an IPv6 address goes in brackets")
    if not written:
        raise ValueError("the host is missing")
    if not _HOST.fullmatch(written):
        raise ValueError(f"{written!r} is not a host")
    return written


def registry_url(value: object) -> str:
    """Return the root of a registry, `http` or `https`, without a trailing slash."""
    return _url(value, ("http", "https"))


def proxy_url(value: object) -> str:
    """Return the address of an HTTP proxy."""
    return _url(value, ("http",))


def _shown(written: str) -> str:
    """Return an address that is refused, for the message, without what may be a credential in it."""
    scheme, slashes, rest = written.rpartition("://")
    place, mark, _ = rest.partition("?")
    return repr(f"{scheme}{slashes}{'…' if '@' in rest else f'{place}{mark}…' if mark else place}")


def _url(value: object, schemes: tuple[str, ...]) -> str:
    written = text(value)
    split = urlsplit(written)
    if split.username is not None or split.password is not None:
        raise ValueError("a URL with a user or a password in it would be shown in logs")
    if split.scheme not in schemes or not split.netloc:
        raise ValueError(f"{_shown(written)} is not a URL that begins with {' or '.join(f'{s}://' for s in schemes)}")
    if split.path not in ("", "/") or split.query or split.fragment:
        raise ValueError(f"{_shown(written)} has something after the host")
    _host(split.netloc if split.port is None else split.netloc.rpartition(":")[0])
    return f"{split.scheme}://{split.netloc.lower()}"


def upstream_name(value: object) -> str:
    """Return the name by which paths select an upstream (P8): one lowercase path component, never with a port."""
    written = text(value)
    if ":" in written:
        raise ValueError(f"no path can carry the ':' of {written!r}; give it an alias such as {_alias(written)!r}")
    if not _UPSTREAM_NAME.fullmatch(written):
        raise ValueError(f"{written!r} cannot be the first component of a repository path")
    if written == "v2":
        raise ValueError("'v2' is where the registry API lives")
    if written in ("index.docker.io", "registry-1.docker.io"):
        raise ValueError(f"{written!r} is another name of 'docker.io'")
    return written


def _alias(written: str) -> str:
    bare = re.sub(r"[^a-z0-9.]+", "-", written.rpartition(":")[0].lower()).strip("-.")
    return bare if _UPSTREAM_NAME.fullmatch(bare) else "private"


def platform(value: object) -> str:
    """Return `os/architecture` or `os/architecture/variant`."""
    written = text(value)
    if not _PLATFORM.fullmatch(written):
        raise ValueError(f"{written!r} is not a platform")
    return written


def region(value: object) -> str:
    """Return a region's name."""
    written = text(value)
    if not _REGION.fullmatch(written):
        raise ValueError(f"{written!r} is not a name of lowercase letters, digits, '-' and '_'")
    return written


def boolean(value: object) -> bool:
    """Return a boolean, also from the words that environments use."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r} is neither true nor false")


def one_of(*words: str) -> Callable[[object], str]:
    """Return a parser of one of `words`."""

    def parse(value: object) -> str:
        written = text(value)
        if written not in words:
            raise ValueError(f"{written!r} is none of them")
        return written

    return parse


def many(parse: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """Return a parser of an array, which the environment writes with commas."""

    def parse_all(value: object) -> tuple[T, ...]:
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} is not an array")
        return tuple(parse(item) for item in value)

    return parse_all


def path_from(base: Path) -> Callable[[object], Path]:
    """Return a parser of paths: `~` is the home folder, a relative path starts at `base`."""

    def parse(value: object) -> Path:
        written = text(value)
        if "\0" in written:
            raise ValueError("it holds a NUL byte")
        try:
            return base / Path(written).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{written!r}: {error}") from None

    return parse
