"""`tollkeeper logs verify`: exit status and words say whether the log store is whole."""

from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import Command
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs.pipeline import LogPipeline
from tollkeeper.observability.metrics import Metrics
from tollkeeper.settings import LogSettings


def record(number: int) -> RequestRecord:
    return RequestRecord(
        request_id=f"req_{number}",
        time_us=1_795_000_000_000_000 + number,
        key_id="key_1",
        key_name="one",
        organisation_id="org_1",
        endpoint="/v1/chat/completions",
        dialect="openai",
        provider="openai",
        model="gpt-4o-mini",
        status=200,
    )


@pytest.fixture
async def shipped(workdir: Path) -> Path:
    """Thirty records in three objects in the default log store."""
    folder = workdir / "tollkeeper-data" / "logs"
    pipeline = LogPipeline(
        settings=msgspec.structs.replace(LogSettings(), object_records_max=10),
        url=folder.as_uri(),
        producer="gw-test",
        metrics=Metrics(),
        now_us=lambda: 1_795_000_000_000_000,
    )
    await pipeline.start()
    for number in range(30):
        pipeline.put(record(number))
    await pipeline.stop()
    return folder


def test_whole_store(shipped: Path, command: Command) -> None:
    found = command("logs", "verify")
    assert found.code == 0 and "30 records in 3 objects, complete" in found.out
    assert command("logs", "verify", "--json").json["producers"]["gw-test"]["records"] == 30


def test_missing_object_is_named(shipped: Path, command: Command) -> None:
    """A lost object shows as a gap of numbers, and the exit status tells."""
    (middle,) = shipped.rglob("*11-20.jsonl.gz")
    middle.unlink()
    found = command("logs", "verify")
    assert found.code == 1 and "11-20" in found.out and "NOT complete" in found.out
    assert command("logs", "verify", "--json").json["producers"]["gw-test"]["gaps"] == [[11, 20]]
