"""Tokens of the admin API: create, find, change, rotate, revoke."""

import msgspec

from tollkeeper.admin.caller import Caller
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.services.lists import listed
from tollkeeper.domain.operators import AdminToken, AdminTokenChange, NewAdminToken
from tollkeeper.domain.paging import Paging
from tollkeeper.domain.words import Words, admin_token_words


class TokenService:
    """The bootstrap token is not among them: it belongs to the environment."""

    def __init__(self, parts: Parts) -> None:
        self._tokens, self._now_us = parts.tokens, parts.now_us

    async def create(self, caller: Caller, new: NewAdminToken) -> Words:
        """The token with its `secret`, which is shown this once."""
        token, secret = await self._tokens.by(caller.author).create(new)
        return self._words(token) | {"secret": secret}

    async def find(self, paging: Paging, *, include_revoked: bool = False) -> Words:
        """A page, newest first."""
        return listed(await self._tokens.find(paging, include_revoked=include_revoked), self._words)

    async def show(self, token: str) -> Words:
        """One, by name or id."""
        return self._words(await self._tokens.get(token))

    async def update(self, caller: Caller, token: str, change: AdminTokenChange) -> Words:
        return self._words(await self._tokens.by(caller.author).update(token, change))

    async def rotate(self, caller: Caller, token: str, overlap_s: float) -> Words:
        """The token with its new `secret`, which is shown this once."""
        rotated, secret = await self._tokens.by(caller.author).rotate(token, overlap_s=overlap_s)
        return self._words(rotated) | {"secret": secret}

    async def revoke(self, caller: Caller, token: str) -> Words:
        """For good, at once and everywhere."""
        return self._words(await self._tokens.by(caller.author).revoke(token))

    def me(self, caller: Caller) -> Words:
        """Who asks."""
        words: Words = msgspec.to_builtins(caller.actor)
        return words

    def _words(self, token: AdminToken) -> Words:
        return admin_token_words(token, self._now_us())
