"""Old records are deleted, and it stays proven that they had been there."""

from datetime import date
from pathlib import Path

import pytest

from tests.logs.conftest import NOON_US, make_pipeline, make_record
from tollkeeper.domain.errors import LogStoreUnavailable
from tollkeeper.logs.retention import last_day, retire
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify

DAY_US = 24 * 3600 * 1_000_000


async def ship(store: LogStore, producer: str, days: int, count: int = 30) -> None:
    """Records of consecutive days, ten an object."""
    pipeline = make_pipeline(store, producer, object_records_max=10)
    for day in range(days):
        for i in range(count):
            pipeline.put(make_record(i, time_us=NOON_US + day * DAY_US + i))
    await pipeline.start()
    assert (await pipeline.stop()).pending == 0


def test_a_day_is_old_enough_when_it_ended_that_many_days_ago() -> None:
    assert last_day(NOON_US, 1) == date(2026, 11, 21)
    assert last_day(NOON_US + DAY_US // 2, 1) == date(2026, 11, 22)


async def test_old_days_go_and_the_proof_stays(store: LogStore) -> None:
    await ship(store, "gw", days=3)
    done = await retire(store, date(2026, 11, 24))
    assert (done.deleted, done.records, done.kept) == (6, 60, ())
    report = await verify(store, {"gw": 90})
    assert report.complete and report.records == 30
    assert report.producers["gw"].retired == ((1, 60),)
    assert (await retire(store, date(2026, 11, 24))).deleted == 0
    assert (await retire(store, date(2026, 11, 25))).records == 30
    report = await verify(store, {"gw": 91})
    assert report.producers["gw"].gaps == ((91, 91),), "what was never there is still missed"


async def test_what_is_not_whole_or_double_is_never_deleted(folder: LogStore, tmp_path: Path) -> None:
    await ship(folder, "gw", days=1)
    paths = sorted((tmp_path / "logs").rglob("*.gz"))
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    paths[2].with_name("copy-1.jsonl.gz").write_bytes(paths[2].read_bytes())
    before = await verify(folder)
    done = await retire(folder, date(2026, 11, 30))
    assert (done.deleted, done.records) == (2, 20)
    assert len(done.kept) == 2
    after = await verify(folder)
    assert not before.complete and not after.complete
    assert after.unreadable == before.unreadable


async def test_a_crash_before_the_deletion_leaves_nothing_double(
    folder: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ship(folder, "gw", days=1)

    async def crash(_: str) -> None:
        raise LogStoreUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(folder, "delete", crash)
        with pytest.raises(LogStoreUnavailable):
            await retire(folder, date(2026, 11, 30))
    assert (await verify(folder, {"gw": 30})).complete
    assert (await retire(folder, date(2026, 11, 30))).deleted == 3
    assert (await verify(folder, {"gw": 30})).complete
