"""The admin API's requests and answers as pydantic models, and the way from a request to the domain's change.

A field that a request leaves out stays as it is; null removes.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from tollkeeper.domain import policy as policies
from tollkeeper.domain.accounts import UNCHANGED, PolicyEdit, Unchanged
from tollkeeper.domain.bodies import BodyLogging
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import MoneyError, nano_from_usd
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import UNLIMITED, Policy
from tollkeeper.domain.policy_change import PolicyChange, bucket_from, changed, warn_from, window_from
from tollkeeper.domain.words import time_us_from

Usd = Annotated[str, Field(description='An amount in USD as a string, like "25.00".', examples=["25.00"])]
Time = Annotated[str, Field(description="RFC 3339, or a date: 00:00 UTC.", examples=["2026-12-31T00:00:00Z"])]


class Request(BaseModel):
    """What a client sends: unknown fields are refused, numbers must be numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self, field: str) -> Any:
        """The field's value, or UNCHANGED if the request left it out."""
        return getattr(self, field) if field in self.model_fields_set else UNCHANGED


class Raise(Request):
    """More for a while, on top of a budget."""

    amount_usd: Usd
    until: Time

    def read(self, where: str) -> policies.Raise:
        """Raises InvalidInput."""
        amount = _nano(self.amount_usd, f"{where}.amount_usd")
        assert isinstance(amount, int)
        return policies.Raise(amount, time_us_from(self.until, what=f"{where}.until"))


class LimitsChange(Request):
    """Limits to set; null removes one, what is left out stays."""

    rpm: int | None = Field(None, description="Requests in any minute.", examples=[60])
    tpm: int | None = Field(None, description="Tokens in any minute.", examples=[100_000])
    max_parallel: int | None = Field(None, description="Requests in flight.", examples=[10])
    budgets: dict[str, Usd | None] | None = Field(
        None,
        description='Period (day, week, month, total) to amount in USD, like {"month": "25.00"}; null removes.',
        examples=[{"month": "25.00"}],
    )
    cost_cap_usd: Usd | None = Field(None, description="The most that one request may cost.")
    models: list[str] | None = Field(None, description="Allowed models; `*` is a wildcard.", examples=[["gpt-*"]])
    windows: list[str] | None = Field(
        None,
        description="All limits but rpm and tpm: `requests=1000/1h`, with `,model=NAME`, `,per-user` (of the "
        "request's `user`, or the header `x-tollkeeper-user`) and `,shadow` (only reports) as wanted. Replaces those "
        "there were.",
        examples=[["requests=1000/1h", "tokens=2000000/1d,model=gpt-4o*,shadow"]],
    )
    buckets: list[str] | None = Field(
        None,
        description="Token buckets: `requests=600/100` is 600 a minute, at most 100 at once; options as in "
        "`windows`. Replaces those there were.",
        examples=[["requests=600/100", "tokens=100000/20000,per-user"]],
    )
    max_parallel_shadow: bool | None = Field(None, description="Only report requests above max_parallel.")
    log_bodies: Literal["off", "truncated", "full"] | None = Field(
        None, description="Request and response bodies in log records; null leaves it to the scope above."
    )
    soft_budgets: dict[str, Usd | None] | None = Field(
        None, description="As `budgets`, but these refuse nothing: they warn.", examples=[{"month": "20.00"}]
    )
    warn_at: dict[str, list[str] | None] | None = Field(
        None,
        description="Period to thresholds: percentages of its soft budget (its hard one, if it has no other), or "
        "amounts in USD. A soft budget warns at 50%, 80% and 100% if it does not say.",
        examples=[{"month": ["80%", "25.00"]}],
    )
    raises: dict[str, Raise | None] | None = Field(
        None, description="Period to what its budget is raised by for a while; replaces an earlier raise."
    )

    def applied(self, policy: Policy) -> Policy:
        """The policy with this change made. Raises InvalidInput, which names the field."""
        try:
            return self._applied(policy)
        except InvalidInput as error:
            raise InvalidInput(_placed(str(error))) from None

    def _applied(self, policy: Policy) -> Policy:
        models, windows, shadow = map(self.given, ("models", "windows", "max_parallel_shadow"))
        bodies, buckets = self.given("log_bodies"), self.given("buckets")
        policy = changed(
            policy,
            PolicyChange(
                rpm=self.given("rpm"),
                tpm=self.given("tpm"),
                max_parallel=self.given("max_parallel"),
                cost_cap_nano=_nano(self.given("cost_cap_usd"), "cost_cap_usd"),
                models=tuple(models) if isinstance(models, list) else models,
                windows=tuple(map(window_from, windows)) if isinstance(windows, list) else windows,
                buckets=tuple(map(bucket_from, buckets)) if isinstance(buckets, list) else buckets,
                max_parallel_shadow=False if shadow is None else shadow,
                log_bodies=BodyLogging(bodies) if isinstance(bodies, str) else bodies,
            ),
        )
        return self._with_raises(self._with_warnings(self._with_budgets(policy)))

    def _with_budgets(self, policy: Policy) -> Policy:
        for field in ("budgets", "soft_budgets"):
            soft, given = field == "soft_budgets", self.given(field)
            if given is None:
                kept = tuple(b for b in policy.budgets if b.soft is not soft)
                policy = msgspec.structs.replace(policy, budgets=kept)
            for period, amount in _by_period(given, field):
                nano = _nano(amount, f"limits.{field}.{period}")
                change = PolicyChange(soft_budget_nano=nano, period=period)
                policy = changed(policy, change if soft else PolicyChange(budget_nano=nano, period=period))
        return policy

    def _with_warnings(self, policy: Policy) -> Policy:
        given = self.given("warn_at")
        if given is None:
            given = {budget.period: None for budget in policy.budgets}
        for period, texts in _by_period(given, "warn_at"):
            warn_at = None if texts is None else warn_from(texts)
            policy = changed(policy, PolicyChange(warn_at=warn_at, period=period))
        return policy

    def _with_raises(self, policy: Policy) -> Policy:
        given = self.given("raises")
        if given is None:
            given = {budget.period: None for budget in policy.budgets}
        for period, more in _by_period(given, "raises"):
            raised = None if more is None else more.read(f"limits.raises.{period}")
            policy = changed(policy, PolicyChange(raised=raised, period=period))
        return policy


def _placed(message: str) -> str:
    """The rules of limits name them by themselves; here they are fields of `limits`."""
    name, colon, text = message.partition(": ")
    if not colon or " " in name or name.startswith("limits."):
        return message
    return f"limits.{_CALLED.get(name, name)}: {text}"


_CALLED: Final = {
    "limit": "windows",
    "bucket": "buckets",
    "raise": "raises",
    "budget": "budgets",
    "soft_budget": "soft_budgets",
}
"""As the command line calls them, and what they are called here."""


def _by_period(given: dict[str, Any] | Unchanged | None, field: str) -> Iterator[tuple[Period, Any]]:
    for name, value in given.items() if isinstance(given, dict) else ():
        if name not in tuple(Period):
            raise InvalidInput(f"limits.{field}: {name!r} is not a period; known are {', '.join(Period)}")
        yield Period(name), value


def _nano(amount: str | Unchanged | None, what: str) -> int | Unchanged | None:
    if amount is None or isinstance(amount, Unchanged):
        return amount
    try:
        return nano_from_usd(amount, what=what)
    except MoneyError as error:
        raise InvalidInput(str(error)) from None


class WithLimits(Request):
    """A request that may carry limits."""

    limits: LimitsChange | None = None

    def policy(self) -> Policy:
        """The policy of something new. Raises InvalidInput."""
        return UNLIMITED if self.limits is None else self.limits.applied(UNLIMITED)

    def edit(self) -> PolicyEdit | Unchanged:
        """What makes the new policy of the one there is; it raises InvalidInput."""
        return UNCHANGED if self.limits is None else self.limits.applied


class NewKeyRequest(WithLimits):
    """A key to create. Without an organisation or team it gets an organisation of its own."""

    name: str
    organisation: str | None = Field(None, description="Name or id.")
    team: str | None = Field(None, description="Name or id.")
    expires_at: Time | None = None

    def expires_us(self) -> int | None:
        """Raises InvalidInput."""
        return None if self.expires_at is None else time_us_from(self.expires_at, what="expires_at")


class KeyUpdateRequest(WithLimits):
    """Only what is named changes; null takes the key out of its team, or removes its expiry."""

    name: str = Field(default_factory=str, description="A key always has one.")
    team: str | None = Field(None, description="Name or id of a team of the same organisation.")
    expires_at: Time | None = None

    def expires_us(self) -> int | None | Unchanged:
        """Raises InvalidInput."""
        given = self.given("expires_at")
        return time_us_from(given, what="expires_at") if isinstance(given, str) else given


class NewTeamRequest(WithLimits):
    """A team to create. Without an organisation it gets one of its own, of the same name."""

    name: str
    organisation: str | None = Field(None, description="Name or id.")


class NewOrganisationRequest(WithLimits):
    """An organisation to create."""

    name: str


class LimitsUpdateRequest(WithLimits):
    """Limits of a team or organisation to change."""


class NewAdminTokenRequest(Request):
    """A token to create."""

    name: str = Field(description="Not that of another one.")
    role: Literal["admin", "viewer", "owner"] = Field(
        description="`admin` may do everything, `viewer` read everything, `owner` read what concerns its keys."
    )
    owns: list[str] = Field([], description="Of an owner: ids of keys, teams and organisations.")
    expires_at: Time | None = None

    def expires_us(self) -> int | None:
        """Raises InvalidInput."""
        return None if self.expires_at is None else time_us_from(self.expires_at, what="expires_at")


class AdminTokenUpdateRequest(Request):
    """Only what is named changes; null removes its expiry."""

    name: str = Field(default_factory=str)
    owns: list[str] = Field(default_factory=list)
    expires_at: Time | None = None

    def expires_us(self) -> int | None | Unchanged:
        """Raises InvalidInput."""
        given = self.given("expires_at")
        return time_us_from(given, what="expires_at") if isinstance(given, str) else given


class RotateRequest(Request):
    """How long the old secret goes on working."""

    overlap_s: float = Field(0.0, ge=0, le=30 * 86_400, description="Seconds; 0 ends it at once.", examples=[86400])


class Limits(BaseModel):
    """The limits in force; null and empty mean that there is none."""

    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    budgets: dict[str, Usd]
    soft_budgets: dict[str, Usd]
    warn_at: dict[str, list[str]] = Field(description="Where it is not what is usual.")
    raises: dict[str, Raise]
    cost_cap_usd: Usd | None
    models: list[str] | None
    windows: list[str] = Field(description="All limits but rpm and tpm, as in requests.")
    buckets: list[str] = Field(description="Token buckets, as in requests.")
    max_parallel_shadow: bool
    log_bodies: str | None = Field(description="Null: as the scope above says, at last `logs.bodies`.")


class Key(BaseModel):
    """A key without its secret; `hint` is the secret's end."""

    id: str
    name: str
    state: str = Field(description="`active`, `expired` or `revoked`.")
    hint: str
    organisation_id: str
    team_id: str | None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    previous_secret_until: Time | None = Field(description="Until then the secret before the last rotation works.")
    limits: Limits


class KeyWithSecret(Key):
    """The answer to create and rotate: the only place where the secret is ever shown."""

    secret: str


class Team(BaseModel):
    """A group of keys inside one organisation."""

    id: str
    name: str
    organisation_id: str
    created_at: Time
    limits: Limits


class Organisation(BaseModel):
    """The outermost scope."""

    id: str
    name: str
    created_at: Time
    limits: Limits


class AdminToken(BaseModel):
    """A token without its secret; `hint` is the secret's end."""

    id: str
    name: str
    role: Literal["admin", "viewer", "owner"]
    owns: list[str]
    state: str = Field(description="`active`, `expired` or `revoked`.")
    hint: str
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    previous_secret_until: Time | None = Field(description="Until then the secret before the last rotation works.")


class AdminTokenWithSecret(AdminToken):
    """The answer to create and rotate: the only place where the secret is ever shown."""

    secret: str


class Actor(BaseModel):
    """Whoever asks."""

    id: str
    name: str
    role: Literal["admin", "viewer", "owner"]
    owns: list[str]


class AuditEvent(BaseModel):
    """One change. Of a change `before` and `after` are what differs; secrets are never in them."""

    id: str
    at: Time
    actor_id: str = Field(description="An admin token, or `bootstrap`, `cli`, `library`.")
    actor_name: str
    source: str = Field(description="`api`, `dashboard`, `cli` or `library`.")
    address: str | None = Field(description="Where the request came from.")
    request_id: str | None
    action: str = Field(examples=["key.update"])
    object_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class MonthlyUsage(BaseModel):
    """One month of a key, team or organisation, as of `updated_at`; its fields are named by `by`."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(examples=["2026-11:key_abc"])
    month: str = Field(examples=["2026-11"])
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: Usd
    cost_nano: int
    updated_at: Time


class LimitState(BaseModel):
    """One limit now; amounts are strings, of USD for budgets, of whole numbers for the others."""

    limit_kind: str
    scope: str
    period: str | None
    window_s: float | None
    rate: int | None = Field(description="Of a token bucket, a minute; its limit is its burst.")
    unit: str
    limit: str
    used: str
    held: str
    remaining: str
    reset_s: float | None = Field(description="Until it is wholly free again, if time alone does that.")
    model: str | None = Field(description="The models that it counts, if not all.")
    per_user: bool
    shadow: bool = Field(description="Whether it only reports.")


class Listed(BaseModel):
    """A page. `has_more`: there are others; ask with `starting_after` for the next one."""

    has_more: bool


class Keys(Listed):
    """A page of keys."""

    data: list[Key]


class Teams(Listed):
    """A page of teams."""

    data: list[Team]


class Organisations(Listed):
    """A page of organisations, without those that single keys have of their own."""

    data: list[Organisation]


class AdminTokens(Listed):
    """A page of admin tokens."""

    data: list["AdminToken"]


class AuditEvents(Listed):
    """A page of changes, in the order in which they were committed."""

    data: list["AuditEvent"]


class Usage(Listed):
    """Months, the newest first. Rows also have `key_id` and `key_name`, or as `by` says."""

    data: list[MonthlyUsage]


class ReportSums(BaseModel):
    """Sums over records; percentiles are of requests that were answered well."""

    requests: int
    refused: int = Field(description="By a limit; only where `logs.refusals` is set.")
    errors: int = Field(description="Admitted, and ended with an error.")
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: Usd
    cost_nano: int
    total_ms_p50: float | None
    total_ms_p95: float | None
    first_byte_ms_p50: float | None
    first_byte_ms_p95: float | None


class ReportRow(ReportSums):
    """Sums of a group; also has the group's values (`model`, `day`, `key_id` and `key_name`, …)."""

    model_config = ConfigDict(extra="allow")


class UsageReport(BaseModel):
    """The dearest groups first; the earliest, if the first group is a time. `total` is over all groups."""

    since: Time
    until: Time
    group_by: list[str]
    data: list[ReportRow]
    has_more: bool = Field(description="Whether there are groups above `limit`.")
    total: ReportSums


class LimitStates(BaseModel):
    """Every limit that a key's requests are checked against."""

    key_id: str
    limits: list[LimitState]


class LogRecords(Listed):
    """Newest first. A page may be short, or empty, and still have a next one."""

    data: list[dict[str, Any]] = Field(description="As described in docs/log-schema.md.")
    next_cursor: str | None = Field(description="Give it as `starting_after` for the next page; null: there is none.")


class LogQueueState(BaseModel):
    """The queue, over all gateways if they share it; with Redis as it was a second ago."""

    records: int = Field(description="Kept, leased ones included.")
    bytes: int
    records_max: int
    bytes_max: int
    fill: float = Field(description="0 to 1; above 0.8 warns.")
    leased: int = Field(description="Records in batches that are being delivered.")
    batches: int
    delivered: int
    taken: int = Field(description="Handed to a reader of the queue.")
    dropped: int
    lost: int
    bodies_shed: int = Field(description="Records that lost their bodies because the queue was full.")
    oldest_age_s: float


class LogStats(BaseModel):
    """The log records of this gateway process, and the queue."""

    produced: int
    delivered: int = Field(description="By this process, whoever produced them.")
    dropped: int
    pending: int = Field(description="In this process's memory, and without Redis in its queue.")
    replaced: int = Field(description="Too large or not to be encoded: delivered cut short.")
    failures: int = Field(description="Tries to deliver that failed.")
    conflicts: int = Field(description="Objects that were there with other content.")
    spooled_bytes: int = Field(description="On disk while Redis is away.")
    last_delivered_at: Time | None
    last_error: str | None
    queue: LogQueueState


class NumberCounts(BaseModel):
    """How many numbers, by what became of them."""

    gaps: int
    doubles: int
    dropped: int
    taken: int
    pending: int
    retired: int


class ProducerProof(BaseModel):
    """The numbers 1 to `last` of one gateway's run. Ranges are [first, last], the first 1000 of each kind."""

    records: int = Field(description="Found in the store.")
    last: int
    missing: int = Field(description="Numbers in gaps.")
    counts: NumberCounts
    gaps: list[tuple[int, int]] = Field(description="Lost.")
    doubles: list[tuple[int, int]] = Field(description="Found more than once.")
    dropped: list[tuple[int, int]]
    taken: list[tuple[int, int]]
    pending: list[tuple[int, int]]
    retired: list[tuple[int, int]] = Field(description="Delivered, and deleted since by retention.")


class LogProof(BaseModel):
    """What became of every record. `complete`: none is lost or double, and every object can be read."""

    complete: bool
    objects: int
    records: int
    unreadable: list[str] = Field(description="Objects that are not whole, the first 1000.")
    producers: dict[str, ProducerProof]


class Synced(BaseModel):
    """The spend known to the store is in the database."""

    synced_at: Time


class BudgetState(BaseModel):
    """One budget in the period that runs."""

    period: Literal["day", "week", "month", "total"]
    period_starts_at: Time | None
    period_ends_at: Time | None
    budget_usd: Usd | None = Field(description="The hard budget with the raise that is in force.")
    soft_budget_usd: Usd | None
    spent_usd: Usd
    spent_nano: int
    remaining_usd: Usd = Field(description="Of the hard budget, or of the soft one if there is no other.")
    used_percent: float
    state: Literal["ok", "warned", "above_soft", "exhausted"]


class BudgetedScope(BaseModel):
    """A key, team or organisation with its budgets."""

    scope: Literal["key", "team", "organisation"]
    scope_id: str
    name: str
    organisation_id: str
    budgets: list[BudgetState]


class Budgets(Listed):
    """A page of scopes that have budgets."""

    data: list[BudgetedScope]


class Alert(BaseModel):
    """A threshold of a budget that was reached, and its message to the webhook."""

    id: str
    scope: Literal["key", "team", "organisation"]
    scope_id: str
    name: str | None = Field(description="Of the scope; null: it is gone.")
    organisation_id: str
    period: str = Field(examples=["2026:11"])
    period_ends_at: Time | None
    threshold_usd: Usd
    spent_usd: Usd
    budget_usd: Usd | None
    soft_budget_usd: Usd | None
    reached_at: Time
    delivery: Literal["none", "waiting", "retrying", "delivered", "given_up"]
    attempts: int
    delivered_at: Time | None
    next_attempt_at: Time | None
    failure: str | None = Field(description="Why the last attempt failed.")


class Alerts(Listed):
    """A page of alerts, newest first."""

    data: list[Alert]
    next_cursor: str | None


class Statistics(BaseModel):
    """Totals over all accounts; spend is of this month, as of `synced_at`."""

    organisations: int
    teams: int
    keys_active: int
    keys_expired: int
    keys_revoked: int
    admin_tokens: int
    alerts_undelivered: int
    cost_usd: Usd
    cost_nano: int
    requests: int
    input_tokens: int
    output_tokens: int
    synced_at: Time | None


class PartState(BaseModel):
    """A dependency."""

    ok: bool
    detail: str
    degraded: bool = Field(description="It is away, and the gateway serves without it, as its operator chose.")


class Health(BaseModel):
    """The gateway's state and version."""

    version: str
    ready: bool
    degraded: bool
    started_at: Time
    checks: dict[str, PartState]


class ErrorDetail(BaseModel):
    """`param` names the field at fault, if one is; `doc_url` leads to what the code means."""

    type: str
    code: str
    message: str
    param: str | None
    doc_url: str


class Error(BaseModel):
    """Every error of this API."""

    error: ErrorDetail
