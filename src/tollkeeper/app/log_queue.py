"""How logs reach Redis: a client of their own, so that a megabyte of records never stands in an admission's way."""

from contextlib import suppress
from typing import Final

from tollkeeper.domain.errors import StoreUnavailable
from tollkeeper.domain.log_account import VerifyReport
from tollkeeper.governance import redis_settings
from tollkeeper.governance.redis_client import RedisClient
from tollkeeper.logs.pipeline import queues_of
from tollkeeper.logs.sinks import open_store
from tollkeeper.logs.verify import verify
from tollkeeper.settings import Settings

LOG_SPOOL: Final = "log-spool"
"""The folder in the data directory where records wait while Redis is away."""
REPLY_TIMEOUT_S: Final = 5.0
"""A batch of records may take longer than an admission."""


async def open_log_client(settings: Settings) -> RedisClient | None:
    """A client that is started, whether Redis is there or not; None without Redis."""
    if settings.embedded:
        return None
    own = {
        **{"pool_size": 2, "min_idle_conns": 1},
        **{"read_timeout_s": REPLY_TIMEOUT_S, "write_timeout_s": REPLY_TIMEOUT_S},
        "busy_poll_us": 0,  # no request waits for a record's answer
    }
    client = RedisClient(**redis_settings.of_store(settings.store) | own)
    with suppress(StoreUnavailable):  # it goes on trying, and records go to the spool meanwhile
        await client.start()
    return client


async def prove(settings: Settings) -> tuple[VerifyReport, str]:
    """The proof over the log store and, with Redis, the queue; and why the queue was not asked, if that failed.

    Raises ConfigurationError, LogStoreUnavailable.
    """
    store = open_store(settings.logs_url, settings.logs.timeout_s)
    client = await open_log_client(settings)
    if client is None:
        return await verify(store), ""
    try:
        return await verify(store, queues=queues_of(settings.logs, "verify", client)), ""
    except StoreUnavailable as error:
        return await verify(store), str(error)
    finally:
        await client.stop()
