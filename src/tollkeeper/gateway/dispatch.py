"""Step 4: the request as the provider gets it. Headers are built from an allow-list, the address is the settings'.

Nothing of the client's but the listed headers reaches a provider: no key, cookie, host, address or organisation.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import Call, Dialect, Endpoint, provider_path
from tollkeeper.gateway.upstream import NO_HEADERS, FixedHeaders, RequestHeaders
from tollkeeper.settings import ProviderSettings

PASSED_ON: Final[Mapping[str, tuple[bytes, ...]]] = {
    "openai": (b"openai-beta",),
    "anthropic": (b"anthropic-version", b"anthropic-beta"),
}
"""Client headers that change what the provider does, by dialect."""
ANTHROPIC_VERSION: Final = "2023-06-01"
DEFAULTS: Final = {b"anthropic-version": ANTHROPIC_VERSION.encode()}
"""What is sent in any case need not be passed on."""
HEADER_BYTES_MAX: Final = 1024
FIXED_MAX: Final = 256
"""Sets of headers kept: there are a few for each provider's key."""
USER_AGENT: Final = "tollkeeper"


def upstream_headers(
    client: Client, endpoint: Endpoint, *, key: str | None, request_id: str, call: Call, azure: bool
) -> RequestHeaders:
    """All headers of the upstream request, but Host and Content-Length."""
    dialect = endpoint.dialect
    accept = "text/event-stream" if call.stream else "*/*" if endpoint.media else "application/json"
    fixed = _fixed(dialect, key, accept, azure)
    own = {"x-request-id": request_id}
    for name in PASSED_ON[dialect]:
        value = client.headers.get(name)
        if value and value != DEFAULTS.get(name) and len(value) <= HEADER_BYTES_MAX and value.isascii():
            own[name.decode()] = value.decode()
    if call.form is not None:
        own["content-type"] = call.form.content_type
    if len(own) > 1 and not fixed.keys().isdisjoint(own):
        return RequestHeaders(NO_HEADERS, dict(fixed) | own)
    return RequestHeaders(fixed, own)


@lru_cache(FIXED_MAX)
def _fixed(dialect: Dialect, key: str | None, accept: str, azure: bool) -> FixedHeaders:
    """Also of no request of its own."""
    headers = provider_headers(dialect, key=key, request_id="", azure=azure) | {"accept": accept}
    del headers["x-request-id"]
    return FixedHeaders(headers)


def provider_headers(dialect: Dialect, *, key: str | None, request_id: str, azure: bool) -> dict[str, str]:
    """The headers that no client decides."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        "x-request-id": request_id,
    }
    if dialect == "anthropic":
        headers["anthropic-version"] = ANTHROPIC_VERSION
    if key is not None:
        if dialect == "anthropic":
            headers["x-api-key"] = key
        elif azure:
            headers["api-key"] = key
        else:
            headers["authorization"] = f"Bearer {key}"
    return headers


def upstream_path(call: Call, provider: ProviderSettings, deployment: str) -> str:
    """Where it goes below a provider's base URL, which ends with the version. `deployment`: the model there."""
    path = (call.path or call.endpoint.path).removeprefix("/v1")
    if provider.azure_api_version is None:
        return path
    return provider_path(call, path, deployment=deployment, version=provider.azure_api_version)
