"""Stores that go away, lie, hang and forget; shippers that die. Every record once, whatever happens."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.logs.conftest import make_pipeline, make_record, store_at, until
from tests.logs.faulty_proxy import Fault, FaultyProxy
from tests.servers.s3 import S3Server
from tollkeeper.logs import shipper
from tollkeeper.logs.sinks import FolderStore, LogStore, open_store
from tollkeeper.logs.verify import verify

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a tenth as long."""
    monkeypatch.setattr(shipper, "BACKOFF_MIN_S", 0.02)
    monkeypatch.setattr(shipper, "BACKOFF_MAX_S", 0.2)


@pytest.mark.parametrize("server", ["moto", "rclone"])
@pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.NONE])
async def test_after_any_fault_each_record_is_there_once(
    fault: Fault, server: str, request: pytest.FixtureRequest
) -> None:
    """Includes a write whose answer was lost: it is found, compared and counted as delivered."""
    s3: S3Server = request.getfixturevalue(f"{server}_server")
    url = s3.url()
    async with FaultyProxy(s3.port) as proxy:
        proxy.fault = fault
        pipeline = make_pipeline(store_at(s3, url, timeout_s=0.3, port=proxy.port), object_records_max=10)
        await pipeline.start()
        for i in range(25):
            pipeline.put(make_record(i))
        await until(lambda: proxy.faults >= 2)
        stats = pipeline.stats()
        assert (stats.delivered, stats.pending) == (0, 25) or fault is Fault.CUT_PUT_REPLY
        proxy.fault = Fault.NONE
        stats = await pipeline.stop()
    assert (stats.delivered, stats.pending, stats.conflicts) == (25, 0, 0)
    assert stats.failures > 0
    report = await verify(store_at(s3, url), {"gw1": 25})
    assert report.complete and report.objects == 3


async def test_a_slow_store_delays_but_does_not_double(moto_server: S3Server) -> None:
    url = moto_server.url()
    async with FaultyProxy(moto_server.port) as proxy:
        proxy.delay_s = 0.2
        pipeline = make_pipeline(store_at(moto_server, url, port=proxy.port), object_records_max=10)
        await pipeline.start()
        for i in range(25):
            pipeline.put(make_record(i))
        stats = await pipeline.stop()
    assert (stats.delivered, stats.failures) == (25, 0)
    assert (await verify(store_at(moto_server, url), {"gw1": 25})).complete


async def test_a_store_that_is_killed_and_comes_back_gets_everything(fresh_rclone: S3Server) -> None:
    url = fresh_rclone.url()
    pipeline = make_pipeline(store_at(fresh_rclone, url), object_records_max=10, flush_interval_s=0.01)
    await pipeline.start()
    for i in range(15):
        pipeline.put(make_record(i))
    await until(lambda: pipeline.stats().delivered == 15)
    with capture_logs() as events:
        fresh_rclone.kill()
        for i in range(15, 60):
            pipeline.put(make_record(i))
        await until(lambda: pipeline.stats().failures >= 3)
        assert pipeline.stats().last_error
        assert pipeline.stats().pending == 45
        fresh_rclone.start()
        await until(lambda: pipeline.stats().delivered == 60)
    names = [event["event"] for event in events]
    assert names.count("log_store_away") == pipeline.stats().failures
    assert "log_store_back" in names
    stats = await pipeline.stop()
    assert (stats.conflicts, stats.last_error) == (0, None)
    assert (await verify(store_at(fresh_rclone, url), {"gw1": 60})).complete


async def test_a_batch_delivered_before_is_recognised_by_its_records(store: LogStore, fresh_rclone: S3Server) -> None:
    """A second shipper of the same batch finds the object: by digest, or by reading it where none is kept."""
    for _ in range(2):
        pipeline = make_pipeline(store)
        for i in range(5):
            pipeline.put(make_record(i))
        await pipeline.start()
        stats = await pipeline.stop()
        assert (stats.delivered, stats.conflicts) == (5, 0)
    report = await verify(store, {"gw1": 5})
    assert report.complete and report.objects == 1


async def test_a_server_that_forgot_the_digest_is_read_back(fresh_rclone: S3Server) -> None:
    """rclone keeps metadata in memory: after a restart only the object itself can tell."""
    url = fresh_rclone.url()
    for _ in range(2):
        pipeline = make_pipeline(store_at(fresh_rclone, url))
        pipeline.put(make_record())
        await pipeline.start()
        assert (await pipeline.stop()).delivered == 1
        fresh_rclone.kill()
        fresh_rclone.start()
    assert (await verify(store_at(fresh_rclone, url), {"gw1": 1})).complete


async def test_other_records_under_the_same_name_are_kept_beside_it(store: LogStore) -> None:
    """A producer's name used twice: both objects stay, it is counted; repeating is harmless."""
    for model in ("first", "second", "second"):
        pipeline = make_pipeline(store)
        pipeline.put(make_record(model=model))
        await pipeline.start()
        with capture_logs() as events:
            stats = await pipeline.stop()
        assert (stats.delivered, stats.conflicts) == (1, int(model == "second"))
        assert any(event["event"] == "log_object_conflict" for event in events) == (model == "second")
    report = await verify(store)
    assert report.objects == 2
    assert report.producers["gw1"].doubles == ((1, 1),)


async def test_a_fault_of_our_own_does_not_end_the_shipper(folder: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    create = folder.create
    calls = 0

    async def broken(path: str, body: bytes, sha256: str) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("a mistake")
        return await create(path, body, sha256)

    monkeypatch.setattr(folder, "create", broken)
    pipeline = make_pipeline(folder)
    pipeline.put(make_record())
    await pipeline.start()
    with capture_logs() as events:
        await until(lambda: pipeline.stats().delivered == 1)
    assert events[0]["event"] == "log_shipper_fault"
    await pipeline.stop()


async def test_a_stop_cut_short_leaves_the_batch_to_be_shipped_again(moto_server: S3Server) -> None:
    """Cancelled in the middle of an upload: pending, then delivered by a second run, once."""
    url = moto_server.url()
    async with FaultyProxy(moto_server.port) as proxy:
        proxy.fault = Fault.SILENT
        pipeline = make_pipeline(store_at(moto_server, url, port=proxy.port))
        pipeline.put(make_record())
        await pipeline.start()
        await until(lambda: proxy.faults)
        stats = await pipeline.stop(deadline_s=0.1)
        assert (stats.pending, stats.queue.leased) == (1, 1)
        proxy.fault = Fault.NONE
        await pipeline.start()
        assert (await pipeline.stop()).pending == 0
    assert (await verify(store_at(moto_server, url), {"gw1": 1})).complete


async def ship_and_die(url: str, environ: dict[str, str], when: str, kill_after_s: float | None = None) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.logs.ship_and_die", url, "100", when,
        cwd=ROOT,
        env=os.environ | environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    if kill_after_s is not None:
        await asyncio.sleep(kill_after_s)
        if process.returncode is None:
            process.kill()
    return await process.wait()


@pytest.mark.parametrize("kind", ["folder", "moto"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_shipper_killed_around_its_write_delivers_exactly_once(
    when: str, kind: str, tmp_path: Path, moto_server: S3Server
) -> None:
    """SIGKILL of the process between object and acknowledgement; then the same batches are shipped again."""
    url = tmp_path.as_uri() if kind == "folder" else moto_server.url()
    environ = moto_server.environ
    assert await ship_and_die(url, environ, when) == -signal.SIGKILL
    store = open_store(url, 5.0, environ)
    assert (await verify(store)).records == {"before": 20, "after": 30}[when]
    assert await ship_and_die(url, environ, "never") == 0
    report = await verify(store, {"crash": 100})
    assert report.complete and report.objects == 10


async def test_a_shipper_killed_at_any_moment_delivers_exactly_once(tmp_path: Path) -> None:
    """Half-written files of the dead are never mistaken for objects."""
    seeded = random.Random(7)
    for _ in range(3):
        await ship_and_die(tmp_path.as_uri(), {}, "pause", kill_after_s=seeded.uniform(0.3, 0.6))
    assert await ship_and_die(tmp_path.as_uri(), {}, "never") == 0
    store = open_store(tmp_path.as_uri(), 5.0)
    assert isinstance(store, FolderStore)
    report = await verify(store, {"crash": 100})
    assert report.complete and report.objects == 10
