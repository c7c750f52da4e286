"""Who serves what: redis-py connections to a server, to the primary that sentinels name, to the nodes of a cluster.

Each answer is asked for anew; remembering and repeating is the client's. No command of a user passes here.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.governance.redis_settings import RedisSettings

SLOTS: Final = 16_384
Address = tuple[str, int]


def dialled(settings: RedisSettings, address: Address | None = None) -> AbstractConnection:
    """A connection to `address` (default: the one of the settings), not yet connected."""
    who = {"username": settings.username, "password": settings.password, "db": settings.db}
    if settings.path:
        return UnixDomainSocketConnection(path=settings.path, **_arguments(settings, who))
    return _tcp(settings, address or settings.addresses[0], who)


def _tcp(settings: RedisSettings, address: Address, who: Mapping[str, Any]) -> AbstractConnection:
    kind = SSLConnection if settings.tls else Connection
    made: AbstractConnection = kind(host=address[0], port=address[1], **_arguments(settings, who))
    return made


def _arguments(settings: RedisSettings, who: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_connect_timeout": settings.dial_timeout_s,
        "socket_timeout": settings.dial_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        **who,
        **settings.options,
    }


async def primary_of(settings: RedisSettings) -> Address:
    """The address that the sentinels name for the service; the first that answers is believed.

    All sentinels together have the dial timeout. Raises StoreUnavailable with what each of them said.
    """
    who = {"username": settings.sentinel_username, "password": settings.sentinel_password}
    share_s = settings.dial_timeout_s / len(settings.addresses)
    said = []
    for address in settings.addresses:
        try:
            async with asyncio.timeout(share_s):
                found = await _ask(
                    _tcp(settings, address, who), "SENTINEL", "get-master-addr-by-name", settings.service
                )
        except (RedisError, OSError, TimeoutError) as error:
            said.append(f"{address[0]}:{address[1]}: {error or 'no answer'}")
            continue
        if found:
            return found[0].decode(), int(found[1])
        said.append(f"{address[0]}:{address[1]}: knows no service {settings.service!r}")
    raise StoreUnavailable(f"no sentinel of {settings.url} names a primary ({'; '.join(said)})", sent=False)


async def slots_from(settings: RedisSettings, address: Address) -> Sequence[Any]:
    """`CLUSTER SLOTS` of one node, on a connection of its own. Raises StoreUnavailable."""
    try:
        async with asyncio.timeout(settings.dial_timeout_s):
            found: Sequence[Any] = await _ask(dialled(settings, address), "CLUSTER", "SLOTS")
            return found
    except (RedisError, OSError, TimeoutError) as error:
        reason = error or f"no answer within {settings.dial_timeout_s:g} s"
        raise StoreUnavailable(
            f"cannot ask {address[0]}:{address[1]} for its cluster: {reason}", sent=False
        ) from error


async def _ask(connection: AbstractConnection, *parts: Any) -> Any:
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command(*parts)
        return await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)


def primaries(rows: Iterable[Sequence[Any]], asked: str) -> list[tuple[int, int, Address]]:
    """`CLUSTER SLOTS` → (first slot, last slot, primary). A node that does not know its own name is `asked`."""
    found = []
    for first, last, primary, *_ in rows:
        host = primary[0].decode() if primary[0] else ""
        found.append((int(first), int(last), (asked if host in ("", "?") else host, int(primary[1]))))
    return found
