"""What the control plane keeps, on both databases: pages and filters of accounts, admin tokens, the audit log,
idempotency keys."""

import asyncio

import pytest

from tollkeeper.domain.accounts import GroupFilters, KeyChange, KeyFilters, MonthFilters, NewKey
from tollkeeper.domain.alerts import Alert, AlertFilters
from tollkeeper.domain.audit import AuditFilters, Author
from tollkeeper.domain.errors import InvalidInput, NotFound
from tollkeeper.domain.idempotency import LEASE_S, REMEMBERED_S, Answered, AnswerLost, Fresh, InUse, Reused
from tollkeeper.domain.operators import NewAdminToken, Role
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.policy import Budget, Policy, ScopeKind
from tollkeeper.domain.ports import BudgetFilters, RootSnapshot, SpendTotals
from tollkeeper.storage.database import Database

DIGEST_KEY = b"k" * 32
NOW = 1_795_000_000_000_000
ANN = Author("adm_ann", "ann", "api", "192.0.2.1", "req_1")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1
        return self.now


async def test_keys_come_in_pages_newest_first(database: Database) -> None:
    """Every key once, though others are made meanwhile; equal times are told apart by their ids."""
    accounts = database.accounts(DIGEST_KEY, lambda: NOW)  # all at the same instant
    for number in range(7):
        await accounts.create_key(NewKey(f"key {number}"))
    seen: list[str] = []
    paging = Paging(limit=3)
    while True:
        page = await accounts.find_keys(KeyFilters(), paging)
        seen += [key.name for key in page.items]
        if not page.has_more:
            break
        await database.accounts(DIGEST_KEY, lambda: NOW + 1).create_key(NewKey("later"))
        paging = Paging(limit=3, starting_after=page.items[-1].id)
    assert sorted(seen) == [f"key {number}" for number in range(7)]
    for cursor in ("nothing", "\0", "key_"):
        with pytest.raises(InvalidInput, match="starting_after"):
            await accounts.find_keys(KeyFilters(), Paging(starting_after=cursor))


async def test_keys_by_what_they_are(database: Database) -> None:
    clock = Clock()
    accounts = database.accounts(DIGEST_KEY, clock)
    acme = await accounts.create_organisation("acme")
    red = await accounts.create_team("red", "acme")
    in_red, _ = await accounts.create_key(NewKey("In Red 100%", team="red"))
    in_acme, _ = await accounts.create_key(NewKey("in acme", organisation="acme"))
    alone, _ = await accounts.create_key(NewKey("alone", expires_us=clock() + 10))
    gone, _ = await accounts.create_key(NewKey("gone"))
    await accounts.revoke_key("gone")
    clock.now += 100
    for filters, expected in (
        (KeyFilters(), {in_red.id, in_acme.id, alone.id}),
        (KeyFilters(include_revoked=True), {in_red.id, in_acme.id, alone.id, gone.id}),
        (KeyFilters(state="active"), {in_red.id, in_acme.id}),
        (KeyFilters(state="expired"), {alone.id}),
        (KeyFilters(state="revoked"), {gone.id}),
        (KeyFilters(team="red"), {in_red.id}),
        (KeyFilters(organisation=acme.id), {in_red.id, in_acme.id}),
        (KeyFilters(name="IN "), {in_red.id, in_acme.id}),
        (KeyFilters(name="100%"), {in_red.id}),
        (KeyFilters(name="_"), set()),
        (KeyFilters(name="\0"), set()),
        (KeyFilters(owned=(red.id, alone.id)), {in_red.id, alone.id}),
        (KeyFilters(owned=(acme.id,), state="active", name="acme"), {in_acme.id}),
        (KeyFilters(owned=()), set()),
    ):
        found = await accounts.find_keys(filters, Paging())
        assert {key.id for key in found.items} == expected, filters
    with pytest.raises(InvalidInput, match="state"):
        await accounts.find_keys(KeyFilters(state="sleepy"), Paging())
    with pytest.raises(NotFound):
        await accounts.find_keys(KeyFilters(team="blue"), Paging())
    assert [team.id for team in (await accounts.find_teams(GroupFilters(owned=(acme.id,)), Paging())).items] == [
        red.id
    ]
    assert (await accounts.find_teams(GroupFilters(organisation="acme", name="blue"), Paging())).items == []
    assert [o.id for o in (await accounts.find_organisations(GroupFilters(name="CM"), Paging())).items] == [acme.id]
    assert (await accounts.get_team("red"), await accounts.get_organisation("acme")) == (red, acme)


async def test_edits_at_once_lose_nothing(database: Database) -> None:
    """Each adds one to what is there; the last has seen all others."""
    accounts = database.accounts(DIGEST_KEY, Clock())
    await accounts.create_organisation("acme", Policy(concurrency=1))
    await accounts.create_team("red", "acme", Policy(concurrency=1))
    await accounts.create_key(NewKey("app", team="red", policy=Policy(concurrency=1)))

    def one_more(policy: Policy) -> Policy:
        return Policy(concurrency=(policy.concurrency or 0) + 1)

    for _ in range(5):
        await asyncio.gather(
            accounts.update_key("app", KeyChange(policy=one_more)),
            accounts.update_key("app", KeyChange(policy=one_more)),
            accounts.update_team("red", one_more),
            accounts.update_team("red", one_more),
            accounts.update_organisation("acme", one_more),
            accounts.update_organisation("acme", one_more),
        )
    scopes = (await accounts.principal("app")).scopes
    assert [scope.policy.concurrency for scope in scopes] == [11, 11, 11]


async def test_events_are_numbered_in_the_order_of_commits(database: Database) -> None:
    """By everybody who writes at once; each names its author."""
    accounts, audit = database.accounts(DIGEST_KEY, Clock()), database.audit(Clock())
    await asyncio.gather(*(accounts.by(ANN).create_key(NewKey(f"k{n}")) for n in range(8)))
    told = await audit.append(ANN, "limits.reset", "key_x", {"key_name": "x"})
    page = await audit.find(AuditFilters(actor="adm_ann"), Paging(limit=5))
    assert page.items[0] == told and page.has_more
    assert {event.author for event in page.items} == {ANN}
    rest = await audit.find(AuditFilters(actor="adm_ann"), Paging(starting_after=page.items[-1].id))
    numbers = [event.number for event in [*page.items, *rest.items]]
    assert len(numbers) == 9 and numbers == sorted(numbers, reverse=True)
    assert (await audit.find(AuditFilters(action="\0"), Paging())).items == []


async def test_budgets_totals_and_alerts_are_read_from_either_database(database: Database) -> None:
    """The same rows in the same order; budgets of what was revoked are gone."""
    clock = Clock()
    accounts, policy = database.accounts(DIGEST_KEY, clock), Policy(budgets=(Budget(5),))
    acme = await accounts.create_organisation("acme", policy)
    red = await accounts.create_team("red", "acme", policy)
    key, _ = await accounts.create_key(NewKey("app", team="red", policy=policy))
    await accounts.create_key(NewKey("free", policy=Policy(concurrency=1)))
    await accounts.create_key(NewKey("gone", policy=policy))
    await accounts.revoke_key("gone")
    page = await database.budgets.budgeted(BudgetFilters(), Paging(limit=2))
    assert [each.scope.id for each in page.items] == [key.id, red.id] and page.has_more
    rest = await database.budgets.budgeted(BudgetFilters(), Paging(starting_after=red.id))
    assert [(each.scope.id, each.root, each.scope.policy) for each in rest.items] == [(acme.id, acme.id, policy)]
    for filters, expected in (
        (BudgetFilters(kind=ScopeKind.TEAM), [red.id]),
        (BudgetFilters(scope_id=key.id), [key.id]),
        (BudgetFilters(scope_id="\0"), []),
        (BudgetFilters(owned=(red.id,)), [key.id, red.id]),
        (BudgetFilters(owned=(acme.id,), kind=ScopeKind.KEY), [key.id]),
    ):
        found = await database.budgets.budgeted(filters, Paging())
        assert [each.scope.id for each in found.items] == expected, filters
    totals = {"2026:11": SpendTotals(7, 1, 2, 3), f"{key.id}:2026:11": SpendTotals(7, 1, 2, 3)}
    assert await database.spend.save(RootSnapshot(acme.id, {"p": 1}, totals), NOW)
    tally = await database.budgets.tally(NOW)
    assert (tally.organisations, tally.teams, tally.keys_active, tally.keys_revoked) == (1, 1, 2, 1)
    assert (tally.cost_nano, tally.requests, tally.input_tokens, tally.synced_us) == (7, 1, 2, NOW)
    for months, sums in (
        (MonthFilters(), [("app", 7)]),
        (MonthFilters(kind=ScopeKind.ORGANISATION, owned=(acme.id,)), [("acme", 7)]),
        (MonthFilters(kind=ScopeKind.TEAM), []),
        (MonthFilters(year_month=(2026, 11), scope_id=key.id), [("app", 7)]),
        (MonthFilters(year_month=(2026, 10)), []),
        (MonthFilters(owned=(red.id,)), [("app", 7)]),
    ):
        rows = (await database.budgets.months(months, Paging())).items
        assert [(row.name, row.cost_nano) for row in rows] == sums, months
    assert (await database.budgets.months(MonthFilters(), Paging(starting_after=f"2026-11:{key.id}"))).items == []
    given = Alert(acme.id, f"{key.id}:2026:11", 4, ScopeKind.KEY, 5, 5, None, None, NOW)
    await database.alerts.claim([given], due_us=NOW)
    await database.alerts.settle(given, due_us=None, delivered_us=NOW + 1)
    for wanted, number in (
        (AlertFilters(), 1),
        (AlertFilters(scope_id=key.id, delivery="delivered"), 1),
        (AlertFilters(delivery="waiting"), 0),
        (AlertFilters(owned=(acme.id,)), 1),
        (AlertFilters(owned=()), 0),
        (AlertFilters(since_us=NOW + 1), 0),
    ):
        assert len((await database.alerts.find(wanted, 10))[0]) == number, wanted


async def test_a_token_is_found_by_its_secret_alone(database: Database) -> None:
    tokens = database.admin_tokens(DIGEST_KEY, Clock()).by(ANN)
    made, secret = await tokens.create(NewAdminToken("ann", Role.OWNER, ("key_a",)))
    assert await tokens.authenticate(secret) == made == await tokens.get("ann")
    for wrong in ("", "tka_", secret[:-1], secret + "x", secret.upper(), "\ud800", "tka_\udc80"):
        assert await tokens.authenticate(wrong) is None
    assert await database.admin_tokens(b"o" * 32, Clock()).authenticate(secret) is None
    revoked = await tokens.revoke("ann")
    assert await tokens.revoke(made.id) == revoked and await tokens.authenticate(secret) is None
    with pytest.raises(InvalidInput, match="revoked"):
        await tokens.rotate("ann")


async def test_an_idempotency_key_has_one_turn_at_a_time(database: Database) -> None:
    """Of many at once one begins; then there is its answer; another request under the key is told so."""
    now = [NOW]
    book = database.idempotency(DIGEST_KEY, lambda: now[0])
    begun = await asyncio.gather(*(book.begin("t", "one", b"f") for _ in range(8)))
    (turn,) = (each for each in begun if isinstance(each, Fresh))
    assert begun.count(InUse()) == 7
    assert await book.begin("t", "one", b"other") == Reused()
    now[0] += LEASE_S * 1_000_000
    second = await book.begin("t", "one", b"f")
    assert isinstance(second, Fresh)
    await book.answered(turn, "t", "one", Answered(200, b"late"))  # its turn is over: it is not heard
    await book.answered(second, "t", "one", Answered(201, b"{}"))
    assert await book.begin("t", "one", b"f") == Answered(201, b"{}")
    assert isinstance(await book.begin("t2", "one", b"f"), Fresh)
    now[0] += REMEMBERED_S * 1_000_000
    assert isinstance(await book.begin("t", "one", b"f"), Fresh)


async def test_a_lost_turn_is_looked_up_in_the_audit_log(database: Database) -> None:
    book, audit = database.idempotency(DIGEST_KEY, Clock()), database.audit(Clock())
    turn = await book.begin("t", "one", b"f")
    assert isinstance(turn, Fresh)
    await book.lost(turn)
    again = await book.begin("t", "one", b"f")
    assert isinstance(again, Fresh)
    event = await audit.append(
        Author("adm_x", "x", "api", idempotency=again.digest), "key.create", "key_a", {"name": "a"}
    )
    await book.lost(again)
    assert await book.begin("t", "one", b"f") == AnswerLost(event.id, "key.create", "key_a")
    refused = await book.begin("t", "two", b"f")
    assert isinstance(refused, Fresh)
    await book.refused(refused)
    assert isinstance(await book.begin("t", "two", b"other"), Fresh)
