"""Step 1: whose request is it? A secret is digested first and looked up in this process's table of keys.

The table is kept current by polling the directory's change counter, so no request waits for the database; only a
key never seen before may cause one extra poll. While the database is away known keys go on working: `stale_s`
tells for how long. It knows nothing of HTTP bodies, limits or money.
"""

import asyncio
import hmac
import math
import time
from collections.abc import Callable
from typing import Final

from tollkeeper.domain.accounts import SECRET_PREFIX, Digester
from tollkeeper.domain.errors import DatabaseUnavailable, Fault, RequestError, Unavailable
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import KeyDirectory
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

POLL_INTERVAL_S: Final = 1.0
MISS_INTERVAL_S: Final = 0.1
"""Unknown keys cause at most one extra poll in this time, however many are tried."""
SECRET_BYTES_MAX: Final = 512


class KeyTable:
    """Digests of all keys with the principals they stand for, as of the last poll.

    `start` loads it once (a failure is logged and tried again) and keeps it current until `stop`.
    """

    def __init__(
        self,
        directory: KeyDirectory,
        digest_key: bytes,
        metrics: Metrics,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._directory, self._clock_s = directory, clock_s
        self._digest = Digester(digest_key).presented
        self._poll_interval_s = poll_interval_s
        self._table: dict[bytes, tuple[bytes, Principal]] = {}
        self._version = 0
        self._loaded_at: float | None = None
        self._polled_at = -MISS_INTERVAL_S
        self._away = False
        self._polling: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = logger("gateway")
        self._misses = metrics.counter(
            "tollkeeper_auth_misses_total", "Requests with a key that was not in the table."
        ).labels()
        self._polls_failed = metrics.counter(
            "tollkeeper_key_polls_failed_total", "Polls of the key directory that failed."
        ).labels()
        metrics.gauge("tollkeeper_keys", "Keys in this process's table.", lambda: len(self._table))
        metrics.gauge(
            "tollkeeper_keys_stale_seconds",
            "Time since the table of keys was known to be current; +Inf if it was never loaded.",
            lambda: math.inf if (age_s := self.stale_s()) is None else age_s,
        )

    def __repr__(self) -> str:
        return f"<KeyTable keys={len(self._table)} version={self._version} stale_s={self.stale_s()}>"

    def __len__(self) -> int:
        return len(self._table)

    @property
    def degraded(self) -> bool:
        """Whether the last poll failed: known keys are served, changes are not seen."""
        return self._away

    def stale_s(self) -> float | None:
        """Seconds since the table was last known to be current; None if it was never loaded."""
        return None if self._loaded_at is None else self._clock_s() - self._loaded_at

    async def start(self) -> None:
        """Load the table and begin polling."""
        await self._poll()
        self._task = asyncio.create_task(self._keep_current(), name="key-table")

    async def stop(self) -> None:
        """End polling."""
        for task in (self._task, self._polling):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._task = self._polling = None

    def known(self, secret: bytes, now_us: int) -> Principal | None:
        """Whom an active key of the table stands for; None: it is for `principal` to say."""
        if len(secret) > SECRET_BYTES_MAX:
            return None
        digest = self._digest(secret)
        entry = self._table.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        principal = entry[1]
        if principal.revoked_at_us is not None:
            return None
        return principal if principal.expires_at_us is None or principal.expires_at_us > now_us else None

    async def principal(self, secret: bytes, now_us: int) -> Principal:
        """Whom an active key stands for.

        Raises RequestError for missing, unknown, revoked and expired keys; DatabaseUnavailable if the key is not in
        the table and the database cannot be asked.
        """
        if not secret:
            raise RequestError(Fault.NO_KEY, MISSING_KEY)
        if len(secret) > SECRET_BYTES_MAX:
            raise RequestError(Fault.BAD_KEY, "The API key is far too long to be one of this gateway.")
        digest = self._digest(secret)
        entry = self._table.get(digest)
        if entry is None:
            self._misses.inc()
            await self._poll_for_miss()
            entry = self._table.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            if self._loaded_at is None or (self._away and secret.startswith(SECRET_PREFIX.encode())):
                raise DatabaseUnavailable("The API key cannot be verified at the moment. Try again shortly.")
            raise RequestError(Fault.BAD_KEY, _unknown(secret))
        principal = entry[1]
        if principal.revoked_at_us is not None:
            raise RequestError(Fault.REVOKED_KEY, f"The API key {_hint(secret)} has been revoked. Use another key.")
        if principal.expires_at_us is not None and principal.expires_at_us <= now_us:
            raise RequestError(
                Fault.EXPIRED_KEY, f"The API key {_hint(secret)} has expired. Ask for a new expiry or another key."
            )
        return principal

    async def _keep_current(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            await self._shared_poll()

    async def _poll_for_miss(self) -> None:
        """Return after a poll that began later than this call, so that a key just created is found."""
        missed_at = self._clock_s()
        wait_s = self._polled_at + MISS_INTERVAL_S - missed_at
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if self._polling is not None and self._polled_at < missed_at:  # began before the miss: not enough
            await self._shared_poll()
        if self._polling is not None or self._polled_at < missed_at:
            await self._shared_poll()

    async def _shared_poll(self) -> None:
        """One poll at a time: whoever comes meanwhile waits for its end. A waiter's cancellation leaves it alone."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="key-table-poll")
            self._polling.add_done_callback(self._poll_done)
        await asyncio.wait((self._polling,))

    def _poll_done(self, task: "asyncio.Task[None]") -> None:
        self._polling = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("key_poll_crashed", exc_info=error)

    async def _poll(self) -> None:
        asked_at = self._polled_at = self._clock_s()
        try:
            changes = await self._directory.changes_since(self._version)
        except Unavailable as error:
            self._polls_failed.inc()
            if not self._away:
                self._log.warning("key_directory_away", error=str(error), keys=len(self._table))
            self._away = True
            return
        if self._away:
            self._log.info("key_directory_back")
        self._away, self._loaded_at = False, asked_at
        if changes is not None:
            for digest in changes.gone:
                self._table.pop(digest, None)
            for key in changes.active:
                self._table[key.digest] = (key.digest, key.principal)
            self._version = changes.version


MISSING_KEY: Final = (
    "No API key was given. Send a Tollkeeper key as 'Authorization: Bearer tk_…' or as 'x-api-key: tk_…'."
)


def secret_of(authorization: bytes, x_api_key: bytes, api_key: bytes = b"") -> bytes:
    """The client's secret from its possible headers, or empty. `Authorization` wins, as an SDK would send it."""
    scheme, _, credentials = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return x_api_key.strip() or api_key.strip()


def _hint(secret: bytes) -> str:
    """What may be told of a key: its last four characters, and only if that leaves enough unsaid."""
    if len(secret) < 20:
        return "…"
    return "…" + secret[-4:].decode("ascii", "replace").replace("\ufffd", "?")


def _unknown(secret: bytes) -> str:
    if secret.startswith(SECRET_PREFIX.encode()):
        return (
            f"The API key {_hint(secret)} is not known here. It may have been rotated or belong to another gateway."
        )
    return (
        f"The API key {_hint(secret)} is not a Tollkeeper key: those begin with '{SECRET_PREFIX}'. "
        "A provider's own key does not work here."
    )
