"""Promises 3 and 4 on whole gateways: a slice of `make campaign`'s storm, faults and negative controls.

Real Redis, PostgreSQL and gateway processes; the simulated provider's own journal is the truth.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns import controls, faults, storm
from tests.campaigns.victim import Decision
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer, own_redis

__all__ = ["own_redis"]

SLICE = {False: ("gateway dies: mid-stream", "Redis restarted empty"), True: ("FLUSHALL", "PostgreSQL killed")}
"""A fault of each kind, without and with retries of the gateways' own; the others are left to the campaign."""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server of this file's own, to break; each fleet has a database of its own in it."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_storm_passes_no_budget(tmp_path: Path, own_redis: RedisServer, own_postgres: PostgresServer) -> None:
    """Four gateways, 200 concurrent requests each, on nearly exhausted budgets of key, team and organisation: no
    admission is above one, no refusal would have fitted, and the database has what the provider says."""
    for found in await storm.storms(tmp_path, own_redis, own_postgres, seed=7, rounds=1):
        assert found.differences == () and found.admitted > 20 and found.refused > 500, found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("retries", SLICE)
async def test_spend_survives_faults(
    tmp_path: Path, own_redis: RedisServer, own_postgres: PostgresServer, retries: bool
) -> None:
    """Under load and through faults every key's spend comes to equal the provider's record, but for presumed charges,
    which are listed and not below it; tight budgets hold, and no hold is left behind."""
    played = await faults.campaign(tmp_path, own_redis, own_postgres, list(SLICE[retries]), seed=7, retries=retries)
    assert [p for p in played if p.judgement.differences] == []
    assert sum(p.judgement.served for p in played) > 10 and sum(p.judgement.presumed for p in played) > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", controls.CONTROLS)
async def test_the_judge_notices(
    rule: str, tmp_path: Path, own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    """Without that rule of the protocol there is a difference; `make campaign` also tries that with it there is
    none."""
    found = await controls.play(tmp_path, own_redis, own_postgres, rule, seed=7, broken=True)
    assert controls.noticed(found), f"the judge noticed nothing: {found}"


def test_wrong_decisions_are_seen() -> None:
    """An admission a nano-dollar above a budget, and a refusal of what would have fitted to the nano-dollar."""
    fits = Decision("a.1", 10, (("key", 100, 100), ("team", 200, 150)), None)
    above = Decision("b.1", 10, (("key", 200, 150), ("team", 100, 101)), None)
    refused = Decision("c.1", 10, (("key", 100, 91),), ("key", 100, 91, 10))
    wrongly = Decision("d.1", 10, (("key", 100, 90),), ("key", 100, 90, 10))
    assert storm.wrong_decisions([fits, refused]) == []
    assert len(storm.wrong_decisions([fits, above, refused, wrongly])) == 2
