"""The table of keys: current within a second, fast for new keys, alive while the database is away."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.fakes import DIGEST_KEY, MemoryDirectory, principal_of
from tollkeeper.domain.accounts import Digester, digest_presented
from tollkeeper.domain.errors import DatabaseUnavailable, Fault, RequestError
from tollkeeper.gateway.authenticate import KeyTable, secret_of
from tollkeeper.observability.metrics import Metrics

SECRET = "tk_" + "a" * 39 + "wxyz"
OTHER = "tk_" + "b" * 39 + "1234"
NOW = 1_000_000


@pytest.fixture
def directory() -> MemoryDirectory:
    return MemoryDirectory()


def table_of(directory: MemoryDirectory, poll_interval_s: float = 60) -> KeyTable:
    return KeyTable(directory, DIGEST_KEY, Metrics(), poll_interval_s=poll_interval_s)


async def fault_of(table: KeyTable, secret: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await table.principal(secret.encode(), NOW)
    return caught.value


async def test_known_key_needs_no_poll(directory: MemoryDirectory) -> None:
    expected = directory.put(SECRET, principal_of("a"))
    table = table_of(directory)
    await table.start()
    polls = directory.polls
    assert await table.principal(SECRET.encode(), NOW) is expected
    assert directory.polls == polls
    await table.stop()


async def test_key_just_created_works_at_once(directory: MemoryDirectory) -> None:
    """Also when another miss polled just before it was created."""
    table = table_of(directory)
    await table.start()
    await fault_of(table, OTHER)
    directory.put(SECRET, principal_of("a"))
    assert (await table.principal(SECRET.encode(), NOW)).key_name == "a"
    await table.stop()


async def test_misses_share_polls(directory: MemoryDirectory) -> None:
    """A thousand wrong keys at once cost the database no more than two polls."""
    table = table_of(directory)
    await table.start()
    polls = directory.polls
    faults = await asyncio.gather(*(fault_of(table, f"{OTHER}{i}") for i in range(1000)))
    assert {f.fault for f in faults} == {Fault.BAD_KEY}
    assert directory.polls - polls <= 2
    await table.stop()


async def test_polling_sees_revocation_and_rotation(directory: MemoryDirectory) -> None:
    """Without any miss, a change arrives with the next poll."""
    directory.put(SECRET, principal_of("a"))
    directory.put(OTHER, principal_of("b"))
    table = table_of(directory, poll_interval_s=0.01)
    await table.start()
    directory.put(SECRET, principal_of("a", revoked_at_us=1))
    directory.remove(OTHER)
    await asyncio.sleep(0.05)
    assert (await fault_of(table, SECRET)).fault is Fault.REVOKED_KEY
    assert (await fault_of(table, OTHER)).fault is Fault.BAD_KEY
    await table.stop()


async def test_each_refusal_has_its_own_fault_and_tells_no_secret(directory: MemoryDirectory) -> None:
    directory.put(SECRET, principal_of("a", expires_at_us=NOW))
    directory.put(OTHER, principal_of("b", revoked_at_us=1))
    table = table_of(directory)
    await table.start()
    for secret, fault in (
        ("", Fault.NO_KEY),
        (SECRET, Fault.EXPIRED_KEY),
        (OTHER, Fault.REVOKED_KEY),
        ("tk_" + "c" * 43, Fault.BAD_KEY),
        ("sk-proj-" + "d" * 40, Fault.BAD_KEY),
        ("short-key", Fault.BAD_KEY),
        ("x" * 5000, Fault.BAD_KEY),
    ):
        error = await fault_of(table, secret)
        assert error.fault is fault
        assert not secret or secret[:-4] not in error.message
        assert not secret or len(secret) >= 20 or secret not in error.message
    assert "provider's own key" in (await fault_of(table, "sk-proj-" + "d" * 40)).message
    await table.stop()


async def test_database_away(directory: MemoryDirectory) -> None:
    """Never loaded: no verdict. Loaded: known keys go on working, unknown ones get no verdict, staleness shows."""
    directory.put(SECRET, principal_of("a"))
    directory.away = True
    table = table_of(directory, poll_interval_s=0.02)
    await table.start()
    assert table.stale_s() is None
    with pytest.raises(DatabaseUnavailable):
        await table.principal(SECRET.encode(), NOW)
    directory.away = False
    await asyncio.sleep(0.06)
    assert (await table.principal(SECRET.encode(), NOW)).key_name == "a"
    before = table.degraded
    directory.away = True
    await asyncio.sleep(0.06)
    assert (before, table.degraded) == (False, True)
    assert (table.stale_s() or 0) >= 0.02
    assert (await table.principal(SECRET.encode(), NOW)).key_name == "a"
    with pytest.raises(DatabaseUnavailable):
        await table.principal(OTHER.encode(), NOW)
    await table.stop()


async def test_cancelled_request_does_not_cancel_the_shared_poll(directory: MemoryDirectory) -> None:
    table = table_of(directory)
    await table.start()
    await asyncio.sleep(0.11)
    directory.put(SECRET, principal_of("a"))
    waiting = [asyncio.create_task(table.principal(SECRET.encode(), NOW)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert (await waiting[1]).key_name == "a"
    await table.stop()


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "secret"),
    [
        (b"Bearer tk_1", b"", b"tk_1"),
        (b"bearer  tk_1 ", b"tk_2", b"tk_1"),
        (b"", b"tk_2", b"tk_2"),
        (b"Basic dXNlcg==", b"tk_2", b"tk_2"),
        (b"Bearer", b"", b""),
        (b"Bearer ", b"", b""),
        (b"", b"", b""),
    ],
)
def test_where_the_secret_is_looked_for(authorization: bytes, x_api_key: bytes, secret: bytes) -> None:
    assert secret_of(authorization, x_api_key) == secret


@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_a_secret_is_digested_alike_everywhere(digest_key: bytes, secret: bytes, ours: bool) -> None:
    """With the key's blocks hashed before or not, keys longer than a block included."""
    sent = b"tk_" + secret if ours else secret
    assert Digester(digest_key).presented(sent) == digest_presented(digest_key, sent)
