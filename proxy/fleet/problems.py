"""What an error of Redis means for whoever runs the mirror: which remedy it has. Pure."""

from __future__ import annotations

from redis import exceptions as errors

from proxy.fleet.address import RedisAddress

_LONGEST = 200
_RIGHTS = (
    "the user of `redis` may not do what is needed: allow it EVAL, EVALSHA, PING and reads and writes of keys that"
    " begin with entrepot:, as docs/fleet.md lists them"
)
_BY_KIND: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (errors.BusyLoadingError, "it loads its data and answers when it has"),
    (
        (errors.AuthenticationError, errors.AuthorizationError),
        "it refuses the user or the password: check those in the URL of `redis`",
    ),
    (errors.NoPermissionError, _RIGHTS),
    (
        errors.ReadOnlyError,
        "it is a replica and takes no writes: give `redis` the primary, or redis+sentinel:// and its Sentinels",
    ),
    (errors.OutOfMemoryError, "it is out of memory: raise its maxmemory, or set maxmemory-policy volatile-lru"),
    ((errors.AskError, errors.ClusterCrossSlotError), "it is a cluster: write redis+cluster:// in `redis`"),
    (errors.ClusterDownError, "the cluster is not whole: see `redis-cli cluster info`"),
    (errors.RedisClusterException, "no node of the cluster answers as one: is it a Redis Cluster, and does it run?"),
)
_BY_TEXT: tuple[tuple[str, str], ...] = (
    ("No master found", "the Sentinels know no primary that answers by that name"),
    ("MISCONF", "it refuses writes since it cannot save to disk: see its log"),
    ("can't run this command", _RIGHTS),  # Redis 7
    ("ACL failure in script", _RIGHTS),  # Redis 8
    ("can't access at least one of the keys", _RIGHTS),
    ("NOREPLICAS", "it refuses writes since too few replicas follow it"),
    ("DENIED", "it is in protected mode: give it a password, or bind it to a private address"),
    ("max number of clients", "it has as many clients as it takes: raise its maxclients"),
    ("cluster support disabled", "it is no cluster: write redis:// in `redis`"),
    ("unknown command", "it does not know a command that is needed: EVAL and EVALSHA must be there"),
    ("NOAUTH", "it asks for a password: give `redis` a URL with one"),
)


def problem_of(error: BaseException, address: RedisAddress) -> str:
    """Return a sentence for people: where, what happened, what to do. It shows neither user nor password."""
    if isinstance(error, TimeoutError | errors.TimeoutError):
        return f"Redis at {address} does not answer in time"
    text = str(error)
    for sign, said in _BY_TEXT:
        if sign in text:
            return f"Redis at {address}: {said}"
    for kind, said in _BY_KIND:
        if isinstance(error, kind):
            return f"Redis at {address}: {said}"
    what = "no connection to Redis at" if isinstance(error, errors.ConnectionError | OSError) else "Redis at"
    return f"{what} {address}: {_safe(text, address) or type(error).__name__}"


def _safe(text: str, address: RedisAddress) -> str:
    for secret in (address.password, address.username):
        if secret:
            text = text.replace(secret, "…")
    return " ".join(text.split())[:_LONGEST].rstrip(".")
