"""The contract of `KeyDirectory`: every change is delivered, in the order of commits, whoever writes meanwhile."""

import asyncio
import random

import asyncpg
import pytest

from tests.servers.postgres import PostgresServer
from tests.storage.conftest import Opener
from tollkeeper.domain.accounts import KeyChange, NewKey, digest_secret
from tollkeeper.domain.errors import InvalidInput
from tollkeeper.domain.policy import Policy, Principal
from tollkeeper.domain.ports import Accounts, KeyChanges, KeyDirectory
from tollkeeper.storage.database import Database

DIGEST_KEY = b"k" * 32
NOW = 1_795_000_000_000_000


def digest(secret: str) -> bytes:
    return digest_secret(DIGEST_KEY, secret.encode())


class Table:
    """What a gateway process keeps, by the rules of the port."""

    def __init__(self, directory: KeyDirectory) -> None:
        self.directory = directory
        self.version = 0
        self.keys: dict[bytes, Principal] = {}

    async def poll(self) -> KeyChanges | None:
        changes = await self.directory.changes_since(self.version)
        if changes is not None:
            assert changes.version >= self.version
            self.version = changes.version
            self.keys.update({active.digest: active.principal for active in changes.active})
            for gone in changes.gone:
                self.keys.pop(gone, None)
        return changes


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return database.accounts(DIGEST_KEY, lambda: NOW)


@pytest.fixture
def table(database: Database) -> Table:
    return Table(database.directory)


async def test_nothing_changed_is_none(accounts: Accounts, table: Table) -> None:
    assert await table.poll() is None
    await accounts.create_key(NewKey("app"))
    assert await table.poll() is not None
    assert await table.poll() is None


async def test_a_new_key_is_delivered_with_its_principal(accounts: Accounts, table: Table) -> None:
    _, secret = await accounts.create_key(NewKey("app", policy=Policy(concurrency=1), expires_us=NOW + 5))
    await table.poll()
    assert table.keys == {digest(secret): await accounts.principal("app")}
    assert table.keys[digest(secret)].expires_at_us == NOW + 5


async def test_only_what_changed_is_delivered(accounts: Accounts, table: Table) -> None:
    await accounts.create_key(NewKey("a"))
    await accounts.create_key(NewKey("b"))
    await table.poll()
    await accounts.update_key("b", KeyChange(policy=Policy(concurrency=3)))
    changes = await table.poll()
    assert changes is not None
    assert [
        (active.principal.key_name, active.principal.scopes[0].policy.concurrency) for active in changes.active
    ] == [("b", 3)]


async def test_a_changed_policy_above_reaches_every_key_below(accounts: Accounts, table: Table) -> None:
    """Of a team: its keys. Of an organisation: all its keys, in teams or not. Nobody else's."""
    await accounts.create_organisation("acme")
    await accounts.create_team("red", "acme")
    for new in (NewKey("in red", team="red"), NewKey("in acme", organisation="acme"), NewKey("alone")):
        await accounts.create_key(new)
    await table.poll()
    await accounts.update_team("red", Policy(concurrency=1))
    changes = await table.poll()
    assert changes is not None
    assert [active.principal.key_name for active in changes.active] == ["in red"]
    await accounts.update_organisation("acme", Policy(concurrency=2))
    changes = await table.poll()
    assert changes is not None
    assert sorted(active.principal.key_name for active in changes.active) == ["in acme", "in red"]
    by_name = {p.key_name: p for p in table.keys.values()}
    assert [s.policy.concurrency for s in by_name["in red"].scopes] == [None, 1, 2]


async def test_revision_grows_with_every_change_of_key_team_or_organisation(accounts: Accounts, table: Table) -> None:
    await accounts.create_organisation("acme")
    await accounts.create_team("red", "acme")
    await accounts.create_team("blue", "acme")
    await accounts.create_key(NewKey("app", team="red"))
    seen = [(await accounts.principal("app")).revision]
    for change in (
        lambda: accounts.update_team("red", Policy(concurrency=1)),
        lambda: accounts.update_organisation("acme", Policy(concurrency=1)),
        lambda: accounts.update_key("app", KeyChange(team="blue")),
        lambda: accounts.rotate_key("app"),
        lambda: accounts.revoke_key("app"),
    ):
        await change()
        seen.append((await accounts.principal("app")).revision)
    assert seen == sorted(set(seen))
    await table.poll()
    assert [p.revision for p in table.keys.values()] == [seen[-1]] and table.version == seen[-1]


async def test_a_rotated_secret_is_gone_and_the_new_one_stands(accounts: Accounts, table: Table) -> None:
    key, first = await accounts.create_key(NewKey("app"))
    await table.poll()
    _, second = await accounts.rotate_key("app")
    _, third = await accounts.rotate_key("app")
    changes = await table.poll()
    assert changes is not None
    assert set(changes.gone) == {digest(first), digest(second)}
    assert {d: p.key_id for d, p in table.keys.items()} == {digest(third): key.id}
    fresh = Table(table.directory)
    await fresh.poll()
    assert fresh.keys == table.keys


async def test_a_secret_rotated_with_an_overlap_expires_at_its_end(accounts: Accounts, table: Table) -> None:
    """The new one does not; the key's own expiry counts if it is earlier. A later rotation ends the older secret."""
    key, first = await accounts.create_key(NewKey("app"))
    await table.poll()
    rotated, second = await accounts.rotate_key("app", overlap_s=60.0)
    assert rotated.previous_until_us is not None
    await table.poll()
    assert {d: p.expires_at_us for d, p in table.keys.items()} == {
        digest(first): rotated.previous_until_us,
        digest(second): None,
    }
    fresh = Table(table.directory)
    await fresh.poll()
    assert fresh.keys == table.keys
    await accounts.update_key("app", KeyChange(expires_us=rotated.previous_until_us - 1))
    await table.poll()
    assert {p.expires_at_us for p in table.keys.values()} == {rotated.previous_until_us - 1}
    _, third = await accounts.rotate_key(key.id, overlap_s=60.0)
    changes = await table.poll()
    assert changes is not None and changes.gone == (digest(first),)
    assert set(table.keys) == {digest(second), digest(third)}
    await accounts.rotate_key(key.id)
    changes = await table.poll()
    assert changes is not None and set(changes.gone) == {digest(second), digest(third)}


async def test_a_revoked_key_is_delivered_as_revoked(accounts: Accounts, table: Table) -> None:
    """So that its user is told why; a process that starts later learns it as well."""
    _, secret = await accounts.create_key(NewKey("app"))
    await table.poll()
    await accounts.revoke_key("app")
    await table.poll()
    assert table.keys[digest(secret)].revoked_at_us == NOW
    fresh = Table(table.directory)
    await fresh.poll()
    assert fresh.keys == table.keys


async def test_a_refused_write_takes_no_version(accounts: Accounts, table: Table) -> None:
    await accounts.create_organisation("acme")
    await table.poll()
    with pytest.raises(InvalidInput):
        await accounts.create_organisation("acme")
    assert await table.poll() is None


async def test_a_database_put_back_to_an_older_state_is_delivered_again(
    accounts: Accounts, database: Database
) -> None:
    _, secret = await accounts.create_key(NewKey("app"))
    changes = await database.directory.changes_since(1000)
    assert changes is not None
    assert (changes.version, [active.digest for active in changes.active]) == (1, [digest(secret)])


async def test_no_change_is_missed_under_concurrent_writers(url: str, opened: Opener) -> None:
    """Processes create, rotate, update and revoke while others poll: each poller ends with the whole truth."""
    writers = [(await opened(url)).accounts(DIGEST_KEY, lambda: NOW) for _ in range(3)]
    tables = [Table((await opened(url)).directory) for _ in range(2)]
    done = asyncio.Event()

    async def poll(table: Table) -> None:
        while not done.is_set():
            await table.poll()
            await asyncio.sleep(0)

    async def write(accounts: Accounts, seed: int) -> set[bytes]:
        rng, standing = random.Random(seed), {}
        for n in range(12):
            key, secret = await accounts.create_key(NewKey(f"{seed}-{n}", team="red"))
            standing[key.id] = digest(secret)
            chosen = rng.choice(list(standing))
            match rng.randrange(4):
                case 0:
                    standing[chosen] = digest((await accounts.rotate_key(chosen))[1])
                case 1:
                    await accounts.update_key(chosen, KeyChange(policy=Policy(concurrency=n + 1)))
                case 2:
                    await accounts.update_team("red", Policy(concurrency=rng.randint(1, 99)))
        return set(standing.values())

    await writers[0].create_team("red")
    pollers = [asyncio.create_task(poll(table)) for table in tables]
    written = set().union(
        *await asyncio.gather(*(write(w, seed) for seed, w in enumerate(writers) for _ in range(2)))
    )
    done.set()
    await asyncio.gather(*pollers)
    whole = Table(tables[0].directory)
    await whole.poll()
    assert set(whole.keys) == written and len(written) == 72
    for table in tables:
        await table.poll()
        assert table.keys == whole.keys


async def test_a_version_is_never_visible_before_a_lower_one(
    postgres: PostgresServer,
    opened: Opener,
) -> None:
    """A transaction that took its version and is slow to commit holds back all later versions."""
    url = postgres.url("contract") if "contract" in postgres.databases else postgres.create_database("contract")
    database = await opened(url)
    await database.migrate()
    accounts, table = database.accounts(DIGEST_KEY, lambda: NOW), Table(database.directory)
    _, secret = await accounts.create_key(NewKey("slow"))
    await table.poll()
    slow = await asyncpg.connect(url)
    try:
        transaction = slow.transaction()
        await transaction.start()
        taken = await slow.fetchval("UPDATE change_counter SET version = version + 1 RETURNING version")
        quick = asyncio.create_task(accounts.create_key(NewKey("quick")))
        await asyncio.wait({quick}, timeout=0.3)
        assert not quick.done() and await table.poll() is None
        await slow.execute("UPDATE keys SET revoked_us = 1, changed_version = $1 WHERE name = 'slow'", taken)
        await transaction.commit()
        await quick
    finally:
        await slow.close()
    await table.poll()
    assert table.keys[digest(secret)].revoked_at_us == 1
    assert "quick" in {p.key_name for p in table.keys.values()}
