"""Objects kept at providers: known to the organisation that made them, and to nobody else."""

import asyncio

from msgspec.structs import replace

from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.storage.database import Database


def made(number: int, *, root: str = "org_a", kind: ObjectKind = ObjectKind.FILE) -> StoredObject:
    return StoredObject(
        root=root,
        id=f"{kind}-{number}",
        kind=kind,
        provider="openai",
        key_id="key_1",
        created_us=number,
        seen='{"a":"é"}',
    )


async def test_an_object_is_known_to_its_organisation_alone(database: Database) -> None:
    """Also where another organisation has one of the same id, as two providers may give."""
    objects = database.objects
    await objects.record([made(1), made(2), made(2, root="org_b")])
    assert await objects.find("org_a", ["file-1", "file-2", "file-3"]) == {"file-1": made(1), "file-2": made(2)}
    assert await objects.find("org_b", ["file-1"]) == {}
    assert await objects.find("org_b", []) == {}
    await objects.forget("org_b", ["file-1", "file-2"])
    assert set(await objects.find("org_a", ["file-1", "file-2"])) == {"file-1", "file-2"}
    assert await objects.find("org_b", ["file-2"]) == {}


async def test_what_is_recorded_again_is_replaced_at_its_place(database: Database) -> None:
    await database.objects.record([made(1), made(2)])
    later = StoredObject(
        root="org_a", id="file-1", kind=ObjectKind.FILE, provider="azure", key_id="key_2", created_us=9, notes="n"
    )
    await database.objects.record([later])
    listed = await database.objects.page("org_a", ObjectKind.FILE, limit=10)
    assert [(o.id, o.provider, o.created_us) for o in listed] == [("file-2", "openai", 2), ("file-1", "azure", 1)]


async def test_pages(database: Database) -> None:
    objects = database.objects
    await objects.record([made(n // 2 * 2 + 10 * (n % 2)) for n in range(7)])  # two share no time, the order is mixed
    await objects.record([made(3, root="org_b"), made(4, kind=ObjectKind.BATCH)])
    for oldest_first in (False, True):
        ids: list[str] = []
        after = None
        while page := await objects.page("org_a", ObjectKind.FILE, limit=2, after=after, oldest_first=oldest_first):
            ids += [its.id for its in page]
            after = ids[-1]
        expected = [f"file-{n}" for n in (0, 2, 4, 6, 10, 12, 14)]
        assert ids == (expected if oldest_first else expected[::-1])
    assert await objects.page("org_b", ObjectKind.FILE, limit=9, after="file-0") == [], "another's id is no place"


async def test_what_is_old_is_forgotten(database: Database) -> None:
    objects = database.objects
    await objects.record([made(1, kind=ObjectKind.RESPONSE), made(5, kind=ObjectKind.RESPONSE), made(1)])
    assert await objects.expire([ObjectKind.RESPONSE, ObjectKind.ITEM], 5) == 1
    assert set(await objects.find("org_a", ["response-1", "response-5", "file-1"])) == {"response-5", "file-1"}


async def test_what_is_due_is_taken_once(database: Database) -> None:
    """By one gateway, until its lease is over; what is due longest comes first, and only what is due at all."""
    objects = database.objects
    due = {4: 40, 5: 30, 6: 10, 7: 20}
    await objects.record([made(1), *(replace(made(n, root=f"org_{n}"), due_us=at) for n, at in due.items())])
    assert [its.id for its in await objects.take_due(9, lease_us=50, limit=9)] == []
    first = await objects.take_due(30, lease_us=50, limit=2)
    assert sorted(its.id for its in first) == ["file-6", "file-7"]
    assert {its.due_us for its in first} == {80}
    assert [its.id for its in await objects.take_due(30, lease_us=50, limit=9)] == ["file-5"]
    assert [its.id for its in await objects.take_due(79, lease_us=50, limit=9)] == ["file-4"]
    assert len(await objects.take_due(200, lease_us=50, limit=9)) == 4
    await objects.record([replace(its, due_us=None) for its in first])
    assert len(await objects.take_due(10**9, lease_us=50, limit=9)) == 2


async def test_two_gateways_never_take_the_same(database: Database) -> None:
    objects = database.objects
    await objects.record([replace(made(n), due_us=1) for n in range(40)])
    takes = await asyncio.gather(*(objects.take_due(5, lease_us=50, limit=15) for _ in range(4)))
    ids = [its.id for taken in takes for its in taken]
    assert len(ids) == len(set(ids))
    ids += [its.id for its in await objects.take_due(5, lease_us=50, limit=99)]
    assert sorted(ids) == sorted(f"file-{n}" for n in range(40))
