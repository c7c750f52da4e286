"""What LiteLLM's accounts become here: organisations, teams and keys with their policies; and what is lost.

A plan is made from plain values that `storage/litellm.py` has read; nothing is stored here. A limit or budget that
has no equal becomes a stricter one, or the key is left out; whatever else is lost, the plan says of whom.

What corresponds:

    LiteLLM                                             here
    organisation, its budget table                      organisation
    team; a team without one                            team; in an organisation of its own, of the team's name
    user with limits, for keys without a team           team of the user's name
    key (sha256 of its secret)                          key that the same secret opens
    rpm_limit, tpm_limit, max_parallel_requests         requests and tokens in any minute, requests in flight
    metadata.model_rpm_limit, model_tpm_limit           the same for one model
    max_budget, soft_budget with 1d, 7d, 30d or 1mo     hard and soft budget of a day, week (Monday) or month, in UTC
    … without a duration                                … in total
    spend of the current period                         an adjustment of that period
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_DOWN, Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from tollkeeper.domain.accounts import NAME_MAX
from tollkeeper.domain.admission import WEIGHT_MAX
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.money import NANO_MAX, NANO_PER_USD
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import COUNT_MAX, Budget, Policy, Unit, Window, validate_policy

DASHBOARD_TEAM: Final = "litellm-dashboard"
"""LiteLLM's own sessions are keys of this team."""
EVERY_MODEL: Final = frozenset(("all-proxy-models", "all-team-models"))
NO_MODEL: Final = "no-default-models"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DURATION: Final = re.compile(r"(\d{1,9})(mo|[smhdw])")
_DAY_S: Final = 86_400
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": _DAY_S, "w": 7 * _DAY_S, "mo": 30 * _DAY_S}
_SPANS: Final = {_DAY_S: Period.DAY, 7 * _DAY_S: Period.WEEK, 30 * _DAY_S: Period.MONTH}
"""What LiteLLM resets as these periods begin: at midnight, on Monday, on the first of the month."""


class Limits(msgspec.Struct, frozen=True):
    """What LiteLLM keeps beside a key, team, user or organisation. Amounts are decimal text, times Unix µs.

    `unknown` are its other settings that are in use, by name: they cannot be carried over.
    """

    max_budget: str | None = None
    soft_budget: str | None = None
    budget_duration: str | None = None
    budget_reset_us: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    models: tuple[str, ...] = ()
    model_rpm: Mapping[str, Any] = {}
    model_tpm: Mapping[str, Any] = {}
    spend: str = "0"
    blocked: bool = False
    unknown: tuple[str, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """An organisation, team or user."""

    id: str
    alias: str | None
    limits: Limits
    organisation: str | None = None


class Token(msgspec.Struct, frozen=True):
    """A key: `sha256` is what LiteLLM keeps of its secret, in hex."""

    sha256: str
    name: str | None
    alias: str | None
    limits: Limits
    user: str | None = None
    team: str | None = None
    organisation: str | None = None
    expires_us: int | None = None
    member_limited: bool = False
    """Whether the user's part of the team has limits of its own."""


class Snapshot(msgspec.Struct, frozen=True):
    """All that is read of a LiteLLM database."""

    organisations: tuple[Group, ...] = ()
    teams: tuple[Group, ...] = ()
    users: tuple[Group, ...] = ()
    tokens: tuple[Token, ...] = ()


class Spend(msgspec.Struct, frozen=True):
    """What a scope has spent of a budget's current period."""

    period: Period
    amount_nano: int


class PlannedGroup(msgspec.Struct, frozen=True):
    """An organisation or team to be. `source` names it in LiteLLM; a team's organisation is named by its name."""

    source: str
    name: str
    policy: Policy
    organisation: str | None = None
    spends: tuple[Spend, ...] = ()
    notes: tuple[str, ...] = ()


class PlannedKey(msgspec.Struct, frozen=True):
    """A key to be, or with `left_out` the reason why not. `team` is the source of a planned team."""

    sha256: str
    name: str
    hint: str
    policy: Policy
    team: str | None = None
    organisation: str | None = None
    expires_us: int | None = None
    spends: tuple[Spend, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """In the order in which they must be made."""

    organisations: tuple[PlannedGroup, ...]
    teams: tuple[PlannedGroup, ...]
    keys: tuple[PlannedKey, ...]


class _Closed(Exception):
    """Nothing may pass under these limits; says why. It never leaves this file."""


def plan_of(found: Snapshot, now_us: int) -> Plan:
    """What would be made of a LiteLLM database. The same database gives the same plan."""
    return _Planner(found, now_us).plan()


class _Planner:
    def __init__(self, found: Snapshot, now_us: int) -> None:
        self.found, self.now_us = found, now_us
        self.closed: dict[str, str] = {}  # source of a group → why nothing may pass under it
        self.organisations: dict[str, PlannedGroup] = {}
        self.teams: dict[str, PlannedGroup] = {}
        self.names: set[str] = set()

    def plan(self) -> Plan:
        for organisation, name in _named(self.found.organisations):
            self.names.add(name)
            self.organisations[organisation.id] = self._group(f"organisation {organisation.id}", name, organisation)
        for team, name in _named([team for team in self.found.teams if team.id != DASHBOARD_TEAM]):
            self._team(f"team {team.id}", name, team)
        for user, name in _named(self.found.users):
            if _limited(user.limits):
                self._team(f"user {user.id}", name, user)
        keys = [self._key(token) for token in self.found.tokens if token.team != DASHBOARD_TEAM]
        used = {key.team for key in keys if key.left_out is None}
        teams = [t for t in self.teams.values() if t.source in used or not t.source.startswith("user ")]
        homes = {team.organisation for team in teams}
        organisations = [
            o for o in self.organisations.values() if not o.source.startswith("home of user") or o.name in homes
        ]
        return Plan(tuple(organisations), tuple(teams), tuple(keys))

    def _group(self, source: str, name: str, group: Group, organisation: str | None = None) -> PlannedGroup:
        notes: list[str] = []
        policy = Policy()
        try:
            policy = _policy(group.limits, notes)
        except _Closed as closed:
            self.closed[source] = str(closed)
            notes.append(f"no key of it is imported: {closed}")
        spends = _spends(group.limits, policy, self.now_us)
        return PlannedGroup(source, name, policy, organisation, spends, tuple(notes))

    def _team(self, source: str, name: str, team: Group) -> None:
        """A team in its organisation, or in one of its own of the same name."""
        home = self.organisations.get(team.organisation or "")
        if home is None:
            own = name if name not in self.names else f"{name} ({source.partition(' ')[0]})"
            self.names.add(own)
            home = PlannedGroup(f"home of {source}", own, Policy())
            self.organisations[home.source] = home
        self.teams[source] = self._group(source, name, team, home.name)

    def _key(self, token: Token) -> PlannedKey:
        name = _clean(token.alias or token.name or f"litellm {token.sha256[:8]}")
        hint = (token.name or "")[-4:]
        notes: list[str] = []
        try:
            self._check(token)
            policy = _policy(token.limits, notes)
            team, organisation = self._home(token, notes)
        except _Closed as closed:
            return PlannedKey(token.sha256, name, hint, Policy(), notes=tuple(notes), left_out=str(closed))
        if token.member_limited:
            notes.append("the user's own limits within the team are not carried over")
        spends = _spends(token.limits, policy, self.now_us)
        return PlannedKey(
            token.sha256, name, hint, policy, team, organisation, token.expires_us, spends, tuple(notes)
        )

    def _check(self, token: Token) -> None:
        if not _SHA256.fullmatch(token.sha256):
            raise _Closed("what LiteLLM keeps of it is not a SHA-256, so its secret cannot be recognised")
        if token.limits.blocked:
            raise _Closed("it is blocked in LiteLLM")
        if token.expires_us is not None and token.expires_us <= self.now_us:
            raise _Closed("it has expired")

    def _home(self, token: Token, notes: list[str]) -> tuple[str | None, str | None]:
        """Source of the key's team, and name of its organisation, if it has none."""
        source = f"team {token.team}" if token.team else f"user {token.user}"
        team = self.teams.get(source)
        organisation = self.organisations.get(token.organisation or "")
        if token.team and team is None:
            raise _Closed(f"its team {token.team} does not exist")
        if token.organisation and organisation is None:
            raise _Closed(f"its organisation {token.organisation} does not exist")
        if team is None:
            self._check_open(organisation)
            return None, None if organisation is None else organisation.name
        if organisation is not None and team.organisation != organisation.name:
            if token.team:
                raise _Closed(f"its team is not in its organisation {organisation.name!r}")
            notes.append(
                f"the limits of its user {team.name!r}, who is in another organisation, are not carried over"
            )
            self._check_open(organisation)
            return None, organisation.name
        self._check_open(team)
        self._check_open(next(o for o in self.organisations.values() if o.name == team.organisation))
        return team.source, None

    def _check_open(self, group: PlannedGroup | None) -> None:
        if group is not None and group.source in self.closed:
            raise _Closed(f"{group.source}: {self.closed[group.source]}")


def _named(groups: Iterable[Group]) -> list[tuple[Group, str]]:
    """Each with a name of its own: the alias, or the id; aliases that several have get the id added."""
    groups = list(groups)
    names = [_clean(group.alias or group.id) for group in groups]
    return [
        (group, name if names.count(name) == 1 else _clean(f"{name[: NAME_MAX - 60]} ({group.id})"))
        for group, name in zip(groups, names, strict=True)
    ]


def _clean(name: str) -> str:
    """A name that can be taken."""
    return "".join(c if c.isprintable() else " " for c in name).strip()[:NAME_MAX].strip() or "unnamed"


def _limited(limits: Limits) -> bool:
    return _policy_or_none(limits) != Policy()


def _policy_or_none(limits: Limits) -> Policy | None:
    try:
        return _policy(limits, [])
    except _Closed:
        return None


def _policy(limits: Limits, notes: list[str]) -> Policy:
    """Raises _Closed where LiteLLM would let nothing pass."""
    if limits.blocked:
        raise _Closed("it is blocked in LiteLLM")
    windows = [
        *_windows(Unit.REQUESTS, limits.rpm, "rpm_limit", notes),
        *_windows(Unit.TOKENS, limits.tpm, "tpm_limit", notes),
    ]
    for unit, by_model, name in (
        (Unit.REQUESTS, limits.model_rpm, "model_rpm_limit"),
        (Unit.TOKENS, limits.model_tpm, "model_tpm_limit"),
    ):
        for model, limit in sorted(by_model.items()):
            windows += _windows(unit, limit, f"{name}[{model}]", notes, model)
    if limits.max_parallel is not None and limits.max_parallel < 1:
        raise _Closed("max_parallel_requests lets nothing pass")
    notes += [f"`{name}` is not carried over" for name in limits.unknown]
    policy = Policy(
        windows=tuple(windows),
        concurrency=None if limits.max_parallel is None else min(limits.max_parallel, COUNT_MAX),
        budgets=_budgets(limits, notes),
        models=_models(limits.models),
    )
    try:
        validate_policy(policy)
    except InvalidInput as error:
        raise _Closed(str(error)) from None
    return policy


def _windows(unit: Unit, limit: Any, name: str, notes: list[str], model: str | None = None) -> list[Window]:
    if limit is None:
        return []
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise _Closed(f"{name} {limit!r} is not a whole number")
    if limit < 1:
        raise _Closed(f"{name} {limit} lets nothing pass")
    if limit > WEIGHT_MAX:
        notes.append(f"{name} {limit} is more than can be counted, and is left out")
        return []
    return [Window(unit, limit, model=model)]


def _budgets(limits: Limits, notes: list[str]) -> tuple[Budget, ...]:
    hard, soft = limits.max_budget, limits.soft_budget
    if hard is None and soft is None:
        return ()
    period = _period(limits.budget_duration, notes)
    made = []
    for amount, is_soft in ((hard, False), (soft, True)):
        if amount is not None:
            nano = _nano(amount, ROUND_DOWN)
            if nano >= NANO_MAX:
                notes.append(
                    f"the budget of {amount} USD is larger than can be counted: {NANO_MAX / NANO_PER_USD:.0f}"
                )
            made.append(Budget(min(nano, NANO_MAX), period, soft=is_soft))
    return tuple(made)


def _period(duration: str | None, notes: list[str]) -> Period:
    """The period that is reset alike, or else the shortest that is no shorter: so never more may be spent."""
    if duration is None or duration.strip().lower() in ("", "none", "null"):
        return Period.TOTAL
    read = _DURATION.fullmatch(duration.strip())
    if read is None or int(read[1]) == 0:
        notes.append(f"budget_duration {duration!r} cannot be read: the budget is one in total")
        return Period.TOTAL
    length_s = int(read[1]) * _SECONDS[read[2]]
    period = next((period for most_s, period in _SPANS.items() if length_s <= most_s), Period.TOTAL)
    if length_s not in _SPANS:
        word = "in total" if period is Period.TOTAL else f"for a {period}"
        notes.append(f"there is no period of {duration}: the same budget counts {word}, which is stricter")
    return period


def _models(models: Sequence[str]) -> tuple[str, ...] | None:
    if not models or EVERY_MODEL & set(models):
        return None
    named = tuple(dict.fromkeys(model for model in models if model != NO_MODEL))
    if not named:
        raise _Closed("it may use no model")
    return named


def _nano(amount: str, rounding: str) -> int:
    """Decimal text in USD → nano-dollars; below zero counts as none."""
    try:
        value = Decimal(amount)
        return max(0, int((value * NANO_PER_USD).to_integral_value(rounding)))
    except (InvalidOperation, OverflowError, ValueError):
        raise _Closed(f"{amount!r} is not an amount in USD") from None


def _spends(limits: Limits, policy: Policy, now_us: int) -> tuple[Spend, ...]:
    """What was spent of the current period, for each that has a budget: nothing, if LiteLLM's reset is overdue."""
    if limits.budget_reset_us is not None and limits.budget_reset_us <= now_us:
        return ()
    nano = _nano(limits.spend, ROUND_CEILING)
    periods = dict.fromkeys(budget.period for budget in policy.budgets)
    return tuple(Spend(period, min(nano, NANO_MAX)) for period in periods if nano)
