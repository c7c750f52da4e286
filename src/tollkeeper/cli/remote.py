"""The admin API of a running gateway, as the commands call it: one small JSON request with a deadline.

Where it listens is told by the data directory, else by the configuration.
"""

import json
import urllib.error
import urllib.request
from typing import Any, Final

from tollkeeper.app.data_dir import ADMIN_TOKEN_FILE, DataDir, admin_token
from tollkeeper.domain.errors import InvalidInput, TollkeeperError, Unavailable
from tollkeeper.settings import Settings

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 64 * 2**20


class GatewayAway(Unavailable):
    """No gateway answers at the address."""


class RemoteGateway:
    """A gateway, by its admin API."""

    def __init__(self, settings: Settings) -> None:
        listener = settings.server if settings.admin.port is None else settings.admin
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104
        configured = f"http://[{host}]" if ":" in host else f"http://{host}"
        self.url = DataDir(settings.data_dir).address() or f"{configured}:{listener.port}"
        # asking must not make a token: without one no gateway has run here
        known = settings.secrets.admin_token or (settings.data_dir / ADMIN_TOKEN_FILE).exists()
        self._token = admin_token(settings) if known else ""
        # never through a proxy of the environment: the token is for this address alone
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer, None for an empty one. Raises GatewayAway, or TollkeeperError with its refusal."""
        request = urllib.request.Request(  # noqa: S310 - always http
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                body = response.read(ANSWER_BYTES_MAX)
                return json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise GatewayAway(
                f"no gateway answers at {self.url} ({reason}); start one with `tollkeeper serve`, or run this with "
                "the configuration of the one that runs"
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> TollkeeperError:
        try:
            message = json.loads(error.read(65536))["error"]["message"]
        except (ValueError, KeyError, TypeError, OSError):
            return GatewayAway(f"{self.url} answers, but not as a Tollkeeper gateway (HTTP {error.code})")
        if error.code == 401:
            return InvalidInput(f"the gateway at {self.url} has another admin token: set its TOLLKEEPER_ADMIN_TOKEN")
        return InvalidInput(message) if error.code < 500 else Unavailable(message)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
