"""What a provider keeps: answers of the Responses API, files. There is one account and no organisation, as at any.

Ids are numbers that count up, so that a test can guess another's. Everything is bounded; the oldest goes first.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.asks import Endpoint, Refusal, parse_ask
from tollkeeper.simulator.media import File, form_of
from tollkeeper.simulator.plan import plan_answer

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
        self.batches: dict[str, dict[str, Any]] = {}
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
        if kind == "batches":
            return self._batch(method, rest, body)
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

    def _batch(self, method: str, rest: list[str], body: bytes) -> Kept | Refusal | None:
        """A batch is validating when it is made, and over when it is looked at."""
        if not rest:
            return self._make_batch(body)
        found = self.batches.get(rest[0])
        if found is None:
            return Refusal(404, f"No batch found with id '{rest[0]}'.")
        if method == "POST" and rest[1:] == ["cancel"]:
            found |= {"status": "cancelled", "request_counts": {"total": 0, "completed": 0, "failed": 0}}
        elif method == "GET" and not rest[1:]:
            self._finish(found)
        else:
            return None
        return Kept(_encode(found))

    def _make_batch(self, body: bytes) -> Kept | Refusal:
        asked = msgspec.json.decode(body, type=dict[str, Any])
        file = self.files.get(asked["input_file_id"])
        if file is None:
            return Refusal(400, "Invalid input_file_id.", param="input_file_id")
        self._number += 1
        batch: dict[str, Any] = {
            name: asked.get(name) for name in ("endpoint", "input_file_id", "completion_window", "metadata")
        }
        batch |= {"id": f"batch_{self._number:024x}", "object": "batch", "status": "validating"}
        batch |= {"created_at": 1_700_000_000, "usage": None, "output_file_id": None, "error_file_id": None}
        batch["request_counts"] = {"total": 0, "completed": 0, "failed": 0}
        self.batches[batch["id"]] = batch
        while len(self.batches) > KEPT_MAX:
            del self.batches[next(iter(self.batches))]
        return Kept(_encode(batch))

    def _finish(self, batch: dict[str, Any]) -> None:
        if batch["status"] != "validating":
            return
        total, lines = Usage(), []
        for raw in self.files[batch["input_file_id"]][1].splitlines():
            line = msgspec.json.decode(raw, type=dict[str, Any])
            ask = parse_ask(Endpoint(line["url"]), _encode(line["body"]))
            if isinstance(ask, Refusal):
                continue
            usage = plan_answer(ask).usage
            total = Usage(total.input_tokens + usage.input_tokens, total.output_tokens + usage.output_tokens)
            lines.append(
                _encode({"custom_id": line["custom_id"], "response": _answered(line["url"], ask.model, usage)})
            )
        shown = self.keep_file(File("output.jsonl", "application/jsonl", b"\n".join(lines)), "batch_output")
        batch |= {"status": "completed", "output_file_id": shown["id"]}
        batch["request_counts"] = {"total": len(lines), "completed": len(lines), "failed": 0}
        batch["usage"] = {
            "input_tokens": total.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": total.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total.total_tokens,
        }

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


def _answered(url: str, model: str, usage: Usage) -> dict[str, Any]:
    """A line's answer in an output file, as far as it tells what it used."""
    names = ("input_tokens", "output_tokens") if url == Endpoint.RESPONSES else ("prompt_tokens", "completion_tokens")
    told = {names[0]: usage.input_tokens, names[1]: usage.output_tokens, "total_tokens": usage.total_tokens}
    return {"status_code": 200, "body": {"model": f"{model}-2026-01-01", "usage": told}}
