"""What a batch looks like as an object."""

import gzip
import hashlib

import msgspec
import pytest

from tests.logs.conftest import NOON_US, make_record
from tollkeeper.logs import objects
from tollkeeper.logs.objects import Lines


def batch_of(*records: bytes, first: int = 1) -> Lines:
    return Lines(f"gw-a.b_c-{first}-{first + len(records) - 1}", records)


def encoded(time_us: object) -> bytes:
    return msgspec.json.encode({"time_us": time_us})


def test_the_path_is_the_hour_of_the_first_record_and_the_batch() -> None:
    batch = batch_of(encoded(NOON_US), encoded(NOON_US + 3_600_000_000), first=7)
    assert objects.build(batch).path == "dt=2026-11-23/hour=12/gw-a.b_c-7-8.jsonl.gz"
    last_instant = batch_of(encoded(NOON_US - 1))
    assert objects.build(last_instant).path.startswith("dt=2026-11-23/hour=11/")


@pytest.mark.parametrize("time_us", [None, "noon", 10**18, -(10**18), 2**70])
def test_a_time_no_calendar_knows_still_has_one_place(time_us: object) -> None:
    assert objects.build(batch_of(encoded(time_us))).path.startswith(objects.UNDATED)


def test_the_bytes_follow_from_the_batch_alone() -> None:
    """Two builds are equal to the byte; gunzip gives one line a record; the digest is of those lines."""
    batch = batch_of(*(msgspec.json.encode(make_record(i)) for i in range(50)))
    one, two = objects.build(batch), objects.build(batch)
    assert one == two
    lines = gzip.decompress(one.body)
    assert lines == b"".join(record + b"\n" for record in batch.records)
    assert one.sha256 == hashlib.sha256(lines).hexdigest()


def test_without_isal_zlib_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another compressor makes other bytes of the same records, under the same name and digest."""
    pytest.importorskip("isal", reason="there is no wheel of it for this machine")
    batch = batch_of(*(msgspec.json.encode(make_record(i)) for i in range(50)))
    one = objects.build(batch)
    monkeypatch.setattr(objects, "_igzip", None)
    two = objects.build(batch)
    assert one.body != two.body and objects.records_in(one.body) == objects.records_in(two.body)
    assert (one.path, one.sha256) == (two.path, two.sha256)


def test_the_folder_is_that_of_the_earliest_record_that_a_calendar_knows() -> None:
    times: tuple[object, ...] = (None, NOON_US + 7_200_000_000, -(2**63), objects.LAST_US + 1, NOON_US, 2**70)
    assert objects.build(batch_of(*map(encoded, times))).path.startswith("dt=2026-11-23/hour=12/")
    assert objects.build(batch_of(encoded(objects.LAST_US))).path.startswith("dt=9999-12-31/hour=23/")
    assert not objects.build(batch_of(encoded(objects.FIRST_US))).path.startswith(objects.UNDATED)


def test_a_broken_object_has_no_records() -> None:
    body = objects.build(batch_of(encoded(NOON_US))).body
    assert objects.records_in(body) is not None
    for broken in (b"", b"plain", body[:-4], body[:10] + b"\0\0\0" + body[13:]):
        assert not objects.records_in(broken)


def test_a_conflicting_batch_gets_a_longer_name_that_is_still_a_log_object() -> None:
    item = objects.build(batch_of(encoded(NOON_US)))
    longer = objects.conflict_path(item.path, item.sha256)
    assert longer == f"dt=2026-11-23/hour=12/gw-a.b_c-1-1-{item.sha256[:16]}.jsonl.gz"
    assert objects.is_log_object(item.path) and objects.is_log_object(longer)
    assert not objects.is_log_object("readme.txt") and not objects.is_log_object("dt=1/hour=2/x.jsonl.gz#1")
