"""Three accounts of the same money: whether they agree, and why not."""

import msgspec
import pytest

from tollkeeper.domain.admission import CounterRef
from tollkeeper.domain.charges import Charge, Known
from tollkeeper.domain.ports import ListedCharge, StoreAccount, StoreAccounts
from tollkeeper.domain.reconcile import Line, Logged, reconcile

ALICE = ("key_a", 2026, 11)


def listed(attempt: str, rank: int, cost: int, presumed: int | None) -> ListedCharge:
    known = Known((CounterRef("key_a:2026:11", 0, 0), CounterRef("2026:11", 0, 0), CounterRef("key_a:total", 0, 0)))
    charge = Charge(rank, cost, 1, 0, 0, 0, msgspec.json.encode(known).decode())
    return ListedCharge("org_a", attempt, charge, presumed, 0)


def store(nano: int, unconfirmed: int = 0) -> StoreAccounts:
    return StoreAccounts((StoreAccount(*ALICE, nano, 0),), unconfirmed)


def one(lines: list[Line]) -> Line:
    (line,) = lines
    return line


def test_all_agree() -> None:
    line = one(reconcile({ALICE: 100}, store(100), Logged({ALICE: 100}, {}, 0), []))
    assert line.agrees and line.explained and line.reasons == ()
    assert one(reconcile({ALICE: 100}, None, None, [])).agrees, "sides that were not asked cannot disagree"


def test_what_waits_for_the_next_sync() -> None:
    """The store and the logs are ahead of the database by the same amount."""
    line = one(reconcile({ALICE: 60}, store(100), Logged({ALICE: 100}, {}, 0), []))
    assert not line.agrees and line.explained
    assert [(r.amount_nano, "next sync" in r.text) for r in line.reasons] == [(40, True)]


@pytest.mark.parametrize(
    ("charge", "requests", "amount", "why"),
    [
        (listed("req_1.1", 1, 30, 30), {}, 30, "ended before it wrote a record"),
        (listed("req_1.1", 3_000, 10, 30), {"req_1": 30}, -20, "after its record was written"),
        (listed("req_1.1", 2, 12, 30), {"req_1": 30}, -18, "settled after its record"),
        (listed("adj_1", 3_000, -25, None), {}, -25, "adjusted by an operator"),
    ],
)
def test_what_was_presumed_or_corrected(
    charge: ListedCharge, requests: dict[str, int], amount: int, why: str
) -> None:
    logged = Logged({ALICE: 70}, requests, 0)
    line = one(reconcile({ALICE: 70 + amount}, store(70 + amount), logged, [charge]))
    assert not line.agrees and line.explained
    assert [r.amount_nano for r in line.reasons] == [amount] and why in line.reasons[0].text


def test_a_presumed_charge_whose_record_says_the_same_is_no_reason() -> None:
    logged = Logged({ALICE: 30}, {"req_1": 30}, 0)
    line = one(reconcile({ALICE: 30}, store(30), logged, [listed("req_1.1", 1, 30, 30)]))
    assert line.agrees and line.reasons == ()


def test_quarantined_charges_count_nowhere() -> None:
    line = one(reconcile({ALICE: 0}, store(0), Logged({}, {}, 0), [listed("?req_1.1", 0, 30, None)]))
    assert line.agrees and line.reasons == ()


@pytest.mark.parametrize(
    ("database", "logs", "unconfirmed", "missing", "why", "explained"),
    [
        (100, 70, 0, 4, "4 log records are lost or were dropped", True),
        (100, 70, 0, 0, "without a log record", False),
        (70, 100, 3, 0, "3 entries in the gateway's outbox", True),
        (70, 100, 0, 0, "log records of more than is charged", False),
    ],
)
def test_the_rest(database: int, logs: int, unconfirmed: int, missing: int, why: str, explained: bool) -> None:
    """What no charge explains: lost records, entries on their way, or a reason to be alarmed."""
    logged = Logged({ALICE: logs}, {}, missing)
    line = one(reconcile({ALICE: database}, store(database, unconfirmed), logged, []))
    assert not line.agrees and line.explained is explained
    assert why in line.reasons[-1].text


def test_records_on_their_way() -> None:
    waiting = StoreAccounts((StoreAccount(*ALICE, 100, 0),), 0, records_pending=2)
    line = one(reconcile({ALICE: 100}, waiting, Logged({}, {}, 0), []))
    assert not line.agrees and line.explained and "2 log records are on their way" in line.reasons[0].text


def test_keys_that_only_one_side_knows() -> None:
    other = ("key_b", 2026, 10)
    lines = reconcile({ALICE: 5}, None, Logged({other: 7, ALICE: 5}, {}, 0), [])
    assert [(line.account, line.agrees) for line in lines] == [(ALICE, True), (other, False)]
