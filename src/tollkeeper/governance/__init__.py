"""Admission and settlement, on memory and on Redis; the ledger with its outbox; the sync worker."""

from collections.abc import Callable

from tollkeeper.governance.closing import Closer
from tollkeeper.governance.ledger import Ledger
from tollkeeper.governance.memory import MemoryStore
from tollkeeper.governance.orphans import OrphanWatch
from tollkeeper.governance.outage import Outage
from tollkeeper.governance.reading import StoreReader, accounts_from_outside
from tollkeeper.governance.redis_store import RedisStore
from tollkeeper.governance.store import Store
from tollkeeper.governance.sync import SyncWorker
from tollkeeper.settings import Settings

__all__ = [
    "Closer",
    "Ledger",
    "MemoryStore",
    "OrphanWatch",
    "Outage",
    "RedisStore",
    "Store",
    "StoreReader",
    "SyncWorker",
    "accounts_from_outside",
    "open_store",
]


def open_store(settings: Settings, now_us: Callable[[], int]) -> Store:
    """The store the settings name. Raises ConfigurationError; connects only at `start`."""
    if settings.embedded:
        return MemoryStore(now_us)
    return RedisStore(settings.store)
