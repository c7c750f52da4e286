"""Asks providers for the end of what was charged before it was over, so that its owner need not look.

An object that is due is leased by moving its due time, so one gateway looks at it at a time and another does if that
one dies. Each look is one GET, one after the other, at most `LOOKS_MAX` a turn; the longer an object has lived, the
longer the pause until the next look. Of a batch whose sums do not tell what it cost, the output is read, too. What it
finds is `KeptRoutes.seen`'s business, as when the owner looks.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from tollkeeper.domain.errors import DatabaseUnavailable, OutboxUnavailable, UpstreamError
from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.gateway.attempts import Attempts
from tollkeeper.gateway.batches import ENDED, read_seen
from tollkeeper.gateway.dialects import Kept, Named, kept_call, produced_by
from tollkeeper.gateway.dialects.kept import ROUTES
from tollkeeper.gateway.dispatch import provider_headers, upstream_path
from tollkeeper.gateway.kept import KeptRoutes
from tollkeeper.gateway.objects import Objects
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import Settings

LOOKS_MAX: Final = 20
"""Objects looked at in one turn."""
LOOK_TIMEOUT_S: Final = 30.0
LEASE_US: Final = 15 * 60 * 1_000_000
"""Longer than a turn can take: `LOOKS_MAX` times `LOOK_TIMEOUT_S`."""
SHOWN_BYTES_MAX: Final = 64 * 2**20
"""Of an answer, or of a batch's output: of a larger one the bound stays charged."""
TOO_LARGE: Final = 413
"""In place of the status of what is."""
PAUSE_MIN_US: Final = 10 * 1_000_000
PAUSE_MAX_US: Final = 30 * 60 * 1_000_000
PAUSE_SHARE: Final = 8
"""The next look comes when an object is an eighth older."""
GIVE_UP_US: Final = 14 * 86_400 * 1_000_000
"""OpenAI's batches end within a day, and answers are kept for a month; Azure promises no end."""
_ROUTES: Final[dict[ObjectKind, Kept]] = {
    route.kind: route for route in ROUTES if route.endpoint.name in ("response_get", "batch_get", "file_content")
}


def next_look_us(created_us: int, now_us: int) -> int | None:
    """When to look at an object again that is not over; None: no more."""
    age_us = now_us - created_us
    if age_us > GIVE_UP_US:
        return None
    return now_us + min(max(age_us // PAUSE_SHARE, PAUSE_MIN_US), PAUSE_MAX_US)


class FollowUp:
    """`start` after the pools are open, `stop` before they are closed."""

    def __init__(
        self,
        settings: Settings,
        objects: Objects,
        kept: KeptRoutes,
        attempts: Attempts,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._settings, self._objects, self._kept, self._attempts = settings, objects, kept, attempts
        self._now_us = now_us
        self._task: asyncio.Task[None] | None = None
        looks = metrics.counter(
            "tollkeeper_late_charges_looked_at_total",
            "Looks at batches and answers that were charged before they were over, by what came of it.",
            "result",
        )
        self._counted = {name: looks.labels(name) for name in ("over", "running", "unanswered", "gone", "given_up")}
        self._log = logger("gateway")

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What is leased is due again when its lease is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.billing.follow_up_interval_s)
            try:
                await self.turn()
            except DatabaseUnavailable as error:
                self._log.warning("follow_up_waits", error=str(error))
            except Exception:  # noqa: BLE001 - one that cannot be read must not end the looking
                self._log.exception("follow_up_failed")

    async def turn(self) -> int:
        """Look at what is due; how many that was. Raises DatabaseUnavailable."""
        due = await self._objects.take_due(self._now_us(), lease_us=LEASE_US, limit=LOOKS_MAX)
        for its in due:
            await self._look(its)
        return len(due)

    async def _look(self, its: StoredObject) -> None:
        status, body = await self._shown(its, its.kind, its.id)
        produced = produced_by(body) if status == 200 else None
        if status == 404:
            self._again(its, None, "gone")
        elif produced is None or produced.id != its.id:
            self._again(its, next_look_us(its.created_us, self._now_us()), "unanswered")
        else:
            try:
                now = self._kept.seen(its, produced)
            except OutboxUnavailable:
                now = its
            output = output_to_read(now)
            if now.due_us is None:
                self._counted["over"].inc()
            elif output is not None:
                await self._read_lines(now, output)
            else:
                self._again(now, next_look_us(its.created_us, self._now_us()), "running")

    async def _read_lines(self, batch: StoredObject, output: str) -> None:
        """An ended batch whose sums do not tell what it cost."""
        status, body = await self._shown(batch, ObjectKind.FILE, output)
        if status == 200:
            with contextlib.suppress(OutboxUnavailable):
                await self._kept.read_lines(batch, body)
                self._counted["over"].inc()
                return
        gone = status in (404, TOO_LARGE)
        due_us = None if gone else next_look_us(batch.created_us, self._now_us())
        self._again(batch, due_us, "gone" if gone else "unanswered")

    def _again(self, its: StoredObject, due_us: int | None, result: str) -> None:
        if due_us is None and result != "gone":
            result = "given_up"
            self._log.warning("late_charge_stays_presumed", kind=its.kind.value, object=its.id, root=its.root)
        self._counted[result].inc()
        self._objects.put([msgspec.structs.replace(its, due_us=due_us)])

    async def _shown(self, its: StoredObject, kind: ObjectKind, id_: str) -> tuple[int, bytes]:
        """Status and body of what the provider shows; 0 if it does not answer, or is configured no more."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await self._ask(its, kind, id_)
        except (UpstreamError, TimeoutError):
            return 0, b""

    async def _ask(self, its: StoredObject, kind: ObjectKind, id_: str) -> tuple[int, bytes]:
        provider = self._settings.providers.get(its.provider)
        route = _ROUTES.get(kind)
        if provider is None or route is None or provider.dialect != route.endpoint.dialect:
            return 0, b""
        call = kept_call(Named(route, id_), b"", model=its.model)
        headers = provider_headers(
            route.endpoint.dialect,
            key=self._attempts.provider_keys.get(its.provider),
            request_id=f"req_{secrets.token_hex(16)}",
            azure=provider.azure_api_version is not None,
        )
        path = upstream_path(call, provider, its.upstream_model)
        response = await self._attempts.upstreams[its.provider].send(its.provider, path, headers, b"", route.method)
        try:
            stated = response.headers.get("content-length", "")
            if stated.isdigit() and int(stated) > SHOWN_BYTES_MAX:
                return TOO_LARGE, b""
            return response.status, await response.read(SHOWN_BYTES_MAX)
        finally:
            response.close()


def output_to_read(its: StoredObject) -> str | None:
    """The output file of an ended batch that is still due, so that its lines have to tell what it cost."""
    if its.kind is not ObjectKind.BATCH or its.due_us is None:
        return None
    seen = read_seen(its.seen.encode())
    return None if seen is None or seen.status not in ENDED else seen.output_file_id
