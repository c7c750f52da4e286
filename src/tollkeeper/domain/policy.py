"""The policy of a scope: its limits and budgets; and who a request belongs to.

A *scope* is a key, a team or an organisation. A key belongs to an organisation for life, its *root*; a key
created without one has an organisation of its own that has no policy and is not charged separately.
"""

from enum import StrEnum
from typing import Final

import msgspec

from tollkeeper.domain.periods import US_PER_S, Period

MINUTE_US: Final = 60 * US_PER_S


class ScopeKind(StrEnum):
    """The three levels a request is checked against."""

    KEY = "key"
    TEAM = "team"
    ORGANISATION = "organisation"


class Unit(StrEnum):
    """What a window counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class Window(msgspec.Struct, frozen=True):
    """At most `limit` units in every interval of `window_us`, wherever it starts."""

    unit: Unit
    limit: int
    window_us: int = MINUTE_US


class Budget(msgspec.Struct, frozen=True):
    """At most `limit_nano` nano-dollars spent and held in each period."""

    limit_nano: int
    period: Period = Period.MONTH


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits and budgets of one scope. The default allows everything.

    `concurrency` bounds requests in flight. `cost_cap_nano` bounds the cost of one request. `models` are the
    allowed names, with `*` as wildcard; None allows all.
    """

    windows: tuple[Window, ...] = ()
    concurrency: int | None = None
    budgets: tuple[Budget, ...] = ()
    cost_cap_nano: int | None = None
    models: tuple[str, ...] | None = None


UNLIMITED: Final = Policy()


class Scope(msgspec.Struct, frozen=True):
    """One level of a request's tree."""

    kind: ScopeKind
    id: str
    policy: Policy = UNLIMITED


class Principal(msgspec.Struct, frozen=True):
    """Who a request belongs to: an active key with all scopes above it, as authenticated.

    `scopes` runs from the key outwards; an organisation of the key's own is left out. `root` is the
    organisation's id. `revision` grows with every change of the key or a scope above it.
    """

    key_id: str
    key_name: str
    root: str
    scopes: tuple[Scope, ...]
    team_id: str | None = None
    expires_at_us: int | None = None
    revoked_at_us: int | None = None
    revision: int = 0

    @property
    def has_budget(self) -> bool:
        """Whether a hard budget or cost cap stands anywhere above the request, so that its cost must be bounded."""
        return any(s.policy.budgets or s.policy.cost_cap_nano is not None for s in self.scopes)

    @property
    def has_token_limit(self) -> bool:
        """Whether any scope counts tokens."""
        return any(w.unit is Unit.TOKENS for s in self.scopes for w in s.policy.windows)
