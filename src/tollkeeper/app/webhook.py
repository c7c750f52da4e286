"""The way to the operator's webhook: one URL on the HTTP client that also goes to providers, deadlines and all."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from tollkeeper.gateway.http1_pool import Http1Upstream
from tollkeeper.settings import AlertSettings, ProviderSettings

ANSWER_BYTES_MAX: Final = 65_536
CONNECTIONS_MAX: Final = 10
_NAME: Final = "webhook"


class Webhook:
    """Made inside the running event loop."""

    def __init__(self, url: str, settings: AlertSettings) -> None:
        parts = urlsplit(url)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        timeout_s = settings.webhook_timeout_s
        self._client = Http1Upstream(
            {
                _NAME: ProviderSettings(
                    base_url=f"{parts.scheme}://{parts.netloc}",
                    dialect="openai",
                    connect_timeout_s=timeout_s,
                    first_byte_timeout_s=timeout_s,
                    idle_timeout_s=timeout_s,
                    total_timeout_s=timeout_s,
                    connections_max=CONNECTIONS_MAX,
                )
            }
        )

    async def post(self, headers: Mapping[str, str], body: bytes) -> int:
        """The answer's status. Raises UpstreamError."""
        response = await self._client.send(_NAME, self._path, headers, body)
        try:
            await response.read(ANSWER_BYTES_MAX)
        finally:
            response.close()
        return response.status

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()
