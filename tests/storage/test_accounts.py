"""The contract of `Accounts`, on both databases."""

import base64
import hashlib

import msgspec
import pytest

from tollkeeper.domain.accounts import Key, KeyChange, NewKey, digest_imported, digest_presented, digest_secret
from tollkeeper.domain.errors import InvalidInput, NotFound
from tollkeeper.domain.periods import Period
from tollkeeper.domain.policy import Budget, Policy, ScopeKind, Unit, Window
from tollkeeper.domain.ports import Accounts
from tollkeeper.storage.database import Database

DIGEST_KEY = b"k" * 32
NOW = 1_795_000_000_000_000
POLICY = Policy(
    windows=(Window(Unit.REQUESTS, 60), Window(Unit.TOKENS, 2**40 - 1, 3_600_000_000)),
    concurrency=2,
    budgets=(Budget(2**53 - 1), Budget(0, Period.DAY)),
    cost_cap_nano=5,
    models=("gpt-*", "claude-é"),
)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return database.accounts(DIGEST_KEY, Clock())


async def test_a_key_comes_back_as_it_was_made(accounts: Accounts) -> None:
    key, secret = await accounts.create_key(NewKey("app", policy=POLICY, expires_us=NOW + 10**9))
    assert (key.name, key.policy, key.expires_us, key.team_id) == ("app", POLICY, NOW + 10**9, None)
    assert key.hint == secret[-4:]
    assert await accounts.get_key(key.id) == await accounts.get_key("app") == key
    assert await accounts.list_keys() == [key]


async def test_a_secret_is_256_random_bits_and_only_its_digest_is_stored(
    accounts: Accounts, database: Database
) -> None:
    _, secret = await accounts.create_key(NewKey("app"))
    assert secret.startswith("tk_") and len(base64.urlsafe_b64decode(secret[3:] + "=")) == 32
    changes = await database.directory.changes_since(0)
    assert changes is not None
    assert [active.digest for active in changes.active] == [digest_secret(DIGEST_KEY, secret.encode())]


async def test_a_key_of_another_gateway_keeps_its_secret(accounts: Accounts, database: Database) -> None:
    """Known by the SHA-256 of the secret alone, imported once, rotated like any other; and the SHA-256, however it is
    sent, opens nothing."""
    secret = b"sk-1234567890abcdef"
    digest = hashlib.sha256(secret).digest()
    key = await accounts.import_key(NewKey("app", policy=POLICY), digest, "cdef")
    assert key is not None and (key.hint, key.policy) == ("cdef", POLICY)
    assert await accounts.imported_key(digest) == key
    assert await accounts.import_key(NewKey("twice"), digest, "cdef") is None
    changes = await database.directory.changes_since(0)
    assert changes is not None
    (active,) = changes.active
    assert active.digest == digest_presented(DIGEST_KEY, secret) == digest_imported(DIGEST_KEY, digest)
    for sent in (digest, digest.hex().encode(), b"tk_" + digest, b"tk_" + digest.hex().encode(), b"tk_" + secret):
        assert digest_presented(DIGEST_KEY, sent) != active.digest
    rotated, new_secret = await accounts.rotate_key(key.id)
    assert new_secret.startswith("tk_") and await accounts.imported_key(digest) == rotated
    assert await accounts.import_key(NewKey("again"), digest, "cdef") is None


async def test_ids_are_safe_inside_names_of_counters(accounts: Accounts) -> None:
    """An id holds neither the separator of counters nor the braces of hash tags."""
    team = await accounts.create_team("red")
    key, _ = await accounts.create_key(NewKey("app"))
    for made, prefix in ((team.id, "team_"), (team.organisation_id, "org_"), (key.id, "key_")):
        assert made.startswith(prefix) and made.removeprefix(prefix).isalnum() and made.isascii()


async def test_a_key_alone_gets_an_organisation_that_nobody_sees(accounts: Accounts) -> None:
    key, _ = await accounts.create_key(NewKey("app", policy=POLICY))
    principal = await accounts.principal("app")
    assert principal.root == key.organisation_id
    assert [(scope.kind, scope.id, scope.policy) for scope in principal.scopes] == [(ScopeKind.KEY, key.id, POLICY)]
    assert await accounts.list_organisations() == []
    with pytest.raises(NotFound):
        await accounts.update_organisation(key.organisation_id, POLICY)


async def test_a_key_in_a_team_stands_under_the_teams_organisation(accounts: Accounts) -> None:
    organisation = await accounts.create_organisation("acme", Policy(concurrency=9))
    team = await accounts.create_team("red", "acme", Policy(concurrency=5))
    key, _ = await accounts.create_key(NewKey("app", team="red"))
    principal = await accounts.principal(key.id)
    assert principal.root == organisation.id == team.organisation_id == key.organisation_id
    assert principal.team_id == team.id
    assert [(s.kind, s.id, s.policy.concurrency) for s in principal.scopes] == [
        (ScopeKind.KEY, key.id, None),
        (ScopeKind.TEAM, team.id, 5),
        (ScopeKind.ORGANISATION, organisation.id, 9),
    ]


async def test_a_key_directly_in_an_organisation(accounts: Accounts) -> None:
    organisation = await accounts.create_organisation("acme")
    key, _ = await accounts.create_key(NewKey("app", organisation=organisation.id))
    principal = await accounts.principal(key.id)
    assert (principal.root, principal.team_id) == (organisation.id, None)
    assert [scope.kind for scope in principal.scopes] == [ScopeKind.KEY, ScopeKind.ORGANISATION]


async def test_a_team_alone_gets_an_organisation_of_its_name(accounts: Accounts) -> None:
    team = await accounts.create_team("red")
    assert [(o.id, o.name) for o in await accounts.list_organisations()] == [(team.organisation_id, "red")]


async def test_a_key_moves_only_inside_its_organisation(accounts: Accounts) -> None:
    """It may join, change and leave teams of its organisation; another organisation's team is refused, saying why."""
    await accounts.create_organisation("acme")
    red = await accounts.create_team("red", "acme")
    blue = await accounts.create_team("blue", "acme")
    foreign = await accounts.create_team("foreign")
    key, _ = await accounts.create_key(NewKey("app", team="red"))
    assert (await accounts.update_key("app", KeyChange(team="blue"))).team_id == blue.id
    assert (await accounts.update_key("app", KeyChange(team=None))).team_id is None
    assert (await accounts.update_key("app", KeyChange(team=red.id))).team_id == red.id
    with pytest.raises(InvalidInput, match="for life") as refused:
        await accounts.update_key("app", KeyChange(team="foreign"))
    assert key.organisation_id in str(refused.value) and foreign.organisation_id in str(refused.value)
    alone, _ = await accounts.create_key(NewKey("alone"))
    with pytest.raises(InvalidInput, match="for life"):
        await accounts.update_key("alone", KeyChange(team="red"))
    assert await accounts.get_key(alone.id) == alone


async def test_an_update_changes_only_what_it_names(accounts: Accounts) -> None:
    key, _ = await accounts.create_key(NewKey("app", policy=POLICY, expires_us=NOW + 10**9))
    assert await accounts.update_key("app", KeyChange()) == key
    renamed = await accounts.update_key("app", KeyChange(name="new"))
    assert renamed == msgspec.structs.replace(key, name="new")
    freed = await accounts.update_key("new", KeyChange(policy=Policy(), expires_us=None))
    assert freed == msgspec.structs.replace(renamed, policy=Policy(), expires_us=None)


async def test_rotation_keeps_the_key_and_replaces_the_secret(accounts: Accounts) -> None:
    key, first = await accounts.create_key(NewKey("app"))
    rotated, second = await accounts.rotate_key("app")
    assert first != second
    assert rotated == msgspec.structs.replace(key, hint=second[-4:])


async def test_a_revoked_key_stays_revoked(accounts: Accounts) -> None:
    """Revoking again changes nothing; a revoked key can neither be changed nor get a new secret."""
    await accounts.create_key(NewKey("app"))
    revoked = await accounts.revoke_key("app")
    assert revoked.revoked_us is not None and revoked.state(NOW + 100) == "revoked"
    assert await accounts.revoke_key("app") == revoked
    for attempt in (accounts.rotate_key("app"), accounts.update_key("app", KeyChange(name="x"))):
        with pytest.raises(InvalidInput, match="revoked"):
            await attempt
    assert await accounts.list_keys() == []
    assert await accounts.list_keys(include_revoked=True) == [revoked]


async def test_an_ambiguous_name_lists_the_ids(accounts: Accounts) -> None:
    """Names of keys need not be unique; then an id must be given. A revoked key does not stand in the way."""
    first, _ = await accounts.create_key(NewKey("app"))
    second, _ = await accounts.create_key(NewKey("app"))
    with pytest.raises(InvalidInput) as ambiguous:
        await accounts.get_key("app")
    assert first.id in str(ambiguous.value) and second.id in str(ambiguous.value)
    await accounts.revoke_key(first.id)
    assert (await accounts.get_key("app")).id == second.id
    assert (await accounts.get_key(first.id)).revoked_us is not None


async def test_an_id_wins_over_another_keys_name(accounts: Accounts) -> None:
    first, _ = await accounts.create_key(NewKey("app"))
    await accounts.create_key(NewKey(first.id))
    assert await accounts.get_key(first.id) == first


async def test_names_of_teams_are_unique_in_their_organisation(accounts: Accounts) -> None:
    await accounts.create_organisation("acme")
    await accounts.create_organisation("emca")
    with pytest.raises(InvalidInput, match="exists already"):
        await accounts.create_organisation("acme")
    red = await accounts.create_team("red", "acme")
    with pytest.raises(InvalidInput, match=red.id):
        await accounts.create_team("red", "acme")
    with pytest.raises(InvalidInput, match="exists already"):
        await accounts.create_team("acme")
    other = await accounts.create_team("red", "emca")
    with pytest.raises(InvalidInput, match="several teams"):
        await accounts.create_key(NewKey("app", team="red"))
    key, _ = await accounts.create_key(NewKey("app", organisation="emca", team="red"))
    assert key.team_id == other.id
    with pytest.raises(InvalidInput, match="not in organisation"):
        await accounts.create_key(NewKey("app", organisation="emca", team=red.id))
    assert await accounts.list_teams() == [red, other]
    assert [k.id for k in await accounts.list_keys(team=other.id)] == [key.id]
    assert await accounts.list_keys(team=red.id) == []


@pytest.mark.parametrize(
    "wanted", ["nothing", "", "key_aaaaaaaaaaaaaaaa", "a\0b", "\ud800", "'; DROP TABLE keys; --"]
)
async def test_what_does_not_exist_is_not_found(accounts: Accounts, wanted: str) -> None:
    for attempt in (
        accounts.get_key(wanted),
        accounts.revoke_key(wanted),
        accounts.rotate_key(wanted),
        accounts.update_key(wanted, KeyChange(name="x")),
        accounts.principal(wanted),
        accounts.update_team(wanted, Policy()),
        accounts.update_organisation(wanted, Policy()),
        accounts.create_key(NewKey("x", team=wanted)),
        accounts.create_key(NewKey("x", organisation=wanted)),
        accounts.create_team("x", wanted),
        accounts.list_keys(team=wanted),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await accounts.list_keys() == [] and await accounts.list_teams() == []


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a" * 201, "a\nb", "a\0b", "\x7f", "a\u2028b", "a\ud800b"])
async def test_a_name_that_cannot_be_shown_is_refused(accounts: Accounts, name: str) -> None:
    for attempt in (
        accounts.create_key(NewKey(name)),
        accounts.create_team(name),
        accounts.create_organisation(name),
        accounts.update_key("app", KeyChange(name=name)),
    ):
        with pytest.raises(InvalidInput, match="name"):
            await attempt


async def test_names_of_every_script_are_kept(accounts: Accounts) -> None:
    for name in ("a" * 200, "日本 ключ 👩‍💻", "O'Brien %s {x} :y"):
        await accounts.create_key(NewKey(name))
        assert (await accounts.get_key(name)).name == name


@pytest.mark.parametrize(("expires_us", "why"), [(NOW - 1, "passed"), (-1, "time"), (2**53, "time"), (2**70, "time")])
async def test_an_expiry_that_makes_no_sense_is_refused(accounts: Accounts, expires_us: int, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        await accounts.create_key(NewKey("app", expires_us=expires_us))


async def test_an_expiry_can_be_moved_into_the_past(accounts: Accounts) -> None:
    await accounts.create_key(NewKey("app"))
    assert (await accounts.update_key("app", KeyChange(expires_us=1))).state(NOW) == "expired"


async def test_policies_are_checked_before_anything_is_written(accounts: Accounts) -> None:
    wrong = Policy(concurrency=0)
    await accounts.create_team("red")
    key, _ = await accounts.create_key(NewKey("app"))
    for attempt in (
        accounts.create_key(NewKey("x", policy=wrong)),
        accounts.update_key("app", KeyChange(policy=wrong)),
        accounts.create_team("x", None, wrong),
        accounts.update_team("red", wrong),
        accounts.create_organisation("x", wrong),
        accounts.update_organisation("red", wrong),
    ):
        with pytest.raises(InvalidInput, match="concurrency"):
            await attempt
    assert await accounts.list_keys() == [key]


async def test_policies_of_teams_and_organisations_are_replaced(accounts: Accounts) -> None:
    await accounts.create_team("red")
    assert (await accounts.update_team("red", POLICY)).policy == POLICY
    assert (await accounts.update_organisation("red", POLICY)).policy == POLICY
    assert [t.policy for t in await accounts.list_teams()] == [POLICY]
    assert [o.policy for o in await accounts.list_organisations()] == [POLICY]


async def test_a_refused_write_leaves_nothing_behind(accounts: Accounts) -> None:
    """The whole operation is one transaction: a team that fails leaves no organisation of its name."""
    await accounts.create_organisation("acme")
    await accounts.create_team("red", "acme")
    before: list[Key] = await accounts.list_keys()
    with pytest.raises(NotFound):
        await accounts.create_key(NewKey("app", organisation="acme", team="blue"))
    assert await accounts.list_keys() == before
    assert [o.name for o in await accounts.list_organisations()] == ["acme"]
