"""The list of open producers that a loss of the store needs: never from before it, and one read for all who ask."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tollkeeper.domain.recovery import UNKNOWN
from tollkeeper.governance.producers import OpenProducers
from tollkeeper.storage.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite:///{tmp_path / 'accounts.db'}")
    await database.migrate()
    await database.spend.enrol_producer("p_1", 1)
    yield database
    await database.close()


async def test_who_asks_while_it_is_read_gets_a_later_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read under way may have missed who enrolled since; a hundred who ask meanwhile share the next."""
    producers, read, reads = OpenProducers(database.spend), database.spend.open_producers, list[list[str]]()
    arrived, goes_on = asyncio.Event(), asyncio.Event()

    async def slow() -> list[str]:
        reads.append(await read())
        arrived.set()
        await goes_on.wait()
        return reads[-1]

    monkeypatch.setattr(database.spend, "open_producers", slow)
    first = asyncio.create_task(producers.named("p_1"))
    await arrived.wait()
    await database.spend.enrol_producer("p_2", 2)
    others = [asyncio.create_task(producers.named("p_3")) for _ in range(100)]
    await asyncio.sleep(0)
    goes_on.set()
    assert await first == ["p_1"]
    assert await asyncio.gather(*others) == [["p_1", "p_2", "p_3"]] * 100
    assert len(reads) == 2


async def test_while_the_database_is_away_there_may_be_others(database: Database) -> None:
    """Those known last, and word that it is not all; a failed read is shared as well, and the next one tells all."""
    producers = OpenProducers(database.spend)
    assert await producers.named("p_1") == ["p_1"]
    away = await Database.open("postgresql://nobody@127.0.0.1:1/nowhere", timeout_s=0.2)
    producers._spend = away.spend
    told = await asyncio.gather(*(producers.named("p_1") for _ in range(10)))
    assert told == [["p_1", UNKNOWN]] * 10 and producers._begun == 3, "the first one's, and one for the others"
    producers._spend = database.spend
    assert await producers.named("p_1") == ["p_1"]
    await away.close()


async def test_a_read_that_is_given_up_answers_nobody(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads for all may be cancelled; the next in turn reads."""
    producers, read, arrived = OpenProducers(database.spend), database.spend.open_producers, asyncio.Event()

    async def never() -> list[str]:
        monkeypatch.setattr(database.spend, "open_producers", read)
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    monkeypatch.setattr(database.spend, "open_producers", never)
    reading, waiting = (asyncio.create_task(producers.named("p_1")) for _ in range(2))
    await arrived.wait()
    await database.spend.enrol_producer("p_2", 2)
    reading.cancel()
    assert await waiting == ["p_1", "p_2"]
