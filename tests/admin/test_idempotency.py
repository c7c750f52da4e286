"""Writes with an Idempotency-Key: once, whatever is repeated, at once or later, also where an answer was lost."""

import asyncio
from typing import Any

from sqlalchemy import text

from tests.admin.conftest import DIGEST_KEY, TOKEN, Answer, Control, now_us
from tollkeeper.domain.errors import DatabaseUnavailable
from tollkeeper.domain.idempotency import LEASE_S, REMEMBERED_S, Answered, Fresh, TooMany, fingerprint
from tollkeeper.domain.sealing import seal, unseal
from tollkeeper.storage.idempotency import StoredIdempotency

KEYS = "/admin/v1/keys"


async def post(control: Control, body: Any, key: str = "one", path: str = KEYS, **more: Any) -> Answer:
    return await control("POST", path, body, extra={"idempotency-key": key}, **more)


async def names(control: Control) -> list[str]:
    return [key["name"] for key in (await control("GET", f"{KEYS}?limit=100")).json["data"]]


async def test_the_same_request_gets_the_same_answer(control: Control) -> None:
    """With its secret, and told to be a repetition; another key makes another one."""
    first = await post(control, {"name": "a"})
    again = await post(control, {"name": "a"})
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert again.json["secret"].startswith("tk_")
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (await post(control, {"name": "a"}, "two")).json["id"] != first.json["id"]
    assert await names(control) == ["a", "a"]


async def test_an_answer_without_a_body_is_repeated_too(control: Control) -> None:
    await control("POST", KEYS, {"name": "a"})
    for _ in range(2):
        answer = await post(control, None, path="/admin/v1/limits/a/reset")
        assert (answer.status, answer.body) == (204, b"")
    events = (await control("GET", "/admin/v1/audit?action=limits.reset")).json["data"]
    assert len(events) == 1


async def test_another_request_under_the_same_key_is_refused(control: Control) -> None:
    """Another body or path; another token has keys of its own."""
    await post(control, {"name": "a"})
    for refused in (await post(control, {"name": "b"}), await post(control, {"name": "a"}, path="/admin/v1/teams")):
        error = refused.json["error"]
        assert (refused.status, error["type"], error["code"]) == (
            *(400, "idempotency_error", "idempotency_key_reused"),
        )
    other = (await control("POST", "/admin/v1/admin-tokens", {"name": "o", "role": "admin"})).json["secret"]
    assert (await post(control, {"name": "b"}, token=other)).status == 201
    assert sorted(await names(control)) == ["a", "b"]


async def test_of_two_at_once_one_runs(control: Control) -> None:
    answers = await asyncio.gather(*(post(control, {"name": "a"}) for _ in range(8)))
    ran = [answer for answer in answers if answer.status == 201]
    assert {answer.status for answer in answers} <= {201, 409} and len({answer.body for answer in ran}) == 1
    assert {a.json["error"]["code"] for a in answers if a.status == 409} <= {"idempotency_key_in_use"}
    assert await names(control) == ["a"]


async def test_while_it_runs_others_are_told_to_wait(control: Control) -> None:
    """As long as its turn lasts, and then the next one runs, since the audit log knows of no change."""
    book = control.database.idempotency(DIGEST_KEY, now_us)
    body = b'{"name": "a"}'
    begun = await book.begin(TOKEN, "one", fingerprint("POST", KEYS.encode() + b"?", body))
    assert isinstance(begun, Fresh)
    waiting = await control("POST", KEYS, body=body, extra={"idempotency-key": "one"})
    assert (waiting.status, waiting.json["error"]["code"]) == (409, "idempotency_key_in_use")
    control.later_us = LEASE_S * 1_000_000 + 1_000_000
    assert (await control("POST", KEYS, body=body, extra={"idempotency-key": "one"})).status == 201


async def test_what_is_refused_may_be_mended_under_the_same_key(control: Control) -> None:
    assert (await post(control, {"name": ""})).status == 400
    assert (await post(control, {"name": "a", "team": "nobody"})).status == 404
    assert (await post(control, {"name": "a"})).status == 201


async def test_an_answer_that_was_lost_is_not_made_twice(control: Control) -> None:
    """The gateway dies, or the database falls silent, after the change: a repetition is told what was done."""

    async def dies(*_: Any) -> None:
        raise DatabaseUnavailable("the database fell silent")

    book: Any = control.application._guarded._inner._book  # type: ignore[attr-defined]
    book.answered = dies
    lost = await post(control, {"name": "a"})
    assert lost.status == 201
    assert (await post(control, {"name": "a"})).json["error"]["code"] == "idempotency_key_in_use"
    control.later_us = LEASE_S * 1_000_000 + 1_000_000
    told = await post(control, {"name": "a"})
    assert (told.status, told.json["error"]["code"]) == (409, "idempotency_answer_lost")
    assert lost.json["id"] in told.json["error"]["message"]
    assert await names(control) == ["a"]


async def test_a_failure_that_changed_nothing_may_be_repeated_at_once(control: Control) -> None:
    """The audit log is asked; it has no change, so the request runs."""
    async with control.database._transactions.write() as transaction:
        await transaction.execute(text("ALTER TABLE key_digests RENAME TO gone"))
    assert (await post(control, {"name": "a"})).status == 503
    async with control.database._transactions.write() as transaction:
        await transaction.execute(text("ALTER TABLE gone RENAME TO key_digests"))
    assert (await post(control, {"name": "a"})).status == 201
    assert await names(control) == ["a"]


async def test_a_key_is_forgotten_after_a_day(control: Control) -> None:
    first = await post(control, {"name": "a"})
    control.later_us = REMEMBERED_S * 1_000_000 - 1_000_000
    assert (await post(control, {"name": "a"})).body == first.body
    control.later_us = REMEMBERED_S * 1_000_000 + 1_000_000
    assert (await post(control, {"name": "a"})).json["id"] != first.json["id"]


async def test_keys_are_bounded(control: Control) -> None:
    """Above the bound new ones are refused; those that are known are answered."""
    book = StoredIdempotency(control.database._transactions, DIGEST_KEY, now_us, keys_max=1)
    turn = await book.begin("token", "one", b"f")
    assert isinstance(turn, Fresh)
    await book.answered(turn, "token", "one", Answered(200, b"{}"))
    assert await book.begin("token", "two", b"f") == TooMany()
    assert await book.begin("token", "one", b"f") == Answered(200, b"{}")


async def test_a_key_must_be_a_key(control: Control) -> None:
    for key in ("", "x" * 256, "\u00e4".encode().decode("latin-1")):
        refused = await post(control, {"name": "a"}, key)
        assert (refused.status, refused.json["error"]["code"]) == (400, "invalid_request"), key


async def test_secrets_in_kept_answers_are_sealed(control: Control) -> None:
    """Who has the database has neither the answer nor the key's name, and cannot change it unnoticed."""
    secret = (await post(control, {"name": "a"}, "a-telling-name")).json["secret"]
    async with control.database._transactions.read() as transaction:
        (row,) = await transaction.rows(text("SELECT * FROM idempotency_keys"))
    assert secret.encode() not in row.sealed and b"secret" not in row.sealed and b"telling" not in repr(row).encode()
    sealed = seal(b"k" * 32, b"n" * 16, b"text" * 99)
    assert unseal(b"k" * 32, sealed) == b"text" * 99
    assert unseal(b"K" * 32, sealed) is None
    for place in range(len(sealed)):
        broken = bytearray(sealed)
        broken[place] ^= 1
        assert unseal(b"k" * 32, bytes(broken)) is None
    assert unseal(b"k" * 32, sealed[:40]) is None and unseal(b"k" * 32, b"") is None
    assert unseal(b"k" * 32, seal(b"k" * 32, b"n" * 16, b"")) == b""
    assert seal(b"k" * 32, b"m" * 16, b"text")[16:20] != seal(b"k" * 32, b"n" * 16, b"text")[16:20]
