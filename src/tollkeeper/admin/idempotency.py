"""Writes with an `Idempotency-Key`: run once, answered as often as asked. Plain ASGI between guard and framework.

What is refused (4xx) has changed nothing and is forgotten, so the request may be mended under the same key. What
failed (5xx) may have changed something: a repetition looks into the audit log first.
"""

from typing import Final

import msgspec

from tollkeeper.admin.asgi import Application, Message, Receive, Scope, Send, answer, answer_error, bearer
from tollkeeper.admin.caller import CALLER, Caller
from tollkeeper.domain.errors import DatabaseUnavailable, InvalidInput
from tollkeeper.domain.idempotency import (
    Answered,
    AnswerLost,
    Fresh,
    InUse,
    Reused,
    TooMany,
    checked_key,
    fingerprint,
)
from tollkeeper.domain.ports import IdempotencyBook
from tollkeeper.observability.logging import logger

WRITES: Final = frozenset({"POST", "PATCH", "PUT", "DELETE"})
HEADER: Final = b"idempotency-key"
REPLAYED: Final = ((b"idempotent-replayed", b"true"),)


class Idempotency:
    """Serves requests that a caller and a whole body have been found for."""

    def __init__(self, inner: Application, book: IdempotencyBook) -> None:
        self._inner, self._book = inner, book
        self._log = logger("admin")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = dict(scope["headers"])
        if scope["method"] not in WRITES or HEADER not in headers or CALLER not in scope:
            await self._inner(scope, receive, send)
            return
        token = bearer(headers)
        message = await receive()
        target = scope["raw_path"] + b"?" + scope["query_string"]
        try:
            key = checked_key(headers[HEADER].decode("latin-1"))
            asked = fingerprint(scope["method"], target, message.get("body", b""))
            begun = await self._book.begin(token, key, asked)
        except InvalidInput as error:
            await answer_error(send, "invalid_request", str(error))
            return
        except DatabaseUnavailable as error:
            await answer_error(send, "unavailable", str(error))
            return
        match begun:
            case Fresh():
                await self._run(begun, token, key, scope, _again(message, receive), send)
            case Answered():
                body_type = "application/json" if begun.body else "text/plain"
                await answer(send, begun.status, begun.body, body_type, REPLAYED)
            case _:
                await answer_error(send, *_refusal(begun))

    async def _run(self, turn: Fresh, token: str, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope[CALLER]
        scope[CALLER] = msgspec.structs.replace(caller, idempotency=turn.digest)
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        try:
            await self._inner(scope, receive, keep)
        finally:
            await self._remember(turn, token, key, sent)
            for message in sent:
                await send(message)

    async def _remember(self, turn: Fresh, token: str, key: str, sent: list[Message]) -> None:
        """Before the answer is sent, so that whoever has it finds it again."""
        status: int = sent[0]["status"] if sent else 500
        try:
            if status >= 500:
                await self._book.lost(turn)
            elif status >= 400:
                await self._book.refused(turn)
            else:
                body = b"".join(message.get("body", b"") for message in sent[1:])
                await self._book.answered(turn, token, key, Answered(status, body))
        except DatabaseUnavailable as error:
            # the change is made and told; a repetition finds it in the audit log once the lease has ended
            self._log.warning("idempotency_key_not_kept", why=str(error))


def _again(first: Message, receive: Receive) -> Receive:
    pending = [first]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _refusal(begun: InUse | Reused | AnswerLost | TooMany) -> tuple[str, str]:
    match begun:
        case InUse():
            return "idempotency_key_in_use", "A request with this Idempotency-Key is being served; wait for it."
        case Reused():
            return (
                "idempotency_key_reused",
                "This Idempotency-Key belongs to another request (method, path or body differ); use a new one.",
            )
        case AnswerLost():
            return (
                "idempotency_answer_lost",
                f"This request was carried out ({begun.action} of {begun.object_id}, audit event {begun.event_id}), "
                "but its answer was lost. Read what it made; a secret that nobody saw is replaced by rotating.",
            )
        case TooMany():
            return "too_many_idempotency_keys", "Too many Idempotency-Keys are remembered; try without, or later."
