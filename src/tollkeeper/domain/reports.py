"""Usage reports over log records: what may be asked, and the shape of the answer. Pure; no SQL is made here.

Reports come from the records, which know model, provider, tag and end user of every request. They say what was
charged when a request ended; corrections made later are in the ledger's months alone (`/usage`), which are exact.
"""

from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import usd

DIMENSIONS: Final = (
    *("day", "hour", "key", "team", "organisation", "model", "provider", "tag", "user"),
    *("endpoint", "status", "error", "refused_by"),
)
GROUPS_MAX: Final = 3
ROWS_MAX: Final = 10_000
INTERVAL_US_MAX: Final = 366 * 86_400 * 1_000_000
TIMES: Final = ("day", "hour")


class ReportFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which records count; None asks for nothing. Keys, teams and organisations are ids; `owned` are ids of such, to
    one of which a record must belong."""

    key: str | None = None
    team: str | None = None
    organisation: str | None = None
    model: str | None = None
    provider: str | None = None
    tag: str | None = None
    user: str | None = None
    owned: tuple[str, ...] | None = None


class ReportQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Records of [since_us, until_us) that fit, summed by `group_by`; at most `limit` groups: the earliest if the
    first group is a time, else the dearest. Raises InvalidInput for what no report can be."""

    since_us: int
    until_us: int
    group_by: tuple[str, ...] = ()
    filters: ReportFilters = ReportFilters()
    limit: int = 100

    def __post_init__(self) -> None:
        unknown = [name for name in self.group_by if name not in DIMENSIONS]
        if unknown or len(self.group_by) > GROUPS_MAX or len(set(self.group_by)) != len(self.group_by):
            raise InvalidInput(f"group_by: at most {GROUPS_MAX} different ones of {', '.join(DIMENSIONS)}")
        if not 0 <= self.since_us < self.until_us:
            raise InvalidInput("since: must be before until")
        if self.until_us - self.since_us > INTERVAL_US_MAX:
            raise InvalidInput("since: a report covers at most 366 days")
        if not 1 <= self.limit <= ROWS_MAX:
            raise InvalidInput(f"limit: must be from 1 to {ROWS_MAX}")


class ReportRow(msgspec.Struct, frozen=True):
    """Sums of one group; `group` are its values in the order of `group_by`. Percentiles (µs) are of answered
    requests; None where there were none."""

    group: tuple[Any, ...]
    requests: int
    refused: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nano: int
    total_us_p50: int | None
    total_us_p95: int | None
    first_byte_us_p50: int | None
    first_byte_us_p95: int | None


class Report(msgspec.Struct, frozen=True):
    """`total` is over all records that fit, also of groups above the limit. A request counts for each of its tags."""

    rows: list[ReportRow]
    total: ReportRow
    has_more: bool
    objects: int


FIELDS: Final[dict[str, str]] = {
    "key": "key_id",
    "team": "team_id",
    "organisation": "organisation_id",
}
"""What a group is called in an answer, if not as itself."""


def report_words(query: ReportQuery, row: ReportRow) -> dict[str, Any]:
    """A row with its group. Money in USD and nano-dollars, times in milliseconds."""
    words = {FIELDS.get(name, name): value for name, value in zip(query.group_by, row.group, strict=False)}
    for name in ("requests", "refused", "errors", "input_tokens", "output_tokens", "cached_tokens"):
        words[name] = getattr(row, name)
    words |= {"cost_usd": usd(row.cost_nano), "cost_nano": row.cost_nano}
    for name in ("total_us_p50", "total_us_p95", "first_byte_us_p50", "first_byte_us_p95"):
        value = getattr(row, name)
        words[name.replace("_us_", "_ms_")] = None if value is None else round(value / 1000, 1)
    return words
