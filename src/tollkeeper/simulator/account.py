"""The account of what was served: exact totals, a bounded list, and a journal on disk. Knows nothing of HTTP.

What is billed:
- An answer that was produced whole is billed whole, also if a fault then spoils it on the wire (`truncate` or
  `bad_json` of an answer that is not streamed, `no_usage`, `close`, `huge_header`).
- A stream that is cut, by a fault or because the client is gone, is billed as providers do: its input, its reasoning
  and one output token for each content chunk written until then.
- A request that ended before the first byte of its answer (client gone during the delay; `reset`, `garbage` and
  `stall` without `after`) and every error is listed, without usage, and billed nothing.

Every request to a served path has exactly one entry. It is written before the answer's last byte, journal included.
"""

import os
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.domain.usage import Usage

REQUESTS_KEPT: Final = 100_000
"""The list keeps this many requests, the latest; totals and journal have all of them."""
TOTALS_MAX: Final = 100_000
"""Pairs of model and user; those that come later share the pair (`*`, `*`)."""
_REST: Final = ("*", "*")


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asked for what. `request_id` is the `x-request-id` header received, empty without one."""

    path: str
    model: str
    user: str
    request_id: str
    streamed: bool


class ServedRequest(msgspec.Struct, frozen=True, gc=False):
    """One request. `status` 0: no answer was begun. `usage` None: none was produced, nothing is billed.

    `completed`: the answer was produced and written whole, if maybe spoilt. `cut_at_chunk`: content chunks written
    when a stream was cut.
    """

    sequence: int
    time_us: int
    path: str
    model: str
    user: str
    request_id: str
    streamed: bool
    status: int
    completed: bool
    cut_at_chunk: int | None
    usage: Usage | None


class Totals(msgspec.Struct):
    """Sums over billed requests. `cut` of them did not complete. Tokens as in the project's `Usage`."""

    requests: int = 0
    cut: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    audio_ms: int = 0
    characters: int = 0
    searches: int = 0

    def add(self, usage: Usage, *, cut: bool) -> None:
        """Count one request."""
        self.requests += 1
        self.cut += cut
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cached_tokens += usage.cached_tokens
        self.cache_write_tokens += usage.cache_write_tokens
        self.reasoning_tokens += usage.reasoning_tokens
        self.images += usage.images
        self.audio_ms += usage.audio_ms
        self.characters += usage.characters
        self.searches += usage.searches

    def merge(self, other: "Totals") -> None:
        """Add another's sums."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class TotalsRow(Totals, kw_only=True):
    """The totals of a model and a user."""

    model: str
    user: str


class Page(msgspec.Struct, frozen=True):
    """Requests with `sequence > since`, oldest first. `oldest` is the first sequence still kept, 0 if none is."""

    requests: list[ServedRequest]
    oldest: int
    last: int


class Summary(msgspec.Struct, frozen=True):
    """All totals. `answered` counts requests by status, billed or not; `0` stands for those without an answer."""

    last: int
    total: Totals
    rows: list[TotalsRow]
    answered: dict[str, int]


class Account:
    """What one simulator served since its start or the last `reset`.

    `totals` is by (model, user). An entry that the journal's disk does not take raises OSError and counts nowhere.
    """

    def __init__(self, *, journal: Path | None, now_us: Callable[[], int]) -> None:
        self.totals: dict[tuple[str, str], Totals] = {}
        self.requests: deque[ServedRequest] = deque(maxlen=REQUESTS_KEPT)
        self.answered: Counter[int] = Counter()
        self.last = 0
        self._now_us = now_us
        self._journal_path = journal
        self._journal = -1

    def __repr__(self) -> str:
        return f"<Account last={self.last} {self.total()}>"

    def open(self) -> None:
        """Open the journal, if there is one, to append to."""
        if self._journal_path is not None:
            self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        """Close the journal. The account stays readable."""
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def record(
        self,
        caller: Caller,
        usage: Usage | None,
        *,
        status: int,
        completed: bool = True,
        cut_at_chunk: int | None = None,
    ) -> None:
        """Enter one request: to be called before its last byte is written."""
        entry = ServedRequest(
            self.last + 1,
            self._now_us(),
            caller.path,
            caller.model,
            caller.user,
            caller.request_id,
            caller.streamed,
            status,
            completed,
            cut_at_chunk,
            usage,
        )
        if self._journal >= 0:
            self._append(msgspec.json.encode(entry) + b"\n")
        self.last += 1
        self.requests.append(entry)
        self.answered[status] += 1
        if usage is not None:
            self._totals_of((caller.model, caller.user)).add(usage, cut=not completed)

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._journal, line) :]

    def _totals_of(self, pair: tuple[str, str]) -> Totals:
        totals = self.totals.get(pair)
        if totals is None:
            if len(self.totals) >= TOTALS_MAX:
                pair = _REST
            totals = self.totals.setdefault(pair, Totals())
        return totals

    def total(self) -> Totals:
        """The sums over all models and users."""
        total = Totals()
        for totals in self.totals.values():
            total.merge(totals)
        return total

    def reset(self) -> None:
        """Forget totals and list. Sequence numbers go on, the journal stays."""
        self.totals.clear()
        self.requests.clear()
        self.answered.clear()

    def summary(self) -> Summary:
        """The totals as GET /sim/served shows them, ordered by model and user."""
        rows = [
            TotalsRow(**msgspec.structs.asdict(totals), model=model, user=user)
            for (model, user), totals in sorted(self.totals.items())
        ]
        answered = {str(status): count for status, count in sorted(self.answered.items())}
        return Summary(self.last, self.total(), rows, answered)

    def since(self, sequence: int, limit: int) -> Page:
        """At most `limit` requests after a sequence number."""
        oldest = self.requests[0].sequence if self.requests else 0
        first = max(0, sequence + 1 - oldest)
        return Page(list(islice(self.requests, first, first + limit)), oldest, self.last)


def cut_usage(usage: Usage, chunks: int) -> Usage:
    """What is billed of a stream cut after `chunks` content chunks."""
    output = usage.reasoning_tokens + chunks
    return msgspec.structs.replace(usage, output_tokens=min(usage.output_tokens, output))
