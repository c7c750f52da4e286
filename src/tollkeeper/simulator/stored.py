"""What a provider keeps: answers of the Responses API, files. There is one account and no organisation, as at any.

Ids are numbers that count up, so that a test can guess another's. Everything is bounded; the oldest goes first.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tollkeeper.simulator.asks import Refusal
from tollkeeper.simulator.media import File, form_of

KEPT_MAX: Final = 10_000
FILE_BYTES_MAX: Final = 64 * 2**20
"""Of all files together."""

_encode = msgspec.json.encode


class Kept(msgspec.Struct, frozen=True):
    """An answer that is no error."""

    body: bytes
    media_type: str = "application/json"


class Shelf:
    """The provider's account. `responses` and `files` are by id."""

    def __init__(self) -> None:
        self.responses: dict[str, tuple[bytes, Any]] = {}
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._number = 0

    def keep_response(self, body: bytes, request: bytes) -> None:
        """A response, with the input that it answers."""
        answer, asked = msgspec.json.decode(body), msgspec.json.decode(request)
        given = asked.get("input", "")
        if isinstance(given, str):
            given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
        items = [item | {"id": f"{answer['id']}_in{at}"} for at, item in enumerate(given)]
        self.responses[answer["id"]] = (body, items)
        while len(self.responses) > KEPT_MAX:
            del self.responses[next(iter(self.responses))]

    def missing(self, request: bytes) -> Refusal | None:
        """Why a request to the Responses API is refused: what it refers to is not here."""
        previous = msgspec.json.decode(request, type=dict[str, Any]).get("previous_response_id")
        if previous is None or previous in self.responses:
            return None
        message = f"Previous response with id '{previous}' not found."
        return Refusal(400, message, code="previous_response_not_found", param="previous_response_id")

    def answer(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes) -> Kept | Refusal | None:
        """The answer to a request for what is kept; None if the path is no such."""
        _, _, kind, *rest = path.split("/")
        if kind == "responses" and rest:
            return self._response(method, rest)
        if kind == "files":
            return self._file(method, rest, headers, body)
        return None

    def _response(self, method: str, rest: list[str]) -> Kept | Refusal | None:
        found = self.responses.get(rest[0])
        if found is None:
            return Refusal(404, f"Response with id '{rest[0]}' not found.")
        whole, items = found
        match method, rest[1:]:
            case "GET", []:
                return Kept(whole)
            case "DELETE", []:
                del self.responses[rest[0]]
                return Kept(_encode({"id": rest[0], "object": "response", "deleted": True}))
            case "POST", ["cancel"]:
                return Kept(_encode(msgspec.json.decode(whole) | {"status": "cancelled"}))
            case "GET", ["input_items"]:
                ids = (items[0]["id"], items[-1]["id"]) if items else (None, None)
                page = {"object": "list", "data": items, "has_more": False, "first_id": ids[0], "last_id": ids[1]}
                return Kept(_encode(page))
        return None

    def _file(
        self, method: str, rest: list[str], headers: Mapping[bytes, bytes], body: bytes
    ) -> Kept | Refusal | None:
        if not rest:
            return self._upload(headers, body)  # a list is everybody's, and the gateway must not ask for it
        found = self.files.get(rest[0])
        if found is None:
            return Refusal(404, f"No such File object: {rest[0]}", param="id")
        match method, rest[1:]:
            case "GET", []:
                return Kept(_encode(found[0]))
            case "GET", ["content"]:
                return Kept(found[1], "application/octet-stream")
            case "DELETE", []:
                del self.files[rest[0]]
                deleted: dict[str, Any] = {"id": rest[0], "object": "file", "deleted": True}
                return Kept(_encode(deleted | ({"type": "file_deleted"} if b"anthropic-version" in headers else {})))
        return None

    def _upload(self, headers: Mapping[bytes, bytes], body: bytes) -> Kept | Refusal:
        try:
            fields = form_of(headers.get(b"content-type", b""), body)
        except (ValueError, UnicodeDecodeError) as error:
            return Refusal(400, f"Invalid request: {error}")
        file = fields.get("file")
        if not isinstance(file, File):
            return Refusal(400, "file is required", param="file")
        return Kept(
            _encode(self.keep_file(file, fields.get("purpose", ""), anthropic=b"anthropic-version" in headers))
        )

    def keep_file(self, file: File, purpose: str, *, anthropic: bool = False) -> dict[str, Any]:
        """A file, as the API shows it."""
        self._number += 1
        if anthropic:
            shown: dict[str, Any] = {"id": f"file_{self._number:024x}", "type": "file", "downloadable": True}
            shown |= {"mime_type": file.media_type, "size_bytes": len(file.data), "filename": file.filename}
            shown["created_at"] = "2026-01-01T00:00:00Z"
        else:
            shown = {"id": f"file-{self._number:024x}", "object": "file", "purpose": purpose, "status": "processed"}
            shown |= {"bytes": len(file.data), "filename": file.filename, "created_at": 1_700_000_000}
        self.files[shown["id"]] = (shown, file.data)
        while sum(len(data) for _, data in self.files.values()) > FILE_BYTES_MAX:
            del self.files[next(iter(self.files))]
        return shown
