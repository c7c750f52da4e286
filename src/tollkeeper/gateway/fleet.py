"""What this process knows of each deployment: in flight, latency, its minute, its breaker. And which one is next.

Limits and health are those of one process: N processes admit up to N times a deployment's limit, and each finds out
by itself that one is down. A key's limits and budgets, which are exact, are not here. Times are Unix µs and passed
in, as is randomness; nothing here waits.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.domain.windows import RunLog
from tollkeeper.gateway.breaker import Breaker, BreakerRules, BreakerState
from tollkeeper.gateway.routing import Deployment
from tollkeeper.settings import RoutingSettings, Strategy

MINUTE_US: Final = 60_000_000
TICK_US: Final = MINUTE_US // 6000
LATENCY_WEIGHT: Final = 0.2
"""Of the newest first byte in the moving average."""
LATENCY_STALE_US: Final = 60_000_000
"""An average without a newer measurement is not believed any more: one request measures it anew."""
MEMBERS_MAX: Final = 4096
"""Deployments remembered: wildcards make one of every name that a client writes. Above it idle ones are forgotten."""


class Member:
    """One deployment as it does in this process."""

    __slots__ = ("_log", "breaker", "deployment", "first_byte_us", "in_flight", "measured_us", "unlimited")

    def __init__(self, deployment: Deployment, rules: BreakerRules) -> None:
        self.deployment = deployment
        self.breaker = Breaker(rules)
        self.in_flight = 0
        self.first_byte_us = 0.0
        self.measured_us: int | None = None
        limited = deployment.requests_per_minute is not None or deployment.tokens_per_minute is not None
        self._log = RunLog(MINUTE_US, TICK_US, 0) if limited else None
        self.unlimited = not limited and deployment.concurrency is None
        """It is never full."""

    def __repr__(self) -> str:
        route = self.deployment.route
        return f"<Member {route.provider}/{route.upstream_model} in_flight={self.in_flight} {self.breaker!r}>"

    def full_for_us(self, now_us: int, tokens: int) -> int | None:
        """How long its own limits keep a request of so many tokens out; None: they let it. Concurrency: 1 s, a guess.

        A request above the limit of tokens itself waits for an empty minute, and passes then: the provider may still
        take what is only an estimate.
        """
        deployment, log = self.deployment, self._log
        if deployment.concurrency is not None and self.in_flight >= deployment.concurrency:
            return 1_000_000
        if log is None:
            return None
        log.advance(now_us)
        waits = [0]
        if deployment.requests_per_minute is not None:
            excess = log.requests + 1 - deployment.requests_per_minute
            waits.append(log.wait_us(now_us, 1, excess) if excess > 0 else 0)
        if deployment.tokens_per_minute is not None:
            excess = log.tokens + min(tokens, deployment.tokens_per_minute) - deployment.tokens_per_minute
            waits.append(log.wait_us(now_us, 2, excess) if excess > 0 else 0)
        return max(waits) or None

    def take(self, now_us: int, tokens: int) -> "Turn":
        """A request goes there. Limits are the caller's to ask before."""
        self.in_flight += 1
        run = None
        if self._log is not None:
            self._log.advance(now_us)
            run = self._log.add(now_us, 1, tokens)
        return Turn(self, run, tokens, self.breaker.begin(now_us))

    def correct(self, run: int, requests: int, tokens: int) -> None:
        """Add to what a turn was counted as."""
        assert self._log is not None
        self._log.correct(self._log.generation, run, requests, tokens)

    def measure(self, now_us: int, first_byte_us: int) -> None:
        """A first byte took so long."""
        stale = self.measured_us is None or now_us - self.measured_us > LATENCY_STALE_US
        weight = 1.0 if stale else LATENCY_WEIGHT
        self.first_byte_us += weight * (first_byte_us - self.first_byte_us)
        self.measured_us = now_us

    def latency_us(self, now_us: int) -> float:
        """What to expect: the moving average. 0 where nothing is known and nothing is on its way, so that one request
        finds out; infinite while that one is under way."""
        if self.measured_us is not None and now_us - self.measured_us <= LATENCY_STALE_US:
            return self.first_byte_us
        return float("inf") if self.in_flight else 0.0


class Turn(msgspec.Struct):
    """One request at one deployment, from `take` until `end`, which is always called."""

    member: Member
    _run: int | None
    _tokens: int
    _probe: bool
    _told: bool = False

    def succeeded(self, now_us: int) -> None:
        """It answers. Only the first word counts."""
        if not self._told:
            self._told = True
            self.member.breaker.succeeded(now_us, probe=self._probe)

    def failed(self, now_us: int, cool_us: int = 0) -> None:
        """It failed, also after it had begun to answer."""
        self.member.breaker.failed(now_us, probe=self._probe and not self._told, cool_us=cool_us)
        self._told = True

    def end(self, usage: Usage | None, *, sent: bool = True) -> None:
        """It is over. `usage`: the truth, None if it is not known. Not `sent`: it is taken back whole."""
        self.member.in_flight -= 1
        if not self._told:
            self.member.breaker.abandoned(probe=self._probe)
        if self._run is None:
            return
        if not sent:
            self.member.correct(self._run, -1, -self._tokens)
        elif usage is not None:
            self.member.correct(self._run, 0, usage.total_tokens - self._tokens)


def breaker_rules(settings: RoutingSettings) -> BreakerRules:
    """The rules, from the settings."""
    return BreakerRules(
        settings.cooldown_failures,
        settings.cooldown_failure_ratio,
        settings.cooldown_requests_min,
        int(settings.cooldown_window_s * 1e6),
        int(settings.cooldown_s * 1e6),
    )


class Fleet:
    """The members by provider and upstream model; names that share a deployment share its state."""

    def __init__(self, rules: BreakerRules, configured: Iterable[Deployment] = ()) -> None:
        self._rules = rules
        self._members: dict[tuple[str, str], Member] = {}
        self.configured = tuple(self.member(deployment) for deployment in configured)
        """Those that the settings name; they are never forgotten."""

    def member(self, deployment: Deployment) -> Member:
        """The state of a deployment."""
        key = (deployment.route.provider, deployment.route.upstream_model)
        found = self._members.get(key)
        if found is None:
            if len(self._members) >= MEMBERS_MAX:
                self._forget()
            found = self._members[key] = Member(deployment, self._rules)
        return found

    def states(self, now_us: int) -> Iterable[tuple[tuple[str, str], BreakerState]]:
        """(provider, upstream model) and the breaker's state, of the configured ones."""
        for member in self.configured:
            route = member.deployment.route
            yield (route.provider, route.upstream_model), member.breaker.state(now_us)

    def _forget(self) -> None:
        kept = set(map(id, self.configured))
        for key, member in tuple(self._members.items()):
            if id(member) not in kept and not member.in_flight:
                del self._members[key]


Option = tuple[Deployment, Member]


def choose(strategy: Strategy, options: Sequence[Option], now_us: int, random: float) -> Option:
    """One of at least one. `random` in [0, 1) decides by weight, also between equals."""
    if len(options) == 1:
        return options[0]
    if strategy == "weighted":
        return _by_weight(options, random)
    if strategy == "latency":
        scores = [member.latency_us(now_us) for _, member in options]
    else:
        scores = [member.in_flight / deployment.weight for deployment, member in options]
    best = min(scores)
    return _by_weight([it for it, score in zip(options, scores, strict=True) if score == best], random)


def _by_weight(options: Sequence[Option], random: float) -> Option:
    point = random * sum(deployment.weight for deployment, _ in options)
    for option in options:
        point -= option[0].weight
        if point < 0:
            return option
    return options[-1]
