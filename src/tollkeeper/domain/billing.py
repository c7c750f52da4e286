"""What the billing cache takes and answers: amounts in USD as callers write them, holds, and where a key stands.

It knows nothing of stores, databases or entries.
"""

from decimal import Decimal
from typing import Final

import msgspec

from tollkeeper.domain.admission import Checks, Denial, Grant, LimitKind, LimitState, Refusal, Reply, limit_states
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import usd_from_nano
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Policy, Principal, Scope, ScopeKind


class Standing(msgspec.Struct, frozen=True):
    """Where a key stands: true exactly if no hard budget above it is used up (and has room for what was asked).

    `budgets` are those of key, team and organisation, in nano-dollars; soft ones are `shadow` and refuse nothing.
    """

    within: bool
    budgets: tuple[LimitState, ...]

    def __bool__(self) -> bool:
        return self.within

    @property
    def remaining_usd(self) -> Decimal | None:
        """The least that a hard budget still has; None if there is none."""
        left = min((b.remaining for b in self.budgets if not b.shadow), default=None)
        return None if left is None else usd_from_nano(left)


class Hold(msgspec.Struct, frozen=True):
    """Money set aside, true exactly if it was: then it must end in one `settle` or `void`.

    If it was not, `refusal` says which budget refused, and when it starts anew (`wait_us`).
    """

    key_id: str
    amount_usd: Decimal
    outcome: Grant | Denial

    def __bool__(self) -> bool:
        return isinstance(self.outcome, Grant)

    @property
    def refusal(self) -> Refusal | None:
        """Why not, if it was not."""
        return self.outcome.refusal if isinstance(self.outcome, Denial) else None

    @property
    def grant(self) -> Grant:
        """What the ledger settles. Raises InvalidInput for a hold that was refused."""
        if not isinstance(self.outcome, Grant):
            raise InvalidInput(f"the hold of {self.amount_usd} USD for {self.key_id} was refused: nothing to end")
        return self.outcome


def money_alone(principal: Principal) -> Principal:
    """The principal with nothing but its budgets: windows and concurrency are not the billing cache's."""
    scopes = tuple(Scope(s.kind, s.id, Policy(budgets=s.policy.budgets)) for s in principal.scopes)
    return msgspec.structs.replace(principal, scopes=scopes)


def standing(checks: Checks, reply: Reply, asked_nano: int = 0) -> Standing:
    """Whether `asked_nano` more would fit every hard budget; of one that is used up nothing does."""
    budgets = tuple(s for s in limit_states(checks, reply, with_shadow=True) if s.kind is LimitKind.BUDGET)
    within = all(b.used < b.limit and b.used + asked_nano <= b.limit for b in budgets if not b.shadow)
    return Standing(within, budgets)


def monthly_spent(checks: Checks, reply: Reply) -> int:
    """The key's own spend of the month, in nano-dollars, without what is held."""
    return next(
        money.spent
        for check, money in zip(checks.counters, reply.counters, strict=True)
        if check.scope is ScopeKind.KEY and check.span.period is Period.MONTH
    )


IDEMPOTENCY_KEY_MAX: Final = 255
"""As Stripe has it."""


def check_idempotency_key(key: str) -> None:
    """Raises InvalidInput for what is not 1 to 255 characters of text."""
    if not isinstance(key, str) or not 1 <= len(key) <= IDEMPOTENCY_KEY_MAX:
        raise InvalidInput(f"idempotency_key: give a str of 1 to {IDEMPOTENCY_KEY_MAX} characters, not {key!r:.40}")


def month_counter(key_id: str, year: int, month: int) -> str:
    """The name of a key's counter of a month. Raises InvalidInput for what is no month."""
    for what, value, least, most in (("year", year, 1970, 9999), ("month", month, 1, 12)):
        if type(value) is not int or not least <= value <= most:
            raise InvalidInput(f"{what}: {value!r} is not a whole number from {least} to {most}")
    return f"{key_id}:{year}:{month:02d}"
