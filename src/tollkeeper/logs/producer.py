"""Numbers records and brings them to the queue, in order, one chunk in flight; to the spool while the queue is away.

While a chunk is on its way the next records gather and become the next chunk, so chunks grow with the load and their
order needs no other care. A chunk whose answer was lost is simply brought again: the queue knows the numbers.

Once a chunk could not be brought in time, it and everything after it goes to the spool, on the tick in which it was
produced, until the spool has been brought to the queue, oldest first. Knows neither records' content nor where they
go from the queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tollkeeper.domain.errors import OutboxUnavailable, StoreUnavailable, Unavailable
from tollkeeper.domain.log_account import merged
from tollkeeper.domain.log_queue import Chunk, Gap, Kept, joined
from tollkeeper.logs.queues import Queue
from tollkeeper.logs.spool import Spool, orphans
from tollkeeper.observability.logging import logger

CHUNK_RECORDS_MAX: Final = 1000
CHUNK_BYTES_MAX: Final = 2**20
"""A chunk is closed once it is this large (one record may be larger)."""
PENDING_BYTES_MAX: Final = 16 * 2**20
"""Records in memory while a chunk is on its way; above it they go to the spool, or else the oldest are dropped."""
SPILL_CHUNKS: Final = 2
"""Chunks written to the spool in one turn of the loop: 16 MiB at once stopped every request for 20 ms or more."""
PUT_TIMEOUT_S: Final = 0.5
"""Slower than this, the queue is away for us: what is in memory only, a crash would lose."""
LINGER_S: Final = 0.002
"""Between two chunks, where nobody waits for a record to be kept."""
REPLAY_TIMEOUT_S: Final = 5.0
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0

_log = logger("logs")


class Producer:
    """One producer. `add` is synchronous, never waits and never fails.

    `on_kept` is told what the queue holds after each chunk, `on_dropped` how many records were given up here:
    because the spool is full, cannot be written, or is not there. `pending_bytes_max` bounds what waits in memory
    while a chunk is on its way, or before the start.
    """

    def __init__(
        self,
        name: str,
        queue: Queue,
        spool: Spool | None,
        *,
        pending_bytes_max: int = PENDING_BYTES_MAX,
        on_kept: Callable[[Kept], object] = lambda _: None,
        on_dropped: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.name = name
        self.number = 0
        self.brought = 0
        """The last number that the queue or the spool has."""
        self.dropped = 0
        self._told = 0  # the last number that the spool knows of
        self._queue, self._spool = queue, spool
        self._pending_bytes_max = pending_bytes_max
        self._on_kept, self._on_dropped = on_kept, on_dropped
        self._parts: list[bytes] = []
        self._bodies: list[bytes] = []
        self._bytes = self._body_bytes = 0
        self._flying: Chunk | None = None
        self._replayed = 0
        self._spooling = spool is not None and len(spool) > 0
        self._ending = False  # the last of the spool is on its way to the queue
        self._gaps: deque[tuple[int, int]] = deque()
        self._together: deque[tuple[int, int]] = deque()
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._scheduled = self._awaited = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.last_error: str | None = None

    def __repr__(self) -> str:
        return f"<Producer {self.name} number={self.number} brought={self.brought} spooling={self._spooling}>"

    @property
    def spooling(self) -> bool:
        """Whether records go to the spool."""
        return self._spooling

    @property
    def pending(self) -> int:
        """Records that only this process's memory has."""
        return len(self._parts) + (len(self._flying) if self._flying is not None else 0)

    def add(self, part: bytes, body: bytes = b"") -> int:
        """Take a record; its number."""
        number = self.number = self.number + 1
        if number > self._told:
            self._tell(number)
        self._parts.append(part)
        self._bodies.append(body)
        self._bytes += len(part) + len(body)
        if body:
            self._body_bytes += len(body)
        if not self._scheduled:
            if self._loop is None:
                if self._bytes > self._pending_bytes_max:
                    self._relieve("it was not started")
                return number
            self._scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._tick)
        return number

    def expect(self, count: int) -> None:
        """So many records are about to be added: if this process is killed before, they are told as lost."""
        self._tell(self.number + count)

    def _tell(self, number: int) -> None:
        self._told = number
        if self._spool is not None:
            self._spool.gave(number)

    def add_together(self, parts: Sequence[bytes]) -> int:
        """Take records that arrive all or none: at most CHUNK_RECORDS_MAX, of CHUNK_BYTES_MAX. The last number."""
        self._together.append((self.number + 1, self.number + len(parts)))
        for part in parts:
            self.add(part)
        return self.number

    @property
    def idle(self) -> bool:
        """Whether nobody brings what is added: it was not started, or was stopped."""
        return self._task is None

    def _tick(self) -> None:
        self._scheduled = False
        if self._spooling and not self._ending:
            self._spill_some()
        elif self._bytes > self._pending_bytes_max:
            self._relieve("the queue is slower than records come")
        self._wake.set()

    def _cut(self) -> Chunk:
        """The oldest pending records as a chunk."""
        parts = self._parts
        first = self.number - len(parts) + 1
        if len(parts) <= CHUNK_RECORDS_MAX and self._bytes <= CHUNK_BYTES_MAX:
            self._together.clear()
            chunk = Chunk(self.name, first, tuple(parts), tuple(self._bodies) if self._body_bytes else ())
            self._parts, self._bodies, self._bytes, self._body_bytes = [], [], 0, 0
            return chunk
        count = size = 0
        while count < min(len(parts), CHUNK_RECORDS_MAX) and (not count or size < CHUNK_BYTES_MAX):
            size += len(parts[count]) + len(self._bodies[count])
            count += 1
        count = self._whole(first, count)
        size = sum(map(len, parts[:count])) + sum(map(len, self._bodies[:count]))
        bodies = tuple(self._bodies[:count])
        body_bytes = sum(map(len, bodies))
        chunk = Chunk(self.name, first, tuple(parts[:count]), bodies if body_bytes else ())
        del parts[:count], self._bodies[:count]
        self._bytes -= size
        self._body_bytes -= body_bytes
        return chunk

    def _whole(self, first: int, count: int) -> int:
        """So many records of a chunk that no batch is cut."""
        while self._together and self._together[0][1] < first + count:
            self._together.popleft()
        if self._together and self._together[0][0] < first + count:
            start, end = self._together[0]
            return start - first if start > first else end - first + 1
        return count

    async def start(self) -> None:
        """Begin to bring what was added."""
        self._loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="log-producer")
        if self._parts:
            self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything added so far is in the queue."""
        await self._idle.wait()

    async def kept(self, number: int) -> None:
        """Wait until the record of that number is in the queue or in the spool. Raises StoreUnavailable if neither
        could be done. Cancelling changes nothing for the record."""
        if number <= self.brought:
            return
        self._awaited = True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((number, future))
        await future

    async def drain(self, timeout_s: float) -> None:
        """Bring what can be brought in that time."""
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.flush()

    def keep(self, chunks: Sequence[Chunk]) -> int:
        """What a queue that ends with this process still has: to the spool. Records that it did not take."""
        left = 0
        for chunk in chunks:
            try:
                if self._spool is None:
                    raise OutboxUnavailable("there is no spool")
                self._spool.append(chunk)
            except OutboxUnavailable as error:
                _log.error("log_spool_unwritable", producer=self.name, error=str(error), records=len(chunk))
                left += len(chunk)
        return left

    async def stop(self) -> int:
        """What is not in the queue goes to the spool. Records left: only this memory had them."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._spool is not None and self.pending:
            self._divert("stopped")
            self._spill()
        left = self.pending
        if self._spool is not None:
            self._tell(self.number)
            self._spool.close(remove=not left and not len(self._spool))
            self._spool = None
        return left

    # Bringing

    async def _run(self) -> None:
        delay_s = BACKOFF_MIN_S
        while True:
            try:
                if self._spooling:
                    await self._replay()
                elif self._parts or self._gaps:
                    await self._bring()
                else:
                    self._idle.set()
                    self._wake.clear()
                    await self._wake.wait()
                    self._idle.clear()
            except (Unavailable, TimeoutError) as error:
                self.last_error = str(error) or f"no answer within {REPLAY_TIMEOUT_S:g} s"
                await asyncio.sleep(delay_s)
                delay_s = min(BACKOFF_MAX_S, 2 * delay_s)
                continue
            delay_s = BACKOFF_MIN_S

    async def _bring(self) -> None:
        try:
            async with asyncio.timeout(PUT_TIMEOUT_S if self._spool is not None else None):
                await self._tell_gaps()
                if not self._parts:
                    return
                self._flying = self._cut()
                kept = await self._queue.put(self._flying)
        except (StoreUnavailable, TimeoutError) as error:
            if self._spool is None:
                self._give_up(error)
            elif not self._spooling:
                self._divert(str(error) or f"no answer within {PUT_TIMEOUT_S:g} s")
            return
        if self._flying is not None:
            self._has(self._flying.last)
            self._flying = None
        self.last_error = None
        self._on_kept(kept)
        # Whoever waits for a record wants it kept soon; else a chunk costs as much for one record as for twenty. And
        # a queue in memory answers at once: a burst of chunks must not stop the loop.
        full = self._bytes >= CHUNK_BYTES_MAX or len(self._parts) >= CHUNK_RECORDS_MAX
        await asyncio.sleep(0 if full or self._awaited else LINGER_S)

    def _has(self, last: int) -> None:
        self.brought = max(self.brought, last)
        while self._waiters and self._waiters[0][0] <= last:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)

    def _give_up(self, error: Exception) -> None:
        """No spool: whoever waits is told; the numbers are told later, unless they did arrive."""
        chunk, self._flying = self._flying, None
        if chunk is None:
            raise StoreUnavailable(str(error))
        self._drop(chunk.first, chunk.last, error)

    def _drop(self, first: int, last: int, error: Exception) -> None:
        self.dropped += last - first + 1
        self._on_dropped(last - first + 1)
        self._add_gap(first, last)
        self.brought = max(self.brought, last)
        waiters, self._waiters = self._waiters, deque()
        for number, future in waiters:
            if not first <= number <= last:
                self._waiters.append((number, future))  # what is on its way may still arrive
            elif not future.done():
                future.set_exception(StoreUnavailable(str(error)))

    def _add_gap(self, first: int, last: int) -> None:
        """What is on its way may be given up after younger records; gaps must be told in order all the same."""
        self._gaps = deque(merged([*self._gaps, (first, last)]))

    async def _tell_gaps(self) -> None:
        """Numbers are told in order: a gap before the first chunk after it."""
        next_number = self.number - len(self._parts) + 1
        while self._gaps and self._gaps[0][0] < next_number:
            first, last = self._gaps[0]
            await self._queue.note(Gap("dropped", self.name, first, last))
            self._gaps.popleft()

    def _relieve(self, why: str) -> None:
        """Too much waits in memory: to the spool, or, without one, the oldest are dropped until the rest fits."""
        if self._spool is not None:
            self._divert(why)
            return
        while self._parts and self._bytes > self._pending_bytes_max:
            chunk = self._cut()
            self._drop(chunk.first, chunk.last, StoreUnavailable(why))

    def _divert(self, why: str) -> None:
        """From now on to the spool, beginning with what is on its way: it may not have arrived."""
        assert self._spool is not None
        if not self._spooling:
            _log.warning("log_spool_begins", producer=self.name, why=why)
        self._spooling = True
        flying, self._flying = self._flying, None
        if flying is not None:
            self._append(flying)
        self._spill_some()

    def _spill_some(self) -> None:
        """A few chunks, and what is above the bound of memory; the rest in the next turns of the loop."""
        count = 0
        while self._parts and (count < SPILL_CHUNKS or self._bytes > self._pending_bytes_max):
            self._append(self._cut())
            count += 1
        if self._parts and self._loop is not None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def _spill(self) -> None:
        while self._parts:
            self._append(self._cut())

    def _append(self, chunk: Chunk) -> None:
        assert self._spool is not None
        try:
            forgotten = self._spool.append(chunk)
        except OutboxUnavailable as error:
            _log.error("log_spool_unwritable", producer=self.name, error=str(error), records=len(chunk))
            self._drop(chunk.first, chunk.last, error)
            return
        self._has(chunk.last)
        # Of a segment that was brought in part, what is in the queue is not lost.
        if forgotten is not None and forgotten[1] > self._replayed:
            first, last = max(forgotten[0], self._replayed + 1), forgotten[1]
            _log.error("log_spool_full", producer=self.name, first=first, last=last)
            self.dropped += last - first + 1
            self._on_dropped(last - first + 1)
            self._add_gap(first, last)

    async def _replay(self) -> None:
        """Bring the oldest segment to the queue; with the last one the spool ends.

        In few large chunks: small ones, one after the other, would be overtaken by what is spilled meanwhile.
        """
        spool = self._spool
        assert spool is not None
        if not self._scheduled:  # else the next turn's
            self._spill_some()
        chunks = [chunk for chunk in spool.oldest() if chunk.last > self._replayed]
        if len(spool) and not chunks:
            _log.error("log_spool_damaged", producer=self.name, numbers=spool.skip())
        spool.leaving = bool(chunks)
        try:
            for chunk in joined(chunks, CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX):
                # While the last of all is on its way, what comes waits in memory, as it does without a spool: under
                # load something always comes, and the spool would never end; and for no longer than it waits there.
                self._ending = chunk.last == spool.newest
                async with asyncio.timeout(PUT_TIMEOUT_S if self._ending else REPLAY_TIMEOUT_S):
                    while self._gaps and self._gaps[0][0] < chunk.first:
                        first, last = self._gaps[0]
                        await self._queue.note(Gap("dropped", self.name, first, last))
                        self._gaps.popleft()
                    self._on_kept(await self._queue.put(chunk))
                self._ending = False
                self._replayed = chunk.last
                spool.forget(chunk.last)
                if not len(spool):
                    break
                await asyncio.sleep(0)  # so that what came meanwhile has its turn: a queue may answer at once
        finally:
            self._ending = spool.leaving = False
        if not chunks:
            await asyncio.sleep(0)  # the turn that spills what came last must come, or this is asked for ever
        if not len(spool):
            self._spooling = False
            self.last_error = None
            _log.info("log_spool_ended", producer=self.name)


async def adopt(root: Path, queue_of: Callable[[str], Queue], bytes_max: int) -> int:
    """Bring what dead producers left in their spools to the queue and tell what they lost; how many there were.

    Raises StoreUnavailable; what is not done then is left for the next try.
    """
    adopted = 0
    for spool in orphans(root, bytes_max):
        done = False
        try:
            await _adopt_one(spool, queue_of(spool.producer))
            done = True
        finally:
            spool.close(remove=done)
        adopted += 1
    return adopted


async def _adopt_one(spool: Spool, queue: Queue) -> None:
    while len(spool):
        chunks = spool.oldest()
        for chunk in joined(chunks, CHUNK_RECORDS_MAX, CHUNK_BYTES_MAX):
            await queue.put(chunk)
        before = len(spool)
        spool.forget(chunks[-1].last if chunks else 0)
        if len(spool) == before:
            _log.error("log_spool_damaged", producer=spool.producer, numbers=spool.skip())
    if spool.last:
        lost = await queue.note(Gap("lost", spool.producer, 1, spool.last))
        _log.warning("log_producer_died", producer=spool.producer, last=spool.last, lost=lost)
