"""What a gateway has counted since it started, all its workers together, read from the page that Prometheus reads.

It costs nothing and needs neither database nor log store, so it is there when they are not. Pure.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from tollkeeper.observability.samples import samples

REASONS_SHOWN: Final = 12


class Counted(msgspec.Struct, frozen=True):
    """Requests by class of status; refusals by `scope limit` and errors by name, the most frequent first; seconds
    that half, and 95%, of the requests took at most: a bound of the histogram, None without requests or above it."""

    requests: int
    by_status: dict[str, int]
    refusals: list[tuple[str, int]]
    errors: list[tuple[str, int]]
    half_s: float | None
    most_s: float | None

    @property
    def refused(self) -> int:
        """By limits and budgets."""
        return sum(count for _, count in self.refusals)


def counted(exposition: bytes) -> Counted:
    """Sum up the page."""
    statuses = _by(exposition, "tollkeeper_requests_total", "status")
    buckets = _by(exposition, "tollkeeper_request_seconds_bucket", "le")
    return Counted(
        requests=sum(statuses.values()),
        by_status=dict(sorted(statuses.items())),
        refusals=_by(exposition, "tollkeeper_refusals_total", "scope", "kind").most_common(REASONS_SHOWN),
        errors=_by(exposition, "tollkeeper_request_errors_total", "fault").most_common(REASONS_SHOWN),
        half_s=quantile_s(buckets, 0.5),
        most_s=quantile_s(buckets, 0.95),
    )


def quantile_s(buckets: Mapping[str, int], share: float) -> float | None:
    """The smallest bound that this share of the values does not exceed; buckets are cumulative, by bound."""
    ascending = sorted((float(bound), count) for bound, count in buckets.items())
    if not ascending or not ascending[-1][1]:
        return None
    bound = next(bound for bound, count in ascending if count >= share * ascending[-1][1])
    return None if bound == float("inf") else bound


def _by(exposition: bytes, name: str, *labels: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for values, count in samples(exposition, name):
        found[" ".join(values[label] for label in labels)] += int(count)
    return Counter({key: count for key, count in found.items() if count or name.endswith("_bucket")})
