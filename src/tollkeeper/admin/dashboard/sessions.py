"""Sessions of the dashboard: a cookie that holds the admin token, sealed, until it ends.

Whoever has a session is looked up by its token at every request, as in the API: a token that is revoked, rotated or
expired ends its sessions at once, on every gateway. Sessions that were ended before are in the database, by their id
(door.py asks). The key is made of the environment's token, so gateways that share it share sessions, and replacing it
ends all of them. A CSRF token is a digest of the cookie, which other sites can neither read nor guess. Pure but for
random bytes.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from typing import Final

import msgspec

from tollkeeper.admin.asgi import DASHBOARD
from tollkeeper.domain.periods import US_PER_S
from tollkeeper.domain.sealing import NONCE_BYTES, seal, unseal

SESSION_S: Final = 12 * 3600
"""Life of a session; then the token is asked for again."""
COOKIE_CHARACTERS_MAX: Final = 2048
SESSION: Final = "tollkeeper_session"
VISIT: Final = "tollkeeper_visit"
"""The cookie of somebody who has yet to sign in: the form for it is protected, too."""


class Session(msgspec.Struct, frozen=True):
    """What the cookie holds. `era`: of the actor, when it began (`ports.SessionEnds`)."""

    id: str
    token: str
    ends_us: int
    era: int


class Sessions:
    """Makes and reads cookies. `master` is the token of the environment."""

    def __init__(self, master: str, now_us: Callable[[], int]) -> None:
        self._sealing, self._forms = (
            hmac.digest(master.encode(), b"dashboard " + purpose, "sha256") for purpose in (b"sessions", b"forms")
        )
        self._now_us = now_us

    def begin(self, token: str, era: int) -> Session:
        """A new session."""
        return Session(f"ses_{secrets.token_hex(16)}", token, self._now_us() + SESSION_S * US_PER_S, era)

    def cookie(self, session: Session) -> str:
        """What the browser keeps."""
        sealed = seal(self._sealing, secrets.token_bytes(NONCE_BYTES), msgspec.json.encode(session))
        return urlsafe_b64encode(sealed).decode()

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie. None: it is not ours, or has ended."""
        if not cookie or len(cookie) > COOKIE_CHARACTERS_MAX:
            return None
        try:
            text = unseal(self._sealing, urlsafe_b64decode(cookie.encode()))
        except (Base64Error, UnicodeEncodeError):
            return None
        if text is None:
            return None
        try:
            session = msgspec.json.decode(text, type=Session)
        except msgspec.ValidationError:
            return None  # an earlier release's
        return session if session.ends_us > self._now_us() else None

    def form_token(self, cookie: str) -> str:
        """What every form carries while one is logged in."""
        return hmac.digest(self._forms, cookie.encode("utf-8", "surrogatepass"), "sha256").hex()

    def is_own(self, cookie: str, form_token: str) -> bool:
        """Whether a form was ours, made for this cookie."""
        return bool(cookie) and hmac.compare_digest(
            self.form_token(cookie).encode(), form_token.encode("utf-8", "replace")
        )


def set_cookie(name: str, value: str, *, secure: bool, max_age_s: int = SESSION_S) -> str:
    """The header's value. Scripts cannot read it and other sites cannot make a browser send it."""
    parts = [f"{name}={value}", f"Path={DASHBOARD}", f"Max-Age={max_age_s}", "HttpOnly", "SameSite=Strict"]
    return "; ".join([*parts, "Secure"] if secure else parts)
