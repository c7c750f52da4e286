"""Whose token is it? The bootstrap token of the environment, or one of the database; for the API and the dashboard.

Every try of a token counts against the address that it comes from, but for tokens that were right from there lately:
so an operator is not locked out by somebody who guesses behind the same proxy. An address is a slot of a fixed
number, so what is kept is bounded however many addresses try; IPv6 counts by /64. Nothing here knows HTTP.
"""

import hmac
import ipaddress
import secrets
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

import msgspec

from tollkeeper.domain.operators import BOOTSTRAP, Actor
from tollkeeper.domain.ports import AdminTokens, LoginLimiter
from tollkeeper.observability.logging import logger
from tollkeeper.observability.metrics import Metrics

KNOWN_MAX: Final = 1024
"""Tokens that were right lately, each with its address."""
SLOTS: Final = 16_384
"""Addresses that are told apart. Which share a slot depends on the token of the environment, so that gateways which
share that count alike, and nobody can choose to share another's."""
SECRET_CHARACTERS_MAX: Final = 512


class LoginRefusal(msgspec.Struct, frozen=True):
    """`retry_after_s`: too many tries; None: the token is not known."""

    retry_after_s: float | None = None


class Authenticator:
    """Tells actors from strangers. `limiter` counts tries by slot of addresses."""

    def __init__(self, *, bootstrap: str, tokens: AdminTokens, limiter: LoginLimiter, metrics: Metrics) -> None:
        self._bootstrap = bootstrap.encode()
        self._tokens, self._limiter = tokens, limiter
        self._salt = secrets.token_bytes(16)
        self._slots_key = hmac.digest(self._bootstrap, b"login slots", "sha256")
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._log = logger("admin")
        tries = metrics.counter("tollkeeper_admin_logins_total", "Tries of admin tokens, by result.", "result")
        self._accepted, self._refused, self._limited = map(tries.labels, ("accepted", "refused", "limited"))

    async def actor(self, secret: str, address: str) -> Actor | LoginRefusal:
        """Whom the token stands for. Raises `DatabaseUnavailable`; the bootstrap token needs no database."""
        if not secret:
            return LoginRefusal()  # nothing was tried
        network = _network(address)
        pair = blake2b(f"{network} {secret}".encode("utf-8", "replace"), key=self._salt, digest_size=32).digest()
        if pair not in self._known:
            wait_s = await self._limiter.wait_s(self._slot(network))
            if wait_s is not None:
                self._limited.inc()
                return LoginRefusal(wait_s)
        found = await self._look_up(secret)
        if found is None:
            self._known.pop(pair, None)
            self._refused.inc()
            self._log.warning("admin_login_refused", address=address)
            return LoginRefusal()
        self._remember(pair)
        return found

    def _slot(self, network: str) -> str:
        digest = blake2b(network.encode("utf-8", "replace"), key=self._slots_key, digest_size=8).digest()
        return str(int.from_bytes(digest) % SLOTS)

    async def _look_up(self, secret: str) -> Actor | None:
        if not secret or len(secret) > SECRET_CHARACTERS_MAX:
            return None
        if hmac.compare_digest(secret.encode("utf-8", "surrogatepass"), self._bootstrap):
            return BOOTSTRAP
        token = await self._tokens.authenticate(secret)
        return None if token is None else token.actor

    def _remember(self, pair: bytes) -> None:
        if pair not in self._known:
            self._accepted.inc()
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


def _network(address: str) -> str:
    """What of an address belongs to one client: all of IPv4, the /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
