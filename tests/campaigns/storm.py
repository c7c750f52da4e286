"""The storm: four gateways with 200 concurrent requests each on one key, whose budget, or that of its team or its
organisation, is nearly used up.

Every decision of the store is looked at as the gateway heard it: nothing is admitted above a budget, and what is
refused would not have fitted by the refusal's own figures. When all is quiet, what fits to the token is admitted, and
one token more is not.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.campaigns import Outcome
from tests.campaigns.fleet import Ask, Fleet, servers
from tests.campaigns.victim import Decision
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

GATEWAYS: Final = 4
CONCURRENT: Final = 200
QUESTION: Final = (
    f"{GATEWAYS} gateways, {CONCURRENT} concurrent requests each, budgets nearly used up: is any passed?"
)
ASKS: Final = 2
"""Of each client, one after the other."""
MAX_TOKENS: Final = (5, 40)
FITTING: Final = (20, 120)
"""How many of the dearest requests the narrowest budget has room for."""
ROOMIER: Final = (1.0, 1.3)
"""The budgets of the other scopes, as multiples of the narrowest."""
STEP_NANO: Final = 600
"""What one more output token adds to a hold."""
SCOPES: Final = ("organisation", "team", "key")
UNFITTING_TOKENS: Final = 16_000
"""More than any budget here has room for, less than the model's cap."""
PATIENCE_S: Final = 60.0
PROBES: Final = 5
"""How often a request is sent that was not decided."""
PROBE_PAUSE_S: Final = 1.0


class Round(NamedTuple):
    """What one storm came to."""

    narrowest: str
    asked: int
    admitted: int
    refused: int
    left_nano: int
    """Of the narrowest budget, after the storm."""
    differences: tuple[str, ...]


def wrong_decisions(decisions: list[Decision]) -> list[str]:
    """Those above a budget, and refusals of what would have fitted."""
    wrong: list[str] = []
    for each in decisions:
        if each.refused is None:
            wrong += [
                f"{each.attempt}: {used} of {budget} on {scope}"
                for scope, budget, used in each.budgets
                if used > budget
            ]
        else:
            scope, limit, used, asked = each.refused
            if used + asked <= limit or asked != each.hold_nano:
                wrong.append(f"{each.attempt}: refused {asked} on {scope}, {used} of {limit} in use")
    return wrong


def hold_of(max_tokens: int, known: Decision, known_max_tokens: int) -> int:
    """The bound of another output limit: prompts are equally long."""
    return known.hold_nano + STEP_NANO * (max_tokens - known_max_tokens)


async def storm(fleet: Fleet, name: str, seed: int) -> Round:
    """One round on a tree of its own."""
    rng = random.Random(seed)
    await fleet.make_tree(f"probe-{name}")
    probe, _, _ = await decide(fleet, Ask(f"probe-{name}", 10, 1, 10), 0)
    narrow = rng.randint(*FITTING) * hold_of(MAX_TOKENS[1], probe, 10) + rng.randrange(STEP_NANO)
    narrowest = rng.choice(SCOPES)
    budgets = {s: narrow if s == narrowest else int(narrow * rng.uniform(*ROOMIER)) for s in SCOPES}
    await fleet.make_tree(name, **budgets)

    async def client(own: random.Random, gateway: int) -> int:
        for _ in range(ASKS):
            limit = own.randint(*MAX_TOKENS)
            await fleet.ask(Ask(name, own.randint(1, 100), own.randint(1, limit), limit, own.random() < 0.2), gateway)
        return ASKS

    heard = len(fleet.decisions())
    asked = sum(
        await asyncio.gather(
            *(client(random.Random(rng.random()), g) for g in range(fleet.count) for _ in range(CONCURRENT))
        )
    )
    judgement = await fleet.judge(PATIENCE_S)
    decisions = fleet.decisions()[heard:]
    wrong = [*judgement.differences, *wrong_decisions(decisions)]
    left, more = await what_fits(fleet, name, rng)
    refused = sum(d.refused is not None for d in decisions)
    return Round(narrowest, asked, len(decisions) - refused, refused, left, tuple(wrong + more))


async def decide(fleet: Fleet, ask: Ask, gateway: int) -> tuple[Decision, int, str]:
    """One request while nothing else is under way; the store's decision, status, body. Asked again if it was not
    decided: the gateway may close a connection that was idle just when it is used again, and a machine that does
    something else may hold up the store beyond an admission's deadline."""
    heard = len(fleet.decisions())
    for _ in range(PROBES):
        status, text = await fleet.ask(ask, gateway)
        if new := fleet.decisions()[heard:]:
            return new[0], status, text
        if status not in (0, 503):
            break
        await asyncio.sleep(PROBE_PAUSE_S)
    raise RuntimeError(f"{ask} was answered {status} without a decision of the store: {text[:500]}")


async def what_fits(fleet: Fleet, name: str, rng: random.Random) -> tuple[int, list[str]]:
    """All is quiet: one token too many is refused, and one less is admitted. What was left, and what was wrong."""
    gateway, heard = rng.randrange(fleet.count), len(fleet.decisions())
    first, _, _ = await decide(fleet, Ask(name, 10, 1, UNFITTING_TOKENS), gateway)
    left = min(budget - used for _, budget, used in first.budgets)
    if first.refused is None:
        return left, [f"{UNFITTING_TOKENS} tokens were admitted"]
    fits = UNFITTING_TOKENS - -(-(first.hold_nano - left) // STEP_NANO)
    wrong: list[str] = []
    if fits >= 1:
        for max_tokens, expected in ((fits + 1, 429), (fits, 200)):
            _, status, text = await decide(fleet, Ask(name, 10, 1, max_tokens), gateway)
            if status != expected:
                wrong.append(f"{left} left, {max_tokens} tokens: {status} instead of {expected}: {text[:200]}")
    return left, wrong + wrong_decisions(fleet.decisions()[heard:])


async def storms(folder: Path, redis: RedisServer, postgres: PostgresServer, seed: int, rounds: int) -> list[Round]:
    """Rounds on one fleet."""
    fleet = Fleet(folder, redis, postgres, gateways=GATEWAYS, environ={"VICTIM_TAP": str(folder / "tap")})
    await fleet.start()
    found: list[Round] = []
    try:
        for number in range(rounds):
            found.append(await storm(fleet, f"s{number}", seed * 1000 + number))
            print(f"  round {number + 1}: {len(found[-1].differences)} differences", file=sys.stderr, flush=True)
        return found
    finally:
        await fleet.close()


def run(seed: int, rounds: int) -> Iterator[Outcome]:
    """One row for each scope that was the narrowest."""
    with servers() as (folder, redis, postgres):
        found = asyncio.run(storms(folder, redis, postgres, seed, rounds))
    for scope in SCOPES:
        mine = [r for r in found if r.narrowest == scope]
        asked, admitted = sum(r.asked for r in mine), sum(r.admitted for r in mine)
        refused, wrong = sum(r.refused for r in mine), [w for r in mine for w in r.differences]
        notes = wrong[0] if wrong else f"at most {max((r.left_nano for r in mine), default=0) / 1e9:.6f} USD left"
        yield Outcome(
            f"{scope}'s budget the narrowest",
            len(mine),
            f"{asked:,} requests, {admitted:,} admitted, {refused:,} refused",
            len(wrong),
            notes,
        )
