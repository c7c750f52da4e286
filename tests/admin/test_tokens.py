"""Tokens of the admin API: their life, their rotation, and what happens to whoever guesses."""

import pytest
from sqlalchemy import text

from tests.admin.conftest import DIGEST_KEY, TOKEN, Control
from tollkeeper.domain.operators import NewAdminToken, Role
from tollkeeper.governance.logins import TRIES, WINDOW_S
from tollkeeper.storage.database import Database

PATH = "/admin/v1/admin-tokens"


async def create(control: Control, name: str = "ann", role: str = "viewer", **more: object) -> tuple[str, str]:
    """Id and secret."""
    created = await control("POST", PATH, {"name": name, "role": role, **more})
    assert created.status == 201, created.body
    return created.json["id"], created.json["secret"]


async def status(control: Control, secret: str) -> int:
    return (await control("GET", "/admin/v1/me", token=secret)).status


async def test_the_life_of_a_token(control: Control) -> None:
    """Create and rotate show a secret, nothing else does; revoking it ends it at once."""
    token_id, secret = await create(control)
    assert secret.startswith("tka_") and token_id.startswith("adm_")
    shown = await control("GET", f"{PATH}/ann")
    assert (shown.json["id"], shown.json["hint"], shown.json["state"]) == (token_id, secret[-4:], "active")
    assert secret.encode() not in shown.body
    me = await control("GET", "/admin/v1/me", token=secret)
    assert me.json == {"id": token_id, "name": "ann", "role": "viewer", "owns": []}
    revoked = await control("POST", f"{PATH}/ann/revoke")
    assert revoked.json["state"] == "revoked"
    assert await status(control, secret) == 401
    assert (await control("GET", PATH)).json == {"data": [], "has_more": False}
    (gone,) = (await control("GET", f"{PATH}?include_revoked=true")).json["data"]
    assert gone["id"] == token_id


async def test_rotation_ends_the_old_secret_at_once_or_later(control: Control) -> None:
    token_id, first = await create(control)
    second = (await control("POST", f"{PATH}/{token_id}/rotate")).json["secret"]
    assert [await status(control, secret) for secret in (first, second)] == [401, 200]
    rotated = (await control("POST", f"{PATH}/{token_id}/rotate", {"overlap_s": 3600})).json
    assert rotated["previous_secret_until"] is not None
    assert [await status(control, secret) for secret in (second, rotated["secret"])] == [200, 200]
    # a third secret ends the oldest: at most two work at a time
    third = (await control("POST", f"{PATH}/{token_id}/rotate", {"overlap_s": 3600})).json["secret"]
    assert [await status(control, secret) for secret in (second, rotated["secret"], third)] == [401, 200, 200]
    refused = await control("POST", f"{PATH}/{token_id}/rotate", {"overlap_s": 10**9})
    assert (refused.status, refused.json["error"]["param"]) == (400, "overlap_s")


async def test_an_old_secret_works_until_its_time_and_no_longer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the database's rows and a clock that is passed in."""
    database = await Database.open(f"sqlite:///{tmp_path_factory.mktemp('db') / 't.db'}", pool_size=1)
    await database.migrate()
    now = [1_795_000_000_000_000]
    tokens = database.admin_tokens(DIGEST_KEY, lambda: now[0])
    made, first = await tokens.create(NewAdminToken("ann", Role.ADMIN, expires_us=now[0] + 100_000_000))
    await tokens.rotate(made.id, overlap_s=10.0)
    now[0] += 9_999_999
    assert await tokens.authenticate(first) is not None
    now[0] += 1
    assert await tokens.authenticate(first) is None
    _, last = await tokens.rotate(made.id)
    now[0] = 1_795_000_000_000_000 + 99_999_999
    assert await tokens.authenticate(last) is not None
    now[0] += 1
    assert await tokens.authenticate(last) is None
    await database.close()


async def test_only_digests_are_stored(control: Control) -> None:
    _, secret = await create(control)
    await control("POST", f"{PATH}/ann/rotate", {"overlap_s": 60})
    async with control.database._transactions.read() as transaction:
        rows = [
            *await transaction.rows(text("SELECT * FROM admin_tokens")),
            *await transaction.rows(text("SELECT * FROM audit_events")),
        ]
    assert rows and secret not in repr(rows) and secret[10:30] not in repr(rows)


REFUSED: tuple[tuple[dict[str, object], str], ...] = (
    ({"name": "", "role": "viewer"}, "name"),
    ({"name": "x", "role": "king"}, "role"),
    ({"name": "x", "role": "owner"}, "owns"),
    ({"name": "x", "role": "viewer", "owns": ["key_x"]}, "owns"),
    ({"name": "x", "role": "owner", "owns": ["alice"]}, "owns"),
    ({"name": "x", "role": "viewer", "expires_at": "2001-01-01"}, "expires"),
    ({"name": "taken", "role": "viewer"}, "name"),
)


async def test_what_no_token_can_be_is_refused(control: Control) -> None:
    await create(control, "taken")
    for body, param in REFUSED:
        refused = await control("POST", PATH, body)
        assert (refused.status, refused.json["error"]["param"]) == (400, param), body


async def test_an_update_changes_what_it_names(control: Control) -> None:
    token_id, secret = await create(control, role="owner", owns=["key_a"])
    changed = await control("PATCH", f"{PATH}/ann", {"owns": ["key_b"], "expires_at": "2099-01-01"})
    assert (changed.json["owns"], changed.json["expires_at"]) == (["key_b"], "2099-01-01T00:00:00Z")
    assert (await control("PATCH", f"{PATH}/{token_id}", {"name": "bea"})).json["name"] == "bea"
    assert (await control("PATCH", f"{PATH}/bea", {"name": None})).status == 400
    assert (await control("PATCH", f"{PATH}/bea", {"expires_at": "2001-01-01"})).json["state"] == "expired"
    assert await status(control, secret) == 401


async def test_whoever_guesses_has_to_wait(control: Control) -> None:
    """After so many tries of an address in a minute even the right token is refused, unless it was right before from
    there; other addresses are not concerned."""
    _, known = await create(control, "known")
    _, new = await create(control, "new")
    assert await status(control, known) == 200
    for _ in range(2 * TRIES):  # who shows no token tries none
        assert (await control("GET", "/admin/v1/me", token=None)).status == 401
    for number in range(TRIES):
        await control("GET", "/admin/v1/me", token=f"tka_wrong{number}")
    refused = await control("GET", "/admin/v1/me", token=new)
    assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_attempts")
    assert 1 <= int(refused.headers["retry-after"]) <= WINDOW_S + 1
    assert [await status(control, token) for token in (known, TOKEN)] == [200, 200]
    assert (await control("GET", "/admin/v1/me", token=new, address="192.0.2.2")).status == 200
    control.now_us += int((WINDOW_S + 1) * 1e6)
    assert await status(control, new) == 200


async def test_a_network_of_ipv6_is_one_address(control: Control) -> None:
    """Whoever has a /64 has 2^64 addresses; an IPv4 address is the same when it is written as IPv6."""
    for number in range(TRIES):
        await control("GET", "/admin/v1/me", token="tka_wrong", address=f"2001:db8::{number:x}")
    for address, expected in (("2001:db8::ffff", 429), ("2001:db8:0:1::1", 200)):
        assert (await control("GET", "/admin/v1/me", address=address)).status == expected
    for _ in range(TRIES):
        await control("GET", "/admin/v1/me", token="tka_wrong", address="::ffff:192.0.2.9")
    assert (await control("GET", "/admin/v1/me", address="192.0.2.9")).status == 429


async def test_memory_is_bounded_however_many_addresses_try(control: Control) -> None:
    """Addresses share a fixed number of slots."""
    authenticator = control.application.authenticator
    slots = {authenticator._slot(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(100_000)}
    assert 10_000 < len(slots) <= 16_384
