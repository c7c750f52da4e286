"""The proof names every gap and every double."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.log_account import Found, account
from tollkeeper.logs import objects
from tollkeeper.logs.objects import Lines
from tollkeeper.logs.sinks import LogStore
from tollkeeper.logs.verify import verify


async def put(store: LogStore, producer: str, first: int, last: int, name: str = "") -> str:
    records = tuple(msgspec.json.encode({"producer": producer, "number": n}) for n in range(first, last + 1))
    item = objects.build(Lines(f"{producer}-{first}-{last}", records))
    path = item.path.replace(".jsonl.gz", f"{name}.jsonl.gz")
    assert await store.create(path, item.body, item.sha256)
    return path


async def test_a_tiled_store_is_complete(store: LogStore) -> None:
    await put(store, "a", 1, 10)
    await put(store, "a", 11, 11)
    await put(store, "b", 1, 3)
    report = await verify(store, {"a": 11, "b": 3})
    assert report.complete
    assert (report.objects, report.records) == (3, 14)
    assert {name: p.last for name, p in report.producers.items()} == {"a": 11, "b": 3}


async def test_gaps_and_doubles_are_named_per_producer(folder: LogStore) -> None:
    await put(folder, "a", 3, 10)
    await put(folder, "a", 8, 12, name="-again")
    await put(folder, "a", 20, 20)
    await put(folder, "b", 1, 2)
    report = await verify(folder, {"a": 22})
    assert not report.complete
    assert report.producers["a"].gaps == ((1, 2), (13, 19), (21, 22))
    assert report.producers["a"].doubles == ((8, 10),)
    assert report.producers["a"].missing == 11
    assert report.producers["b"].gaps == report.producers["b"].doubles == ()


async def test_a_producer_of_which_nothing_arrived_is_a_gap(folder: LogStore) -> None:
    report = await verify(folder, {"dead": 3})
    assert report.producers["dead"].gaps == ((1, 3),)


@pytest.mark.parametrize("body", [b"not gzip", b""])
async def test_an_unreadable_object_is_named(folder: LogStore, body: bytes) -> None:
    path = "dt=2026-11-23/hour=12/a-1-1.jsonl.gz"
    await folder.create(path, body, "d")
    await folder.create("readme.txt", b"not ours", "d")
    report = await verify(folder)
    assert report.unreadable == (path,)
    assert not report.complete


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10)), max_size=12), st.integers(0, 45))
def test_the_sweep_equals_counting_every_number(shapes: list[tuple[int, int]], produced: int) -> None:
    runs = [(first, first + length) for first, length in shapes]
    counts = {n: sum(first <= n <= last for first, last in runs) for n in range(1, 60)}
    last = max([end for _, end in runs], default=0)
    report = account(Found(delivered=list(runs), known=max(last, produced)))
    assert report.last == max(last, produced)
    assert [n for a, b in report.gaps for n in range(a, b + 1)] == [
        n for n in range(1, max(last, produced) + 1) if counts[n] == 0
    ]
    assert [n for a, b in report.doubles for n in range(a, b + 1)] == [n for n in counts if counts[n] > 1]
    assert report.records == sum(counts.values())
