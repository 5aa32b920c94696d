"""What must not be read in a log: credentials are replaced and control characters escaped. Pure.

Secrets are known by the name they stand under (a key, a header, a parameter), by the form of what
carries them (a URL's query and user part, an authorization scheme), and some by their own form (JWTs, bcrypt's hashes,
tokens of registries that say what they are). Query strings go as a whole: presigned ones are credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"
_MAX_DEPTH = 6
_MAX_TEXT = 65_536
_MULTILINE = frozenset({"exception", "stack", "stack_info"})

_SECRET_WORD = (
    r"authorization|passw(?:or)?d|passphrase|secret|token|cookie|credential|(?:api|access|private)[_-]?key|signature"
)
_SECRET_KEY = re.compile(rf"{_SECRET_WORD}|^x-registry-auth$|^auth$|^sig$", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9._/:@+-]*")
_URL = re.compile(r"\b([a-z][a-z0-9+.-]{0,15}://)(?:[^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)(\?[^\s\"'<>]*)?", re.IGNORECASE)
# A password in the URL of a Redis may hold anything, even unescaped; no path of it does.
_REDIS = re.compile(r"\b(rediss?(?:\+[a-z]{1,15})?://)[^\s\"'<>]{0,512}@", re.IGNORECASE)
_QUERY = re.compile(r"\?[^\s\"'<>?=&]{1,64}=[^\s\"'<>]*")
_HEADER = re.compile(r"""(authorization["']?\s{0,8}[=:]\s{0,8}["']?)[^\r\n"',;]+""", re.IGNORECASE)
# All of them: only the first would be a value to `_ASSIGNED`.
_COOKIES = re.compile(
    r"""(cookie["']?\s{0,8}:\s{0,8}|cookie["']\s{0,8},\s{0,8}b?)("[^"\r\n]*"?|'[^'\r\n]*'?|[^\r\n"']+)""", re.IGNORECASE
)
_DOCKER_AUTH = re.compile(r"""(["']auth["']\s{0,8}:\s{0,8})("[^"\r\n]*"?|'[^'\r\n]*'?)""")  # of its config.json
_ITSELF = re.compile(
    r"(?<![\w-])eyJ[\w-]{4,}\.[\w-]+\.[\w-]+"  # a JWT
    r"|\$2[abxy]?\$\d\d\$[./A-Za-z0-9]{20,}"  # bcrypt
    r"|(?<![\w-])(?:dckr_[a-z]+_|gh[a-z]_|github_pat_|glpat-)[\w-]{16,}"
)
_SCHEME = re.compile(r"\b(bearer|basic)(\s+)([\w.~+/=-]+)", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""((?:{_SECRET_WORD})[\w-]{{0,32}}|\bsig|x-registry-auth)  # a name that tells of a secret
         (["']?\s*[=:]\s*)                         # assigned, or a header, or a JSON member
         ((?:bearer|basic)\s+[^\s"',;&]+|"[^"]*"|'[^']*'|[^\s"',;&]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_PROSE = frozenset({"check", "each", "give", "it", "see", "signing", "take", "write"})
"""How messages of our own go on after "… the password:", none of which is one."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def redact(context: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a log line's context without secrets, every value a plain one: None, bool, number, text, list, dict."""
    return {str(key): _named(str(key), value, depth=0) for key, value in context.items()}


def redact_text(text: str, *, lines: re.Pattern[str] = _CONTROL) -> str:
    """Return `text` without what looks like a secret, and without what could break the line or a terminal."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "…"
    if _PLAIN.fullmatch(text) and "://" not in text and not has_token(text):
        return text
    text = _REDIS.sub(r"\1", text)
    text = _URL.sub(_without_query, text)
    text = _QUERY.sub(f"?{REDACTED}", text)
    text = _HEADER.sub(rf"\1{REDACTED}", text)
    text = _COOKIES.sub(rf"\1{REDACTED}", text)
    text = _DOCKER_AUTH.sub(rf"\1{REDACTED}", text)
    text = _ITSELF.sub(REDACTED, text)
    text = _ASSIGNED.sub(_without_value, text)
    text = _SCHEME.sub(_without_credential, text)
    text = lines.sub(_escape, text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def has_token(text: str) -> bool:
    """Tell whether something in `text` is a secret by its own form; cheap where nothing looks like it."""
    return ("_" in text or "eyJ" in text or "glpat-" in text or "$2" in text) and _ITSELF.search(text) is not None


def _named(key: str, value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(key):
        return REDACTED
    if isinstance(value, str) and key in _MULTILINE:
        return redact_text(value, lines=_CONTROL_BUT_LINES)
    return _value(value, depth)


@lru_cache(maxsize=512)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _value(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {redact_text(str(key)): _named(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str):
        return [redact_text(value[0]), _named(value[0], value[1], depth + 1)]
    if isinstance(value, tuple | list | set | frozenset):
        return [_value(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "backslashreplace"))
    return redact_text(str(value))


def _without_query(match: re.Match[str]) -> str:
    scheme, rest, query = match.groups()
    return f"{scheme}{rest}?{REDACTED}" if query else f"{scheme}{rest}"


def _without_value(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    prose = between == ": " and value in _PROSE
    return match.group() if prose else f"{name}{between}{REDACTED}"


def _without_credential(match: re.Match[str]) -> str:
    scheme, space, credential = match.groups()
    # "basic authentication" is prose: a credential of lowercase letters alone does not happen by chance.
    prose = credential.isalpha() and credential.islower()
    return match.group() if prose else f"{scheme}{space}{REDACTED}"


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
