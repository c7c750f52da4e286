"""Requests for what providers keep: answers, files, batches. Admitted like any other, and only for their owner.

What is not the organisation's is a 404, as what does not exist. Lists are answered from our own record, since the
provider's has everybody's. Each object is asked for where it was made.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from tollkeeper.domain.admission import Denial
from tollkeeper.domain.bodies import ByteBudget
from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.objects import ObjectKind, StoredObject
from tollkeeper.domain.policy import Principal
from tollkeeper.domain.ports import Corrector
from tollkeeper.domain.pricing import Price
from tollkeeper.gateway import background
from tollkeeper.gateway.asgi import HttpError
from tollkeeper.gateway.attempts import Attempts
from tollkeeper.gateway.batches import (
    ENDED,
    NOTE,
    Seen,
    asked_of,
    batch_call,
    bounded_file,
    models_of,
    read_seen,
    truth_of,
    truth_of_lines,
)
from tollkeeper.gateway.bound import UNPRICED
from tollkeeper.gateway.dialects import Call, Kept, Named, Produced, kept_call, pairs_of, parse_upload
from tollkeeper.gateway.late import ChargeNotes, Truth, notes_of, read_notes
from tollkeeper.gateway.objects import Objects
from tollkeeper.gateway.record import Exchange
from tollkeeper.gateway.routing import Pool, Route, Router, pool_at
from tollkeeper.gateway.stream import JSON
from tollkeeper.settings import Settings

PROVIDER_HEADER: Final = b"x-tollkeeper-provider"
"""Where a file is to be kept; default: the first provider of the dialect."""
PAGE: Final = 20
PAGE_MAX: Final = 100
SEEN_BYTES_MAX: Final = 16 * 2**10
"""Of an object's own JSON, kept for lists; a larger one is not listed."""
ITEMS_MAX: Final = 256
"""Of one answer, that later requests may refer to."""
FIRST_LOOK_US: Final = {ObjectKind.BATCH: 60 * 1_000_000, ObjectKind.RESPONSE: 10 * 1_000_000}
"""Until the gateway itself asks for the end of what was charged before it was over."""

LISTED: Final = frozenset(("limit", "after", "order", "purpose"))
LISTED_ANTHROPIC: Final = frozenset(("limit", "after_id"))
"""Parameters of a list's query."""

SHOW_ANSWERS: Final = ("response_get", "response_cancel")
"""Routes that answer with a stored answer itself."""

Refuse = Callable[[Exchange, Denial], Awaitable[None]]

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ObjectKeeper:
    """Writes down what one exchange makes. `kind`: of the object itself; its parts are items."""

    __slots__ = ("_exchange", "_kind", "_made", "_models", "_notes", "_now_us", "_objects")

    def __init__(
        self,
        objects: Objects,
        exchange: Exchange,
        kind: ObjectKind,
        now_us: Callable[[], int],
        *,
        notes: str = "",
        models: tuple[str, ...] = (),
    ) -> None:
        self._objects, self._exchange, self._kind, self._now_us = objects, exchange, kind, now_us
        self._notes, self._models = notes, models
        self._made: StoredObject | None = None

    def note(self, produced: Produced) -> None:
        """See `Keeper`."""
        plan, principal = self._exchange.plan, self._exchange.principal
        assert plan is not None and principal is not None
        seen = b"" if self._kind is ObjectKind.RESPONSE or len(produced.seen) > SEEN_BYTES_MAX else produced.seen
        made = StoredObject(
            root=principal.root,
            id=produced.id,
            kind=self._kind,
            provider=plan.route.provider,
            key_id=principal.key_id,
            created_us=self._now_us(),
            model=plan.route.model,
            upstream_model=plan.route.upstream_model,
            seen=seen.decode("utf-8", "replace"),
            notes=self._notes,
        )
        items = [msgspec.structs.replace(made, id=item, kind=ObjectKind.ITEM) for item in produced.items[:ITEMS_MAX]]
        self._made = made = self._followed(made)
        self._objects.put([made, *items])

    def ended(self) -> None:
        """See `Keeper`."""
        if self._made is not None and not self._made.notes and self._made.kind is ObjectKind.RESPONSE:
            followed = self._followed(self._made)
            if followed is not self._made:
                self._objects.put([followed])

    def _followed(self, made: StoredObject) -> StoredObject:
        """With what its correction needs, if it was charged before it is over.

        Only what was *presumed* leaves a record that a correction replaces: anything else would be charged twice.
        """
        attempt = self._exchange.attempt
        if made.kind not in FIRST_LOOK_US or attempt is None or not attempt.presumed:
            return made
        notes = notes_of(attempt, self._models or (made.upstream_model,))
        return msgspec.structs.replace(made, notes=notes, due_us=self._now_us() + FIRST_LOOK_US[made.kind])

    async def wait(self) -> None:
        """See `Keeper`."""
        await self._objects.committed()


class _Seen:
    """An object that is charged late, as the provider shows it now."""

    __slots__ = ("_its", "_routes")

    def __init__(self, routes: "KeptRoutes", its: StoredObject) -> None:
        self._routes, self._its = routes, its

    def note(self, produced: Produced) -> None:
        """See `Keeper`."""
        if produced.id == self._its.id:
            self._routes.seen(self._its, produced)

    def ended(self) -> None:
        """See `Keeper`."""

    async def wait(self) -> None:
        """See `Keeper`."""
        await self._routes.committed()


class _Forgetter:
    """An object that the provider has deleted."""

    __slots__ = ("_id", "_objects", "_root")

    def __init__(self, objects: Objects, root: str, id_: str) -> None:
        self._objects, self._root, self._id = objects, root, id_

    def note(self, produced: Produced) -> None:
        """See `Keeper`."""

    def ended(self) -> None:
        """See `Keeper`."""

    async def wait(self) -> None:
        """See `Keeper`."""
        await self._objects.forget(self._root, self._id)


class KeptRoutes:
    """Serves `dialects/kept.py`'s routes. `refuse` tells a client a denial."""

    def __init__(
        self,
        settings: Settings,
        objects: Objects,
        attempts: Attempts,
        uploads: ByteBudget,
        refuse: Refuse,
        router: Router,
        corrector: Corrector,
        now_us: Callable[[], int],
    ) -> None:
        self._router, self._corrector = router, corrector
        self._settings, self._objects, self._attempts = settings, objects, attempts
        self._uploads, self._refuse, self._now_us = uploads, refuse, now_us

    async def committed(self) -> None:
        """See `Objects.committed`."""
        await self._objects.committed()

    async def serve(self, exchange: Exchange, named: Named, principal: Principal) -> None:
        """Answer the client. Raises as `Attempts.serve`, and RequestError UNKNOWN_OBJECT."""
        route = named.route
        if route.here:
            await self._list(exchange, route, principal)
        elif route.names_one:
            await self._one(exchange, named, principal)
        elif route.endpoint.form:
            await self._upload(exchange, route, principal)
        else:
            await self._make_batch(exchange, route, principal)

    async def _one(self, exchange: Exchange, named: Named, principal: Principal) -> None:
        endpoint = named.route.endpoint
        call = kept_call(named, exchange.client.query)
        found = await self._objects.own(principal.root, named.route.kind, named.id)
        provider = self._settings.providers.get(found.provider)
        if provider is None or provider.dialect != endpoint.dialect:
            raise RequestError(
                Fault.UNKNOWN_OBJECT, f"'{named.id}' is at a provider that this path does not lead to."
            )
        if endpoint.name.endswith("_delete"):
            exchange.keep = _Forgetter(self._objects, principal.root, named.id)
        elif found.kind is ObjectKind.BATCH or (found.notes and endpoint.name in SHOW_ANSWERS):
            exchange.keep = _Seen(self, found)
        exchange.call = msgspec.structs.replace(call, model=found.model)
        await self._attempt(exchange, pool_at(found.provider, found.model, found.upstream_model))

    async def _attempt(self, exchange: Exchange, pool: Pool) -> None:
        assert exchange.endpoint is not None
        denial = await self._attempts.serve(exchange, exchange.endpoint, [pool])
        if denial is not None:
            await self._refuse(exchange, denial)

    async def _make_batch(self, exchange: Exchange, route: Kept, principal: Principal) -> None:
        client, server = exchange.client, self._settings.server
        client.check_encoding()
        body = await client.body(server.body_bytes_max, server.body_timeout_s)
        if body is None:
            return
        file = await self._objects.own(principal.root, ObjectKind.FILE, asked_of(body))
        models, now_us = models_of(file), self._now_us()
        prices = {model: self._price(file.provider, model, now_us) for model in models}
        versions = {model: UNPRICED if price is None else price.version for model, price in prices.items()}
        exchange.call = batch_call(route.endpoint, body, file, principal, versions)
        exchange.keep = ObjectKeeper(self._objects, exchange, ObjectKind.BATCH, self._now_us, models=models)
        await self._attempt(exchange, pool_at(file.provider, models[0], models[0]))

    def _price(self, provider: str, model: str, now_us: int) -> Price | None:
        return self._attempts.bounder.price_now(Route(model, provider, model), now_us)

    def seen(self, its: StoredObject, produced: Produced) -> StoredObject:
        """What the provider shows of an object: once it is over, the truth takes the place of its bound.

        The object as it is known from here on; it is due no more when it is over. Raises OutboxUnavailable.
        """
        notes = read_notes(its.notes)
        if its.kind is ObjectKind.BATCH:
            return self._batch_seen(its, notes, produced)
        status = background.status_of(produced.seen)
        if notes is None or not status or status in background.RUNNING:
            return its
        info = self._attempts.bounder.info_at(Route(its.model, its.provider, its.upstream_model), its.created_us)
        found = background.truth_of(notes, produced.seen, info)
        over = msgspec.structs.replace(its, due_us=None)
        if found is not None:
            self._corrector.correct(its.root, found.attempt, found.charge, f"{background.NOTE}: {its.id}")
            over = msgspec.structs.replace(over, notes=found.notes)
        self._objects.put([over])
        return over

    def _batch_seen(self, batch: StoredObject, notes: ChargeNotes | None, produced: Produced) -> StoredObject:
        """The same of a batch, whose files belong to its owner."""
        seen = read_seen(produced.seen)
        if seen is None:
            return batch
        models = () if notes is None else notes.models
        price = self._price(batch.provider, models[0], self._now_us()) if models else None
        found = None if notes is None else truth_of(notes, seen, price)
        if found is not None:
            self._corrector.correct(batch.root, found.attempt, found.charge, f"{NOTE}: {batch.id}")
        shown = produced.seen.decode("utf-8", "replace") if len(produced.seen) <= SEEN_BYTES_MAX else batch.seen
        now = msgspec.structs.replace(
            batch,
            seen=shown,
            notes=batch.notes if found is None else found.notes,
            due_us=self._due_us(batch, notes, seen, found),
        )
        made = [now]
        for id_ in (seen.output_file_id, seen.error_file_id):
            if id_:
                made.append(
                    msgspec.structs.replace(
                        now, id=id_, kind=ObjectKind.FILE, seen="", notes="", due_us=None, created_us=self._now_us()
                    )
                )
        self._objects.put(made)
        return now

    def _due_us(self, batch: StoredObject, notes: ChargeNotes | None, seen: Seen, found: Truth | None) -> int | None:
        """An ended batch is due no more, unless its sums do not tell what it cost: then its lines may."""
        if seen.status not in ENDED:
            return batch.due_us
        if notes is None or notes.settled or found is not None or not seen.output_file_id:
            return None
        return batch.due_us or self._now_us()

    async def read_lines(self, batch: StoredObject, output: bytes) -> None:
        """What an ended batch cost by the lines of its output; if they do not tell either, its bound stays.

        Raises OutboxUnavailable.
        """
        notes, seen = read_notes(batch.notes), read_seen(batch.seen.encode())
        found = None
        if notes is not None and seen is not None:
            now_us = self._now_us()
            prices = {model: self._price(batch.provider, model, now_us) for model in notes.models}
            known = {model: price for model, price in prices.items() if price is not None}
            found = await truth_of_lines(notes, seen, output, known)
        if found is not None:
            self._corrector.correct(batch.root, found.attempt, found.charge, f"{NOTE}: {batch.id}")
        kept = batch.notes if found is None else found.notes
        self._objects.put([msgspec.structs.replace(batch, notes=kept, due_us=None)])

    async def _upload(self, exchange: Exchange, route: Kept, principal: Principal) -> None:
        client, server = exchange.client, self._settings.server
        client.check_encoding()
        pool = pool_at(self._provider(exchange))
        stated = client.header(b"content-length")
        room = min(int(stated), server.upload_bytes_max) if stated.isdigit() else server.upload_bytes_max
        if not self._uploads.take(room):
            raise HttpError(Fault.OVERLOADED, UPLOADS_FULL, headers=((b"retry-after", b"1"),))
        try:
            body = await client.upload(server.upload_bytes_max, server.body_timeout_s)
            if body is None:
                return
            exchange.call = parse_upload(route.endpoint, body, client.header(b"content-type"))
            notes = await self._file_notes(exchange.call, pool, principal)
            exchange.keep = ObjectKeeper(self._objects, exchange, route.kind, self._now_us, notes=notes)
            await self._attempt(exchange, pool)
        finally:
            self._uploads.give(room)

    async def _file_notes(self, call: Call, pool: Pool, principal: Principal) -> str:
        """What a batch of this file could cost, if it is for one. Raises RequestError."""
        form = call.form
        assert form is not None
        if call.endpoint.dialect != "openai" or form.texts().get("purpose") != "batch":
            return ""
        provider = pool.deployments[0].route.provider
        data = form.files("file")[0].data
        notes, named = await bounded_file(data, provider, self._router, self._attempts.bounder, self._now_us())
        if named and {its.provider for its in await self._objects.owned(principal.root, named)} != {provider}:
            raise RequestError(Fault.ELSEWHERE, f"The batch refers to objects that are not kept at '{provider}'.")
        return msgspec.json.encode(notes).decode()

    def _provider(self, exchange: Exchange) -> str:
        """Where a new object is to be kept: only configured providers can be named."""
        asked = exchange.client.header(PROVIDER_HEADER).decode("ascii", "replace")
        spoken = [name for name, its in self._settings.providers.items() if its.dialect == exchange.dialect]
        if asked and asked not in spoken:
            known = ", ".join(spoken) or "none"
            message = f"{PROVIDER_HEADER.decode()}: there is no such provider of this dialect; known: {known}."
            raise RequestError(Fault.INVALID, message)
        if not spoken:
            raise RequestError(Fault.UNKNOWN_ROUTE, f"No provider of the {exchange.dialect} dialect is configured.")
        return asked or spoken[0]

    async def _list(self, exchange: Exchange, route: Kept, principal: Principal) -> None:
        anthropic = exchange.dialect == "anthropic"
        query = Paging.read(exchange.client.query, anthropic=anthropic)
        found = await self._objects.page(
            principal.root,
            route.kind,
            limit=query.limit + 1,
            after=query.after,
            oldest_first=query.oldest_first,
        )
        shown = [seen for its in found[: query.limit] if (seen := _seen(its)) is not None and query.wants(seen)]
        first, last = (shown[0].get("id"), shown[-1].get("id")) if shown else (None, None)
        page: dict[str, Any] = {"data": shown, "has_more": len(found) > query.limit}
        page |= {"first_id": first, "last_id": last}
        if not anthropic:
            page = {"object": "list", **page}
        exchange.status = 200
        await exchange.client.respond(200, exchange.id_lines() + JSON, msgspec.json.encode(page))


UPLOADS_FULL: Final = "Too many files are being uploaded at the moment. Try again shortly."


class Paging(msgspec.Struct, frozen=True):
    """Which objects of a list are asked for."""

    limit: int = PAGE
    after: str | None = None
    oldest_first: bool = False
    purpose: str | None = None

    @classmethod
    def read(cls, query: bytes, *, anthropic: bool) -> "Paging":
        """From the query. Raises RequestError for what cannot be read."""
        found = dict(pairs_of(query, LISTED_ANTHROPIC if anthropic else LISTED))
        limit = found.get("limit", str(PAGE))
        if not limit.isascii() or not limit.isdigit() or not int(limit[:9]) >= 1:
            raise RequestError(Fault.INVALID, "'limit' must be a number above zero.", param="limit")
        if found.get("order", "desc") not in ("asc", "desc"):
            raise RequestError(Fault.INVALID, "'order' must be asc or desc.", param="order")
        after = found.get("after_id" if anthropic else "after")
        return cls(min(int(limit[:9]), PAGE_MAX), after, found.get("order") == "asc", found.get("purpose"))

    def wants(self, seen: dict[str, Any]) -> bool:
        """Whether an object is of the purpose that was asked for."""
        return self.purpose is None or seen.get("purpose") == self.purpose


def _seen(its: StoredObject) -> dict[str, Any] | None:
    try:
        return _decode(its.seen.encode())
    except msgspec.DecodeError:
        return None
