"""Accounts, limits and usage as plain values: the one form in which the admin API and the command line print them.

Money is a string in USD, time is RFC 3339 in UTC, durations are seconds. Nothing secret passes through here.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tollkeeper.domain.accounts import Key, MonthlyUsage, MonthTotals, Organisation, Team
from tollkeeper.domain.admission import LimitKind, LimitState
from tollkeeper.domain.audit import AuditEvent
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.log_account import NumberRange, PipelineStats, ProducerReport, VerifyReport, count
from tollkeeper.domain.money import usd
from tollkeeper.domain.operators import AdminToken
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.policy import Policy, ScopeKind, Unit
from tollkeeper.domain.policy_change import bucket_text, per_minute, warn_texts, window_text

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Words = dict[str, Any]


def instant(time_us: int | None) -> str | None:
    """Unix µs → `2026-11-23T19:34:41Z`, rounded down to the second."""
    if time_us is None:
        return None
    return (_EPOCH + timedelta(seconds=time_us // US_PER_S)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _still(until_us: int | None, now_us: int) -> str | None:
    return None if until_us is None or until_us <= now_us else instant(until_us)


def time_us_from(text: str, *, what: str) -> int:
    """RFC 3339 or a date (00:00 UTC) → Unix µs. Raises InvalidInput; a time without its zone is refused."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f'{what}: {text!r} is not a date; write "2026-12-31" or "2026-12-31T12:00:00Z"') from None
    if moment.tzinfo is None:
        if len(text) > len("2026-12-31"):
            raise InvalidInput(f"{what}: {text!r} does not say its zone; add Z for UTC")
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def month_from(text: str) -> tuple[int, int]:
    """`2026-11` → (2026, 11). Raises InvalidInput."""
    year, _, month = text.partition("-")
    if len(year) != 4 or not year.isdecimal() or not month.isdecimal() or not 1 <= int(month) <= 12:
        raise InvalidInput(f'month: {text!r} is not a month; write it like "2026-11"')
    return int(year), int(month)


def policy_words(policy: Policy) -> Words:
    """Limits in the words of `PolicyChange`; `windows` are those that are more than rpm and tpm."""
    return {
        "rpm": per_minute(policy, Unit.REQUESTS),
        "tpm": per_minute(policy, Unit.TOKENS),
        "max_parallel": policy.concurrency,
        "budgets": {b.period.value: usd(b.limit_nano) for b in policy.budgets if not b.soft},
        "soft_budgets": {b.period.value: usd(b.limit_nano) for b in policy.budgets if b.soft},
        "warn_at": {
            period.value: texts
            for period in dict.fromkeys(b.period for b in policy.budgets)
            if (texts := [text for b in policy.budgets if b.period is period for text in warn_texts(b)])
        },
        "raises": {
            b.period.value: {"amount_usd": usd(b.raised.amount_nano), "until": instant(b.raised.until_us)}
            for b in policy.budgets
            if b.raised is not None
        },
        "cost_cap_usd": None if policy.cost_cap_nano is None else usd(policy.cost_cap_nano),
        "models": None if policy.models is None else list(policy.models),
        "max_parallel_shadow": policy.concurrency_shadow,
        "log_bodies": None if policy.log_bodies is None else policy.log_bodies.value,
        "buckets": [bucket_text(b) for b in policy.buckets],
        "windows": [window_text(w) for w in policy.windows if not w.is_plain_minute],
    }


def key_words(key: Key, now_us: int) -> Words:
    """A key; `hint` is the end of its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(now_us),
        "hint": key.hint,
        "organisation_id": key.organisation_id,
        "team_id": key.team_id,
        "created_at": instant(key.created_us),
        "expires_at": instant(key.expires_us),
        "revoked_at": instant(key.revoked_us),
        "previous_secret_until": _still(key.previous_until_us, now_us),
        "limits": policy_words(key.policy),
    }


def team_words(team: Team) -> Words:
    """A team."""
    return {
        "id": team.id,
        "name": team.name,
        "organisation_id": team.organisation_id,
        "created_at": instant(team.created_us),
        "limits": policy_words(team.policy),
    }


def organisation_words(organisation: Organisation) -> Words:
    """An organisation."""
    return {
        "id": organisation.id,
        "name": organisation.name,
        "created_at": instant(organisation.created_us),
        "limits": policy_words(organisation.policy),
    }


def admin_token_words(token: AdminToken, now_us: int) -> Words:
    """A token of the admin API; `hint` is the end of its secret."""
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.value,
        "owns": list(token.owns),
        "state": token.state(now_us),
        "hint": token.hint,
        "created_at": instant(token.created_us),
        "expires_at": instant(token.expires_us),
        "revoked_at": instant(token.revoked_us),
        "previous_secret_until": _still(token.previous_until_us, now_us),
    }


def audit_words(event: AuditEvent) -> Words:
    """One change; `before` and `after` are of a change only what differs."""
    author = event.author
    return {
        "id": event.id,
        "at": instant(event.at_us),
        "actor_id": author.id,
        "actor_name": author.name,
        "source": author.source,
        "address": author.address,
        "request_id": author.request_id,
        "action": event.action,
        "object_id": event.object_id,
        "before": event.before,
        "after": event.after,
    }


def usage_words(row: MonthlyUsage, key_name: str | None) -> Words:
    """One month of one key. Money exact, in USD and in nano-dollars."""
    return {
        "key_id": row.key_id,
        "key_name": key_name,
        "month": f"{row.year}-{row.month:02d}",
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cached_tokens": row.cached_tokens,
        "cost_usd": usd(row.cost_nano),
        "cost_nano": row.cost_nano,
        "updated_at": instant(row.updated_us),
    }


def month_words(kind: ScopeKind, row: MonthTotals) -> Words:
    """One month of a key, team or organisation. Money exact, in USD and in nano-dollars."""
    return {
        "id": row.id,
        f"{kind.value}_id": row.scope_id,
        f"{kind.value}_name": row.name,
        "month": f"{row.year}-{row.month:02d}",
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cached_tokens": row.cached_tokens,
        "cost_usd": usd(row.cost_nano),
        "cost_nano": row.cost_nano,
        "updated_at": instant(row.updated_us),
    }


def limit_words(state: LimitState) -> Words:
    """One limit now. Budgets are in USD and count what is held; the others are whole numbers."""
    money = state.kind is LimitKind.BUDGET
    amount = usd if money else int
    return {
        "limit_kind": state.kind.value,
        "scope": state.scope.value,
        "period": None if state.period is None else state.period.value,
        "rate": state.rate,
        "window_s": None if state.window_us is None else state.window_us / US_PER_S,
        "unit": "usd" if money else state.kind.value,
        "limit": str(amount(state.limit)),
        "used": str(amount(state.used)),
        "held": str(amount(state.held)),
        "remaining": str(amount(state.remaining)),
        "reset_s": None if state.reset_us is None else state.reset_us / US_PER_S,
        "model": state.model,
        "per_user": state.per_user,
        "shadow": state.shadow,
    }


def proof_words(report: VerifyReport, ranges_max: int | None = None) -> Words:
    """The proof, producer by producer: `<kind>` as ranges of numbers, `counts` how many numbers they are.

    With `ranges_max` only so many ranges of a kind are named, the first ones.
    """
    return {
        "complete": report.complete,
        "objects": report.objects,
        "records": report.records,
        "unreadable": list(report.unreadable[:ranges_max]),
        "producers": {name: _producer_words(found, ranges_max) for name, found in report.producers.items()},
    }


def _producer_words(found: ProducerReport, ranges_max: int | None) -> Words:
    kinds: dict[str, tuple[NumberRange, ...]] = {
        "gaps": found.gaps,
        "doubles": found.doubles,
        "dropped": found.dropped,
        "taken": found.taken,
        "pending": found.pending,
        "retired": found.retired,
    }
    return {
        "records": found.records,
        "last": found.last,
        "missing": found.missing,
        "counts": {kind: count(ranges) for kind, ranges in kinds.items()},
        **{kind: [list(span) for span in ranges[:ranges_max]] for kind, ranges in kinds.items()},
    }


def log_stats_words(stats: PipelineStats) -> Words:
    """The account of this process's records, and the queue, which may be shared."""
    queue = stats.queue
    return {
        "produced": stats.produced,
        "delivered": stats.delivered,
        "dropped": stats.dropped,
        "pending": stats.pending,
        "replaced": stats.replaced,
        "failures": stats.failures,
        "conflicts": stats.conflicts,
        "spooled_bytes": stats.spooled_bytes,
        "last_delivered_at": instant(stats.last_delivered_us),
        "last_error": stats.last_error,
        "queue": {
            "records": queue.size,
            "bytes": queue.bytes,
            "records_max": stats.records_max,
            "bytes_max": stats.bytes_max,
            "fill": round(stats.fill, 4),
            "leased": queue.leased,
            "batches": queue.leases,
            "delivered": queue.delivered,
            "taken": queue.taken,
            "dropped": queue.dropped,
            "lost": queue.lost,
            "bodies_shed": queue.shed,
            "oldest_age_s": max(0, queue.now_us - queue.oldest_us) / US_PER_S if queue.oldest_us else 0.0,
        },
    }
