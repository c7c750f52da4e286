"""Step 4: the request as the provider gets it. Headers are built from an allow-list, the address is the settings'.

Nothing of the client's but the listed headers reaches a provider: no key, cookie, host, address or organisation.
"""

from collections.abc import Mapping
from typing import Final

from tollkeeper.gateway.asgi import Client
from tollkeeper.gateway.dialects import Call, Dialect, Endpoint, provider_path
from tollkeeper.settings import ProviderSettings

PASSED_ON: Final[Mapping[str, tuple[bytes, ...]]] = {
    "openai": (b"openai-beta",),
    "anthropic": (b"anthropic-version", b"anthropic-beta"),
}
"""Client headers that change what the provider does, by dialect."""
ANTHROPIC_VERSION: Final = "2023-06-01"
HEADER_BYTES_MAX: Final = 1024
USER_AGENT: Final = "tollkeeper"


def upstream_headers(
    client: Client, endpoint: Endpoint, *, key: str | None, request_id: str, call: Call, azure: bool
) -> dict[str, str]:
    """All headers of the upstream request, but Host and Content-Length."""
    headers = provider_headers(endpoint.dialect, key=key, request_id=request_id, azure=azure)
    headers["content-type"] = "application/json" if call.form is None else call.form.content_type
    headers["accept"] = "text/event-stream" if call.stream else "*/*" if endpoint.media else "application/json"
    for name in PASSED_ON[endpoint.dialect]:
        value = client.header(name)
        if value and len(value) <= HEADER_BYTES_MAX and value.isascii():
            headers[name.decode()] = value.decode()
    return headers


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
