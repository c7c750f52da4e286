"""A gateway with all the load it can take comes back from a fault at once: a slice of the campaign of that name.

Promise 4 and 6. What it has to catch up with must not be overtaken by what comes meanwhile: no slot and no hold was
released any more for as long as the load went on, after one connection had been cut.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.fleet import servers
from tests.campaigns.pressure import trial
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Path, RedisServer, PostgresServer]]:
    with servers() as started:
        yield started


def test_no_request_fails(both: tuple[Path, RedisServer, PostgresServer]) -> None:
    found = asyncio.run(trial(*both, "Redis' connections cut", before_s=1, after_s=1))
    assert found.differences == ()
    assert found.served > 500
