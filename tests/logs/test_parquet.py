"""Parquet objects hold the same records, known by the same digest, whoever reads them."""

import io
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.logs.conftest import NOON_US, make_pipeline, make_record
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.record import AttemptRecord, RequestRecord
from tollkeeper.logs import objects, parquet, schema
from tollkeeper.logs.objects import Lines
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify

FULL: dict[str, Any] = {
    "user": "ü'\"\\\n\u2028",
    "metadata": {"b": "2", "a": ""},
    "tags": ("x", ""),
    "shadow_refusals": ("key/tokens",),
    "cost_nano": 2**62,
    "request_body": '{"a": [1, null]}',
    "queue_us": 0,
    "attempt_list": (
        AttemptRecord(attempt="r.1", provider="p", model="m", upstream_model="u", result="unfinished", presumed=True),
        AttemptRecord(attempt="r.2", provider="q", model="n", upstream_model="ü", result="answered", status=200),
    ),
}


def batch_of(*records: RequestRecord) -> Lines:
    return Lines(f"gw1-1-{len(records)}", tuple(map(msgspec.json.encode, records)))


def test_the_lines_come_back_to_the_byte() -> None:
    batch = batch_of(make_record(0), make_record(1, **FULL), make_record(2))
    built = objects.build(batch, "parquet")
    assert built.path == "dt=2026-11-23/hour=12/gw1-1-3.parquet"
    assert built.sha256 == objects.build(batch).sha256
    lines = objects.records_in(built.body)
    assert lines is not None and objects.digest(lines) == built.sha256
    assert lines == b"".join(record + b"\n" for record in batch.records)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_comes_back(texts: list[str], metadata: dict[str, str]) -> None:
    records = [make_record(n, user=text, tags=tuple(texts), metadata=metadata) for n, text in enumerate(texts)]
    try:
        batch = batch_of(*records)
    except UnicodeEncodeError:
        return  # a lone surrogate: the pipeline replaces such a record before it is in a batch
    lines = objects.records_in(objects.build(batch, "parquet").body)
    assert lines == b"".join(record + b"\n" for record in batch.records)


def test_pyarrow_sees_the_published_columns_and_the_digest() -> None:
    built = objects.build(batch_of(make_record(1, **FULL)), "parquet")
    file = pyarrow.parquet.ParquetFile(io.BytesIO(built.body))
    assert file.metadata.metadata[parquet.DIGEST_KEY.encode()] == built.sha256.encode()
    kinds = {
        "BIGINT": pyarrow.int64(),
        "VARCHAR": pyarrow.string(),
        "BOOLEAN": pyarrow.bool_(),
        "VARCHAR[]": pyarrow.list_(pyarrow.field("element", pyarrow.string())),
        "MAP(VARCHAR, VARCHAR)": pyarrow.map_(pyarrow.string(), pyarrow.string()),
    }
    columns = schema.columns()
    assert columns.pop("attempt_list").startswith("STRUCT(attempt VARCHAR, ")
    fields = {field.name: field.type for field in file.schema_arrow}
    attempt = fields.pop("attempt_list").value_type
    assert [field.name for field in attempt] == list(AttemptRecord.__struct_fields__)
    assert list(fields.items()) == [(name, kinds[kind]) for name, kind in columns.items()]
    (row,) = file.read().to_pylist()
    assert [its["result"] for its in row["attempt_list"]] == ["unfinished", "answered"]
    assert row["cost_nano"] == 2**62 and row["metadata"] == [("b", "2"), ("a", "")] and row["tags"] == ["x", ""]


@pytest.mark.parametrize("odd", [b'{"time_us": 1, "mine": 2}', b'{"time_us": "now"}', b"[]"])
def test_what_the_columns_cannot_hold_is_written_as_json_lines(odd: bytes) -> None:
    built = objects.build(Lines("gw1-1-2", (msgspec.json.encode(make_record(1)), odd)), "parquet")
    assert built.path.endswith("gw1-1-2.jsonl.gz")
    assert (objects.records_in(built.body) or b"").splitlines()[1] == odd


def test_a_broken_file_has_no_records() -> None:
    body = objects.build(batch_of(make_record(1)), "parquet").body
    for broken in (body[:-4], body[:20], b"PAR1"):
        assert objects.records_in(broken) is None


async def test_the_pipeline_ships_parquet_once_also_across_formats(store: LogStore) -> None:
    """Who ships a batch again in the other format finds that it was delivered."""
    pipeline = make_pipeline(store, format="parquet", object_records_max=20)
    for n in range(50):
        pipeline.put(make_record(n))
    await pipeline.start()
    assert (await pipeline.stop()).delivered == 50
    again = make_pipeline(store, object_records_max=20)
    for n in range(50):
        again.put(make_record(n))
    await again.start()
    assert (await again.stop()).delivered == 50
    report = await verify(store, {"gw1": 50})
    assert report.complete and report.objects == 3
    assert sorted([path.rpartition(".")[2] async for path in store.list()]) == ["parquet"] * 3


def test_without_the_library_the_setting_is_refused_at_start(
    folder: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tollkeeper\[query\]'"):
        make_pipeline(folder, format="parquet")
    make_pipeline(folder)


def test_the_folder_is_the_hour_of_the_earliest_record() -> None:
    late = batch_of(make_record(0, time_us=NOON_US + 1), make_record(1, time_us=NOON_US - 1))
    assert objects.build(late).path.startswith("dt=2026-11-23/hour=11/")


def test_parquet_is_not_loaded_unless_asked(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, tollkeeper.logs.pipeline, tollkeeper.app.gateway; sys.exit('duckdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
