"""How to reach Redis: one frozen value, read from arguments, the environment or a URL.

Whatever cannot work is refused here with the name of the setting and what to write. Nothing here opens a socket.

    redis://[user:password@]host[:port][/db]            rediss://… the same with TLS
    unix:///path[?db=0]
    redis+sentinel://[user:password@]host:port,…/service[/db]   the sentinels; rediss+sentinel:// with TLS
    redis+cluster://[user:password@]host:port,…         some nodes to ask first; rediss+cluster:// with TLS

Query parameters are those of redis-py (`OPTIONS`), `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` among them.
"""

import difflib
import math
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import StoreSettings, duration_s, mask_url

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
POOL_SIZE_MAX: Final = 1000
BUSY_POLL_US_MAX: Final = 10_000


class Topology(StrEnum):
    """What stands behind the address."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


SCHEMES: Final = {
    "redis": (Topology.STANDALONE, False),
    "rediss": (Topology.STANDALONE, True),
    "unix": (Topology.STANDALONE, False),
    "redis+sentinel": (Topology.SENTINEL, False),
    "rediss+sentinel": (Topology.SENTINEL, True),
    "redis+cluster": (Topology.CLUSTER, False),
    "rediss+cluster": (Topology.CLUSTER, True),
}


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is and how its connections are kept. All durations in seconds."""

    topology: Topology = Topology.STANDALONE
    addresses: tuple[tuple[str, int], ...] = (("localhost", PORT),)
    """The server; the sentinels; or the nodes of a cluster to ask first."""
    path: str = ""
    """Of the unix socket, instead of an address."""
    service: str = ""
    """The name sentinels know the primary by."""
    username: str | None = None
    password: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    db: int = 0
    tls: bool = False
    options: Mapping[str, Any] = {}
    """Further arguments for redis-py's connection, `ssl_…` above all."""
    url: str = ""
    """As given, without passwords; for messages."""
    pool_size: int = 10
    min_idle_conns: int = 2
    dial_timeout_s: float = 5.0
    read_timeout_s: float = 3.0
    write_timeout_s: float = 3.0
    max_conn_age_s: float = 1800.0
    idle_timeout_s: float = 300.0
    busy_poll_us: int = 0
    """How long the event loop is kept awake for an answer that somebody waits for: redis_busy_poll.py."""

    def __repr__(self) -> str:
        return f"<RedisSettings {self.url}>"


ENVIRONMENT: Final = {
    "REDIS_URL": "url",
    "REDIS_ADDRESS": "address",
    "REDIS_PASSWORD": "password",
    "REDIS_USERNAME": "username",
    "REDIS_DB": "db",
    "REDIS_TLS": "tls",
    "REDIS_TLS_CA_FILE": "ssl_ca_certs",
    "REDIS_TLS_CERT_FILE": "ssl_certfile",
    "REDIS_TLS_KEY_FILE": "ssl_keyfile",
    "REDIS_POOL_SIZE": "pool_size",
    "REDIS_MIN_IDLE_CONNS": "min_idle_conns",
    "REDIS_DIAL_TIMEOUT": "dial_timeout_s",
    "REDIS_READ_TIMEOUT": "read_timeout_s",
    "REDIS_WRITE_TIMEOUT": "write_timeout_s",
    "REDIS_MAX_CONN_AGE": "max_conn_age_s",
    "REDIS_IDLE_TIMEOUT": "idle_timeout_s",
    "REDIS_BUSY_POLL_US": "busy_poll_us",
}
"""Variable → argument of `read`."""
_VARIABLE: Final = {argument: variable for variable, argument in ENVIRONMENT.items()}
_TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_WHERE: Final = ("url", "address", "username", "password", "db", "tls", *_TLS)
_WHOLE: Final = {
    "pool_size": (1, POOL_SIZE_MAX),
    "min_idle_conns": (0, POOL_SIZE_MAX),
    "busy_poll_us": (0, BUSY_POLL_US_MAX),
}
_DURATIONS: Final = ("dial_timeout_s", "read_timeout_s", "write_timeout_s", "max_conn_age_s", "idle_timeout_s")


def _flag(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return known[text.lower()]


def _requirement(text: str) -> str:
    return {"none": "none", "optional": "optional", "required": "required"}[text]


OPTIONS: Final[Mapping[str, Callable[[str], Any]]] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _flag,
    "ssl_min_version": int,
    "ssl_ciphers": str,
    "client_name": str,
    "socket_keepalive": _flag,
}
"""Query parameters handed on to redis-py's connection."""
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_OURS: Final = ("db", "username", "password", "sentinel_username", "sentinel_password")


def from_environment(environ: Mapping[str, str] | None = None, **overrides: Any) -> dict[str, Any]:
    """Arguments of `read` as the environment (default: the process's) gives them; `overrides` win.

    Empty variables count as absent. A URL or address among the overrides hides everything that says where Redis is.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {
        argument: environ[variable].strip()
        for variable, argument in ENVIRONMENT.items()
        if environ.get(variable, "").strip()
    }
    if any(overrides.get(name) is not None for name in ("url", "address")):
        found = {name: value for name, value in found.items() if name not in _WHERE}
    return found | overrides


def of_store(store: StoreSettings) -> dict[str, Any]:
    """Arguments of `read` as the gateway's settings give them."""
    return {
        "url": store.redis_url,
        "address": store.redis_address,
        "username": store.redis_username,
        "password": store.redis_password,
        "db": store.redis_db,
        "tls": store.redis_tls,
        "ssl_ca_certs": store.redis_tls_ca_file,
        "ssl_certfile": store.redis_tls_cert_file,
        "ssl_keyfile": store.redis_tls_key_file,
        "pool_size": store.pool_size,
        "min_idle_conns": store.min_idle_conns,
        "dial_timeout_s": store.dial_timeout_s,
        "read_timeout_s": min(store.read_timeout_s, store.admission_timeout_s),
        "write_timeout_s": min(store.write_timeout_s, store.admission_timeout_s),
        "busy_poll_us": store.busy_poll_us,
    }


def read(**arguments: Any) -> RedisSettings:
    """Check arguments, named as in `ENVIRONMENT`; text is read as the environment writes it.

    Raises ConfigurationError; it names the setting and says what to write.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in _VARIABLE:
            raise ConfigurationError(f"{name}: there is no such setting of Redis; {_advice(name, _VARIABLE)}")
    where = _from_url(given) if "url" in given else _from_address(given)
    where |= {name: _whole(name, given[name], *bounds) for name, bounds in _WHOLE.items() if name in given}
    where |= {name: _duration(name, given[name]) for name in _DURATIONS if name in given}
    settings = RedisSettings(**where)
    if settings.min_idle_conns > settings.pool_size:
        if "min_idle_conns" in given:
            raise _wrong("min_idle_conns", f"must be at most the pool's size, {settings.pool_size}")
        settings = msgspec.structs.replace(settings, min_idle_conns=settings.pool_size)
    return settings


def _from_address(given: Mapping[str, Any]) -> dict[str, Any]:
    host, port = _address(str(given.get("address", "localhost")), PORT, "address")
    db = _whole("db", given.get("db", 0), 0, 10**6)
    shown = f"[{host}]" if ":" in host else host
    tls = _tls_flag(given.get("tls", False))
    options = {name: str(given[name]) for name in _TLS if name in given}
    for name in options:
        if not tls:
            raise _wrong(name, "it is for TLS; set REDIS_TLS=true too")
    _check_files(options)
    return {
        "addresses": ((host, port),),
        "username": given.get("username"),
        "password": given.get("password"),
        "db": db,
        "tls": tls,
        "options": options,
        "url": f"{'rediss' if tls else 'redis'}://{shown}:{port}/{db}",
    }


def _from_url(given: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("address", "db"):
        if name in given:
            raise _wrong(name, f"{_VARIABLE['url']} is given too and says it already; keep one of them")
    url = str(given["url"])
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise _wrong("url", f"unknown scheme in {mask_url(url)!r}; known are {known}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _wrong("url", f"{mask_url(url)!r} is not a URL ({error})") from None
    topology, tls = SCHEMES[scheme]
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, colon, password = credentials.partition(":")
    where: dict[str, Any] = {
        "topology": topology,
        "tls": tls,
        "url": mask_url(url),
        "username": unquote(username) or None,
        "password": unquote(password) if colon else None,
    }
    if _tls_flag(given.get("tls", False)) and not tls:
        raise _wrong("tls", f"{_VARIABLE['url']} says otherwise; write {scheme.replace('redis', 'rediss', 1)}://")
    query = _query(parts.query, tls)
    for name in [name for name in _TLS if name in given]:
        if name in query or not tls:
            why = f"{_VARIABLE['url']} has one too; keep one of them" if tls else "it is for TLS; write rediss://"
            raise _wrong(name, why)
        query[name] = str(given[name])
    _check_files(query)
    where |= {name: query.pop(name) for name in _OURS if name in query}
    where["options"] = query
    for name in ("username", "password"):
        if name in given:
            if where[name] is not None:
                raise _wrong(name, f"{_VARIABLE['url']} has one too; keep one of them")
            where[name] = given[name]
    return where | _place(scheme, topology, hosts, unquote(parts.path), where.get("db"))


def _place(scheme: str, topology: Topology, hosts: str, path: str, db: int | None) -> dict[str, Any]:
    """Addresses, service and database number, from what stands after the credentials."""
    if scheme == "unix":
        if hosts or not path.strip("/"):
            raise _wrong("url", "write the socket's path with three slashes, like unix:///run/redis.sock")
        return {"addresses": (), "path": path, "db": db or 0}
    port = SENTINEL_PORT if topology is Topology.SENTINEL else PORT
    names = [name for name in hosts.split(",") if name] or ["localhost"]
    if topology is Topology.STANDALONE and len(names) > 1:
        raise _wrong("url", "several hosts: write redis+cluster:// or redis+sentinel://")
    place: dict[str, Any] = {"addresses": tuple(_address(name, port, "url") for name in names)}
    segments = [segment for segment in path.split("/") if segment]
    if topology is Topology.SENTINEL:
        if not segments:
            raise _wrong("url", "name the service the sentinels watch: redis+sentinel://host:port/service")
        place["service"] = segments.pop(0)
    if len(segments) > 1:
        raise _wrong("url", f"{'/'.join(segments)!r} is no database number; write it like /0")
    place["db"] = _whole("db", segments[0], 0, 10**6) if segments else db or 0
    if topology is Topology.CLUSTER and place["db"]:
        raise _wrong("url", "a cluster has database 0 only")
    return place


def _query(text: str, tls: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in OPTIONS and name not in _OURS:
            raise _wrong("url", f"unknown parameter {name!r}; {_advice(name, (*OPTIONS, *_OURS))}")
        if name.startswith("ssl_") and not tls:
            raise _wrong("url", f"{name} is for TLS; write rediss://")
        if name == "db":
            found[name] = _whole("db", value, 0, 10**6)
            continue
        try:
            found[name] = OPTIONS.get(name, str)(value)
        except (ValueError, KeyError):
            shown = "***" if "password" in name else repr(value)
            raise _wrong("url", f"{name}: {shown} cannot be read") from None
        if name in _FILES and not _readable(Path(value)):
            raise _wrong("url", f"{name}: cannot read {value}")
    return found


def _check_files(options: Mapping[str, Any]) -> None:
    for name in [name for name in _TLS if name in options]:
        if not _readable(Path(options[name])):
            raise _wrong(name, f"cannot read {options[name]}")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise _wrong("ssl_keyfile", "it needs the client's certificate too (ssl_certfile)")


def _tls_flag(value: Any) -> bool:
    try:
        return value if isinstance(value, bool) else _flag(str(value))
    except KeyError:
        raise _wrong("tls", f"{value!r} is neither true nor false") from None


def _readable(path: Path) -> bool:
    return path.exists() and os.access(path, os.R_OK)


def _address(text: str, default_port: int, name: str) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]:port` → host and port."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or "@" in text or "/" in text or any(letter.isspace() for letter in text):
        raise _wrong(name, f"{mask_url(text)!r} is not an address; write it like localhost:{default_port}")
    return host, default_port if port is None else port


def _whole(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise _wrong(name, f"{value!r} is not a whole number") from None
    if not least <= number <= most or number != (float(value) if not isinstance(value, str) else number):
        raise _wrong(name, f"{value!r} must be a whole number from {least} to {most}")
    return number


def _duration(name: str, value: Any) -> float:
    what = f"{name} ({_VARIABLE[name]})"
    seconds = duration_s(value, what=what) if isinstance(value, str) else float(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise _wrong(name, f'{value!r} must be above zero; write it like "5s", "300ms" or "2m"')
    return seconds


def _advice(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "known are " + ", ".join(known)


def _wrong(name: str, what: str) -> ConfigurationError:
    variable = _VARIABLE.get(name)
    return ConfigurationError(f"{name} ({variable}): {what}" if variable else f"{name}: {what}")
