"""`tollkeeper logs`: questions to the store, and exit status and words that say whether it is whole."""

import asyncio
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import COMMAND, Command, clean_environment
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
        status=429 if number == 7 else 200,
        tokens_input=number,
        cost_nano=number * 1_000_000_000,
        metadata={"job": "nightly"},
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
    (middle,) = shipped.rglob("*-2.jsonl.gz")
    middle.unlink()
    found = command("logs", "verify")
    assert found.code == 1 and "11-20" in found.out and "NOT complete" in found.out
    assert command("logs", "verify", "--json").json["producers"]["gw-test"]["gaps"] == [[11, 20]]


def test_query_prints_a_table_csv_or_json(shipped: Path, command: Command) -> None:
    """Exact money, times in RFC 3339, lists and maps as JSON; the limit is told."""
    sql = "SELECT request_id, cost_usd, metadata, hour FROM logs ORDER BY number"
    found = command("logs", "query", sql, "--limit", "2")
    assert found.out.splitlines() == [
        "request_id  cost_usd     metadata           hour",
        'req_0       0.000000000  {"job":"nightly"}  11',
        'req_1       1.000000000  {"job":"nightly"}  11',
    ]
    assert "--limit" in found.err
    rows = command("logs", "query", "--json", "SELECT sum(cost_usd) AS cost, count(*) AS n FROM logs").json
    assert rows == [{"cost": "435.000000000", "n": 30}]
    csv = command("logs", "query", "--csv", "SELECT metadata, time FROM logs WHERE tokens_input = 1").out
    assert csv == 'metadata,time\n"{""job"":""nightly""}",2026-11-18T11:06:40.000001Z\n'


def test_query_says_what_is_wrong(shipped: Path, command: Command) -> None:
    for sql, words in (("SELECT nope FROM logs", "nope"), ("DROP TABLE logs", "one SELECT")):
        found = command("logs", "query", sql)
        assert found.code == 1 and words in found.err and "Traceback" not in found.err
    found = command("logs", "query", "SELECT 1", "--since", "yesterday")
    assert found.code == 2 and '"2h"' in found.err


def test_an_interval_and_a_key_choose_the_records(shipped: Path, command: Command) -> None:
    sql = "SELECT count(*) AS n FROM logs"
    for arguments, count in (
        (("--since", "2026-11-18T11:06:40Z"), 30),
        (("--until", "2026-11-18T11:06:40Z"), 0),
        (("--since", "2026-11-19"), 0),
        (("--key", "one"), 30),
        (("--key", "two"), 0),
    ):
        assert command("logs", "query", sql, "--json", *arguments).json == [{"n": count}]


def test_stats_tell_totals_models_and_keys(shipped: Path, command: Command) -> None:
    found = command("logs", "stats", "--json").json
    assert (found["objects"], found["requests"], found["cost_usd"]) == (3, 30, "435.000000000")
    assert [row["name"] for row in found["models"]] == ["gpt-4o-mini"]
    table = command("logs", "stats").out
    assert "gpt-4o-mini" in table and "435.000000000" in table


async def test_tail_follows_until_it_is_interrupted(shipped: Path, workdir: Path) -> None:
    """What is there, then what arrives, each once; Ctrl-C ends it without a word."""
    heeding = ["env", "--default-signal=INT"]  # a shell has its background jobs, such as this test run, ignore it
    arguments = [*heeding, *COMMAND, "logs", "tail", "-n", "1", "-f"]
    with subprocess.Popen(
        arguments, cwd=workdir, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None and tail.stderr is not None
        assert (await asyncio.to_thread(tail.stdout.readline)).rstrip().endswith("req_29")
        pipeline = LogPipeline(
            settings=LogSettings(), url=shipped.as_uri(), producer="gw-more", metrics=Metrics(), now_us=lambda: 0
        )
        pipeline.put(record(30))
        await pipeline.start()
        await pipeline.stop()
        assert (await asyncio.to_thread(tail.stdout.readline)).rstrip().endswith("req_30")
        tail.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(tail.communicate, None, 20)
        assert (tail.returncode, out, err) == (0, "", "")


def test_tail_shows_the_newest_last(shipped: Path, command: Command) -> None:
    lines = command("logs", "tail", "-n", "2").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["req_28", "req_29"]
    assert "29+0 tokens  29.00 USD" in lines[1]
    (line,) = command("logs", "tail", "--status", "4xx", "--json").out.splitlines()
    assert msgspec.json.decode(line)["request_id"] == "req_7"
    assert command("logs", "tail", "-n", "0").code == 2
