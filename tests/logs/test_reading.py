"""Objects of the real pipeline open in the tools that people have, with the documented schema; examples run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import msgspec
import pandas
import pyarrow.dataset
import pytest

from tests.logs.conftest import NOON_US, make_pipeline, make_record
from tollkeeper.domain.record import RequestRecord
from tollkeeper.logs.sinks import LogStore, open_store

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "log-record.schema.json").read_text())
PAGE = (DOCS / "logs-reading.md").read_text()
COUNT = 40


def record(number: int) -> RequestRecord:
    """Of four hours, a tenth of them failed, with everything that a record may have."""
    return make_record(
        number,
        time_us=NOON_US + number * 360_000_000,
        key_name="my-app",
        cost_nano=number * 1_000_003,
        total_us=number * 1000,
        status=500 if number % 10 == 0 else 200,
        error="upstream_500" if number % 10 == 0 else None,
        metadata={"job": "nightly"} if number % 2 else {},
        tags=("prod", "ü") if number % 3 else (),
        user='"quoted"\n',
        request_body='{"messages": [{"role": "user", "content": "hi"}]}',
        response_body='{"choices": [{"message": {"content": "hello"}}]}',
        hold_nano=2**53 + 1,
    )


TOTAL_NANO = sum(number * 1_000_003 for number in range(COUNT))


async def shipped(store: LogStore, form: str) -> None:
    for hour in range(4):
        pipeline = make_pipeline(store, f"gw{hour}", format=form)
        for number in range(hour * 10, hour * 10 + 10):
            pipeline.put(record(number))
        await pipeline.start()
        assert (await pipeline.stop()).pending == 0


async def copied(store: LogStore, folder: Path) -> list[Path]:
    """The store's records as files, under the store's own names."""
    paths: list[Path] = []
    async for name in store.list():
        if name.startswith("dt="):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(await store.read(name))
            paths.append(path)
    assert sorted(str(path.parent.relative_to(folder)) for path in paths) == [
        f"dt=2026-11-23/hour={hour}" for hour in (12, 13, 14, 15)
    ]
    return paths


async def test_json_lines_open_everywhere(store: LogStore, tmp_path: Path) -> None:
    await shipped(store, "jsonl.gz")
    folder = tmp_path / "copy"
    paths = await copied(store, folder)
    glob = f"{folder}/dt=*/hour=*/*.jsonl.gz"

    lines = subprocess.run(["zcat", *paths], capture_output=True, check=True).stdout
    for line in lines.splitlines():
        jsonschema.validate(json.loads(line), SCHEMA)
    jq = subprocess.run(["jq", "-s", "map(.cost_nano) | add"], input=lines, capture_output=True, check=True).stdout
    assert int(jq) == TOTAL_NANO

    query = f"SELECT count(*), sum(cost_nano), max(hold_nano) FROM read_json('{glob}', hive_partitioning=true)"
    assert ask(query) == [(COUNT, TOTAL_NANO, 2**53 + 1)]
    assert ask(f"{query} WHERE dt = '2026-11-23' AND hour = 13")[0][0] == 10

    frame = pandas.concat(pandas.read_json(path, lines=True) for path in paths)
    assert (len(frame), int(frame.cost_nano.sum())) == (COUNT, TOTAL_NANO)
    assert list(frame.columns) == list(RequestRecord.__struct_fields__)


async def test_parquet_opens_everywhere(store: LogStore, tmp_path: Path) -> None:
    await shipped(store, "parquet")
    folder = tmp_path / "copy"
    paths = await copied(store, folder)

    table = pyarrow.dataset.dataset(folder, partitioning="hive")
    assert table.schema.names == [*RequestRecord.__struct_fields__, "dt", "hour"]
    hour = table.to_table(filter=(pyarrow.dataset.field("hour") == 13))
    assert hour.num_rows == 10
    rows: list[dict[str, Any]] = table.to_table().drop_columns(["dt", "hour"]).to_pylist(maps_as_pydicts="strict")
    for row in rows:
        jsonschema.validate(row, SCHEMA)
    expected = [msgspec.json.decode(msgspec.json.encode(record(number))) for number in range(COUNT)]
    for row, want in zip(sorted(rows, key=lambda row: row["time_us"]), expected, strict=True):
        assert {**row, "producer": "", "number": 0} == want

    frame = pandas.concat(pandas.read_parquet(path) for path in paths)
    assert (len(frame), int(frame.cost_nano.sum()), frame.hold_nano.max()) == (COUNT, TOTAL_NANO, 2**53 + 1)
    query = f"SELECT hour, sum(cost_nano) FROM read_parquet('{folder}/**/*.parquet') GROUP BY hour"
    assert sum(cost for _, cost in ask(query)) == TOTAL_NANO


@pytest.fixture
async def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's working directory whose gateway has shipped its logs."""
    monkeypatch.chdir(tmp_path)
    await shipped(open_store((tmp_path / "tollkeeper-data" / "logs").as_uri(), 5.0), "jsonl.gz")
    return tmp_path


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def ask(sql: str) -> list[Any]:
    """DuckDB as anybody has it."""
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("example", examples("sh"))
def test_the_commands_of_the_page_run(workdir: Path, example: str) -> None:
    """Every line as it stands, with `tollkeeper` and `jq` on the path, each saying something."""
    assert shutil.which("jq")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = example.replace("--since 1d", "--since 2026-11-23").replace("--since 7d", "--since 2026-11-23")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=workdir,
        env={"PATH": path, "HOME": str(workdir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and not done.stderr


@pytest.mark.parametrize("example", examples("python"))
def test_the_programs_of_the_page_run(workdir: Path, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example, "logs-reading.md", "exec"), {})
    assert "gpt-4o-mini" in capsys.readouterr().out
