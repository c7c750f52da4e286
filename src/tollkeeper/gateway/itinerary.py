"""Where one request goes next: the decision after each attempt, over its model's deployments and then its fallbacks.

At one model first the deployments not tried yet, at once; then one that was tried, after a pause. A cooldown or a
limit moves requests elsewhere. Where nothing else is left a first attempt goes to a deployment that cools down all
the same: the provider's own word is better than a guess of ours; a retry never does. It knows nothing of holds, of
HTTP or of waiting.
"""

from collections.abc import Sequence

import msgspec

from tollkeeper.gateway.fleet import Fleet, Member, choose
from tollkeeper.gateway.retry import backoff_us
from tollkeeper.gateway.routing import Deployment, Pool
from tollkeeper.settings import RoutingSettings


class Stop(msgspec.Struct, frozen=True):
    """The next attempt: where, after which pause."""

    deployment: Deployment
    member: Member
    pool: Pool
    pause_us: int = 0


class Itinerary(msgspec.Struct):
    """One request's way. Times are Unix µs; `random` is in [0, 1).

    There are few attempts and few deployments, and mostly one of each: so what was tried is in tuples.
    """

    _pools: Sequence[Pool]
    _fleet: Fleet
    _settings: RoutingSettings
    _barred: tuple[int, ...] = ()
    _tried: tuple[int, ...] = ()
    """A member for each attempt."""
    _here: int = 0
    """Attempts at the model whose turn it is."""
    full_for_us: int | None = None
    """The shortest time for which a deployment's own limits keep the request out, if one's do."""

    def __repr__(self) -> str:
        return f"<Itinerary attempts={self.attempts} left={[pool.name for pool in self._pools]}>"

    @property
    def attempts(self) -> int:
        """So far."""
        return len(self._tried)

    def only_one(self) -> Stop | None:
        """The first attempt, if nothing is to be chosen and nothing can keep it out, as it mostly is. None: see
        `next`, which would give the same."""
        pools = self._pools
        if self._tried or self._barred or not pools or len(pools[0].deployments) != 1:
            return None
        deployment = pools[0].deployments[0]
        member = self._fleet.member(deployment)
        return (
            Stop(deployment, member, pools[0]) if member.unlimited and member.breaker.open_until_us is None else None
        )

    def next(self, now_us: int, random: float) -> Stop | None:
        """The next attempt, or None."""
        if self.attempts >= self._settings.attempts_max:
            return None
        for number, pool in enumerate(self._pools):
            if number or self._here < self._settings.attempts_per_model_max:
                stop = self._at(pool, now_us, random)
                if stop is not None:
                    return self._onwards(number, stop)
        if self.attempts == 0:
            for number, pool in enumerate(self._pools):
                options = self._options(pool, now_us)
                if options:
                    return self._onwards(number, Stop(*choose(pool.strategy, options, now_us, random), pool))
        return None

    def went(self, stop: Stop) -> int:
        """The attempt is made; how many there are by now."""
        self._here += 1
        tried = self._tried = (*self._tried, id(stop.member))
        return len(tried)

    def bar(self, member: Member) -> None:
        """Nothing more goes to this one."""
        self._barred += (id(member),)

    def leave_model(self) -> None:
        """On to the fallbacks."""
        self._pools = self._pools[1:]
        self._here = 0

    def full(self, member: Member, for_us: int) -> None:
        """Its own limits keep the request out."""
        self._barred += (id(member),)
        self.full_for_us = min(for_us, self.full_for_us or for_us)

    def _onwards(self, number: int, stop: Stop) -> Stop:
        for _ in range(number):
            self.leave_model()
        return stop

    def _at(self, pool: Pool, now_us: int, random: float) -> Stop | None:
        options = self._options(pool, now_us)
        fresh = [it for it in options if id(it[1]) not in self._tried and it[1].breaker.lets(now_us)]
        if fresh:
            return Stop(*choose(pool.strategy, fresh, now_us, random), pool)
        best: Stop | None = None
        for deployment, member in options:
            pause_us = self._pause_us(member, now_us, random) if id(member) in self._tried else None
            if pause_us is not None and (best is None or pause_us < best.pause_us):
                best = Stop(deployment, member, pool, pause_us)
        return best

    def _options(self, pool: Pool, now_us: int) -> list[tuple[Deployment, Member]]:
        """Those that are neither barred nor full."""
        options = []
        for deployment in pool.deployments:
            member = self._fleet.member(deployment)
            if id(member) in self._barred:
                continue
            full_for_us = member.full_for_us(now_us, 0)
            if full_for_us is None:
                options.append((deployment, member))
            else:
                self.full_for_us = min(full_for_us, self.full_for_us or full_for_us)
        return options

    def _pause_us(self, member: Member, now_us: int, random: float) -> int | None:
        """Backoff, after the time for which it cools down; None if that is too long, or another request tries it."""
        settings = self._settings
        tries = self._tried.count(id(member))
        pause_us = backoff_us(
            tries, random, min_us=int(settings.backoff_min_s * 1e6), max_us=int(settings.backoff_max_s * 1e6)
        )
        cool_us = max(0, (member.breaker.open_until_us or 0) - now_us)
        if cool_us > settings.retry_after_max_s * 1e6 or not member.breaker.lets(now_us + cool_us + pause_us):
            return None
        return cool_us + pause_us
