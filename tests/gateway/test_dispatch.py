"""The headers a provider gets: a listed few of the client's, the provider's own key, and nothing else."""

from typing import Any

import msgspec
import pytest

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import ENDPOINTS, Call
from tollkeeper.gateway.dispatch import HEADER_BYTES_MAX, upstream_headers

CHAT, MESSAGES = ENDPOINTS["/v1/chat/completions"], ENDPOINTS["/v1/messages"]
_CALL = msgspec.structs.replace(Call(*[None] * len(Call.__struct_fields__)), stream=False)  # type: ignore[arg-type]
COMMON = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "tollkeeper"}


def sent(endpoint: Any, headers: dict[bytes, bytes], *, stream: bool = False, azure: bool = False) -> dict[str, str]:
    client = Client("POST", endpoint.path, b"", headers)
    call = msgspec.structs.replace(_CALL, stream=stream)
    found = upstream_headers(client, endpoint, key="its key", request_id="req_1", call=call, azure=azure)
    assert len(found) == len(list(found))
    return dict(found)


@pytest.mark.parametrize(
    ("azure", "stream", "own"),
    [
        (False, False, {"authorization": "Bearer its key", "accept": "application/json"}),
        (False, True, {"authorization": "Bearer its key", "accept": "text/event-stream"}),
        (True, False, {"api-key": "its key", "accept": "application/json"}),
    ],
)
def test_openai(azure: bool, stream: bool, own: dict[str, str]) -> None:
    """Neither the client's key nor its cookies; one listed header, if it is short and ASCII."""
    client = {b"authorization": b"Bearer mine", b"cookie": b"a=b", b"x-request-id": b"mine"}
    expected = COMMON | own | {"x-request-id": "req_1"}
    for _ in range(2):
        assert sent(CHAT, client, azure=azure, stream=stream) == expected
        passed = sent(CHAT, client | {b"openai-beta": b"x=y"}, azure=azure, stream=stream)
        assert passed == expected | {"openai-beta": "x=y"}
    for value in (b"", b"\xe9", b"x" * (HEADER_BYTES_MAX + 1)):
        assert sent(CHAT, {b"openai-beta": value}, azure=azure, stream=stream) == expected


def test_anthropic() -> None:
    """The version is the client's, if it names one, and told once."""
    expected = COMMON | {"accept": "application/json", "x-api-key": "its key", "x-request-id": "req_1"}
    for version in (b"2023-06-01", b"2099-01-01"):
        given = {b"anthropic-version": version, b"anthropic-beta": b"b"}
        assert sent(MESSAGES, given) == expected | {"anthropic-version": version.decode(), "anthropic-beta": "b"}
        assert sent(MESSAGES, {}) == expected | {"anthropic-version": "2023-06-01"}
