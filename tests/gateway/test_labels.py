"""End users as clients name them: any bytes, and never one taken for another, since each may have its own limits."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import Call
from tollkeeper.gateway.labels import USER_CHARS_MAX, USER_HEADER, end_user


def called(user: str | None, header: bytes | None = None) -> str | None:
    """As the gateway reads it."""
    headers = [] if header is None else [(USER_HEADER, header)]
    client = Client("POST", "/", b"", dict(headers))
    return end_user(client, msgspec.structs.replace(_CALL, user=user))


async def _never(*_: Any) -> Any:
    raise AssertionError("nothing is read or written")


_CALL = Call(*[None] * len(Call.__struct_fields__))  # type: ignore[arg-type]


def test_the_header_wins_and_may_be_any_bytes() -> None:
    assert called("body", b"header") == "header"
    assert called("body") == called("body", b"") == "body"
    assert called(None) is None
    assert called(None, "é".encode()) == "é" == called(None, "é".encode("latin-1"))
    assert called(None, b"\xff") != called(None, b"\xfe")


@given(
    st.lists(st.text(max_size=300) | st.text("ab", min_size=250, max_size=260), min_size=2, max_size=20, unique=True)
)
def test_users_are_bounded_and_kept_apart(users: list[str]) -> None:
    """Different users stay different, however long, and also from what a cut one has become."""
    found = [called(user) for user in users]
    again = {name for name in map(called, found) if name not in found}
    assert len(set(found)) == len(users)
    assert all(name is not None and len(name) <= USER_CHARS_MAX for name in found)
    assert len(again) == sum(len(user) >= USER_CHARS_MAX for user in users)
