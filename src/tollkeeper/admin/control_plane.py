"""The control plane as one ASGI application: probes, dashboard, the page `/docs`, the admin API behind its guard.

FastAPI, the models and the pages are loaded when somebody asks for one of them: they are a tenth of a gateway's
memory, and most processes of a fleet only ever answer probes.
"""

import asyncio
import gc
from typing import TYPE_CHECKING, NamedTuple

from tollkeeper.admin.asgi import DASHBOARD, Guard, Receive, Scope, Send, answer_error
from tollkeeper.admin.authentication import Authenticator
from tollkeeper.admin.idempotency import Idempotency
from tollkeeper.admin.parts import Parts
from tollkeeper.admin.probes import INDEX, Probes
from tollkeeper.admin.services import Services

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tollkeeper.admin.dashboard.site import Site


class Loaded(NamedTuple):
    """What needs a framework."""

    api: "FastAPI"
    dashboard: "Site"


class ControlPlane:
    """Everything that is not `/v1/`, as an ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self.services = Services(parts)
        self.authenticator = Authenticator(
            bootstrap=parts.admin_token, tokens=parts.tokens, limiter=parts.logins, metrics=parts.metrics
        )
        self._parts = parts
        self._loaded: Loaded | None = None
        self._loading: asyncio.Task[Loaded] | None = None
        self._guarded = Guard(Idempotency(self._api, parts.idempotency), self.authenticator)
        self._probes = Probes(
            readiness=parts.readiness, exposition=parts.exposition, index=INDEX.format(version=parts.version)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] in Probes.PATHS:
            await self._probes(scope, receive, send)
        elif scope["type"] == "http" and (scope["path"] + "/").startswith(f"{DASHBOARD}/"):
            await (await self._ready()).dashboard(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def public(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Probes alone; everything else is as if it did not exist: the control plane has a listener of its own."""
        if scope["type"] == "http" and scope["path"] in Probes.PATHS:
            await self._probes(scope, receive, send)
        elif scope["type"] == "http":
            await answer_error(send, "not_found", "There is nothing here.")
        else:
            await self._guarded(scope, receive, send)

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (await self._ready()).api(scope, receive, send)

    async def _ready(self) -> Loaded:
        """What needs a framework, loaded in a thread by whoever asks first: a quarter of a second, in which the
        data plane goes on."""
        if self._loaded is not None:
            return self._loaded
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(asyncio.to_thread(self.load))
        return await asyncio.shield(self._loading)

    def load(self) -> Loaded:
        """The same at once."""
        if self._loaded is None:
            from tollkeeper.admin.api import api_of
            from tollkeeper.admin.dashboard import dashboard

            api = api_of(self.services, self._parts)
            self._loaded = Loaded(api, dashboard(self._parts, self.services, self.authenticator))
            gc.freeze()  # it stays as long as the process: the collector need not walk it
        return self._loaded
