"""Corrections over HTTP: what was presumed is listed, explained and corrected; spend is adjusted and reset."""

from typing import Any

from tests.admin.conftest import Control
from tollkeeper.domain.admission import Grant
from tollkeeper.domain.usage import Usage


async def presumed(control: Control, attempt: str, hold: int, key: str = "agent") -> Any:
    """A key with one attempt whose truth is unknown; the key's words."""
    created = (await control("POST", "/admin/v1/keys", {"name": key})).json
    who = await control.database.accounts(b"d" * 64, lambda: 0).principal(key)
    grant = await control.ledger.admit(who, attempt=attempt, tokens=10, hold_nano=hold)
    assert isinstance(grant, Grant)
    control.ledger.dispatched(grant)
    control.ledger.settle(grant, hold, Usage(), presumed=True)
    return created


async def spent(control: Control, key: str = "agent") -> str:
    (month,) = (await control("GET", f"/admin/v1/usage?key={key}")).json["data"]
    return str(month["cost_usd"])


async def test_a_presumed_charge_is_listed_explained_and_corrected(control: Control) -> None:
    await presumed(control, "req_1.1", 500_000_000)
    (charge,) = (await control("GET", "/admin/v1/corrections?status=presumed&key=agent")).json["data"]
    assert (charge["attempt"], charge["status"], charge["cost_usd"]) == ("req_1.1", "presumed", "0.50")
    assert "true cost is not known" in charge["why"]
    answer = await control(
        "POST", "/admin/v1/corrections/req_1.1", {"cost_usd": "0.125", "input_tokens": 7, "note": "the bill"}
    )
    assert answer.json == {"attempt": "req_1.1", "cost_usd": "0.125", "applied": True}
    assert await spent(control) == "0.125"
    (charge,) = (await control("GET", "/admin/v1/corrections/req_1.1")).json["data"]
    assert (charge["status"], charge["presumed_usd"], charge["note"]) == ("corrected", "0.50", "the bill")
    assert (charge["input_tokens"], charge["requests"]) == (7, 1)
    await control("POST", "/admin/v1/corrections/req_1.1", {"cost_usd": "0.20", "note": "the bill, read again"})
    assert await spent(control) == "0.20"
    assert (await control("GET", "/admin/v1/corrections?status=presumed")).json["data"] == []


async def test_spend_is_adjusted_and_reset(control: Control) -> None:
    """Each is listed and can itself be corrected; asked twice under one id it is one."""
    await presumed(control, "req_1.1", 500_000_000)
    body = {"scope": "key", "name": "agent", "amount_usd": "-0.10", "note": "goodwill", "id": "ticket 7"}
    first = (await control("POST", "/admin/v1/corrections", body)).json
    again = (await control("POST", "/admin/v1/corrections", body)).json
    assert first == again and first["cost_usd"] == "-0.10"
    assert await spent(control) == "0.40"
    (listed,) = [
        c for c in (await control("GET", "/admin/v1/corrections")).json["data"] if c["attempt"] == first["attempt"]
    ]
    assert (listed["status"], listed["requests"]) == ("adjusted", 0)
    await control("POST", f"/admin/v1/corrections/{first['attempt']}", {"cost_usd": "-0.20", "note": "more"})
    assert await spent(control) == "0.30"
    await control("POST", "/admin/v1/corrections", {"scope": "key", "name": "agent", "note": "a fresh start"})
    assert await spent(control) == "0.00"
    nothing = await control("POST", "/admin/v1/corrections", {"scope": "key", "name": "agent", "note": "again"})
    assert nothing.status == 400 and "nothing to change" in nothing.json["error"]["message"]


async def test_bad_corrections_are_refused(control: Control) -> None:
    await presumed(control, "req_1.1", 500_000_000)
    for path, body, status, message in (
        ("/req_none.1", {"cost_usd": "1", "note": "x"}, 404, "no charge"),
        ("/req_1.1", {"cost_usd": "-1", "note": "x"}, 400, "zero or more"),
        ("/req_1.1", {"cost_usd": "1.0000000001", "note": "x"}, 400, "nine decimals"),
        ("/req_1.1", {"cost_usd": "1", "note": "  "}, 400, "say why"),
        ("", {"scope": "key", "name": "nobody", "note": "x"}, 404, "nobody"),
        ("", {"scope": "key", "name": "agent", "period": "day", "month": "2026-01", "note": "x"}, 400, "only for"),
        ("", {"scope": "planet", "name": "agent", "note": "x"}, 400, "scope"),
    ):
        answer = await control("POST", f"/admin/v1/corrections{path}", body)
        assert (answer.status, message in answer.json["error"]["message"]) == (status, True), answer.json


async def test_charges_come_in_pages_that_miss_none(control: Control) -> None:
    """Also when one of a page that was read changes meanwhile, and moves to the top."""
    await control("POST", "/admin/v1/keys", {"name": "agent"})
    made = []
    for number in range(5):
        body = {"scope": "key", "name": "agent", "amount_usd": f"0.0{number + 1}", "note": "n", "id": str(number)}
        made.append((await control("POST", "/admin/v1/corrections", body)).json["attempt"])
    first = (await control("GET", "/admin/v1/corrections?limit=2")).json
    assert [c["attempt"] for c in first["data"]] == made[:2:-1] and first["has_more"]
    await control("POST", f"/admin/v1/corrections/{made[3]}", {"cost_usd": "1.00", "note": "changed"})
    seen, cursor = [], first["next_cursor"]
    while cursor is not None:
        page = (await control("GET", f"/admin/v1/corrections?limit=2&key=agent&starting_after={cursor}")).json
        assert page["has_more"] == (page["next_cursor"] is not None)
        seen += [charge["attempt"] for charge in page["data"]]
        cursor = page["next_cursor"]
    assert seen == made[2::-1]
    for wrong in ("x", "1", "%C2%B2-a", "1" * 30 + "-a", "1-%00"):
        refused = await control("GET", f"/admin/v1/corrections?starting_after={wrong}")
        assert refused.status == 400 and refused.json["error"]["param"] == "starting_after"
