"""A stream's events put together as the answer that it would have been without streaming. For the log; never fails.

Of a stream that broke off, what came is put together. Events that cannot be read are passed over; where nothing can
be read, the raw events are the answer.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from tollkeeper.gateway.dialects.base import Endpoint, Name

_decode = msgspec.json.Decoder().decode
_SET: Final = frozenset(("role", "type", "id", "index"))
"""Texts of a delta that are stated, perhaps again, not continued."""
_DEPTH_MAX: Final = 32

Event = dict[str, Any]


def reassemble(endpoint: Endpoint, raw: bytes) -> Any:
    """The answer as plain values, or `raw` itself."""
    events = [event for event in _events(raw) if isinstance(event, dict)]
    try:
        answer = _FORMS[endpoint.name](events)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return raw  # a provider's format is not what its name says
    if answer is None:
        return raw
    for event in events:
        if event.get("error"):
            answer["error"] = event["error"]
    return answer


def _events(raw: bytes) -> Iterator[Any]:
    for block in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        if lines:
            try:
                yield _decode(b"\n".join(lines))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue


def _chat(events: list[Event]) -> Event | None:
    return _choices(events, "chat.completion", _chat_choice)


def _completions(events: list[Event]) -> Event | None:
    return _choices(events, "text_completion", _completion_choice)


def _choices(events: list[Event], kind: str, add: Callable[[Event, Event], None]) -> Event | None:
    chunks = [event for event in events if isinstance(event.get("choices"), list)]
    if not chunks:
        return None
    answer: Event = {}
    choices: dict[int, Event] = {}
    for chunk in chunks:
        answer |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for part in chunk["choices"]:
            index = part.get("index", 0)
            add(choices.setdefault(index, {"index": index}), part)
    answer["object"] = kind
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def _chat_choice(choice: Event, part: Event) -> None:
    _merge(choice.setdefault("message", {}), part.get("delta") or {})
    _finish(choice, part, ("delta", "index", "logprobs"))


def _completion_choice(choice: Event, part: Event) -> None:
    choice["text"] = choice.get("text", "") + (part.get("text") or "")
    _finish(choice, part, ("text", "index", "logprobs"))


def _finish(choice: Event, part: Event, handled: tuple[str, ...]) -> None:
    if part.get("logprobs"):
        _merge(choice.get("logprobs") or _set(choice, "logprobs", {}), part["logprobs"])
    elif "logprobs" in part:
        choice.setdefault("logprobs", None)
    choice |= {name: value for name, value in part.items() if name not in handled and value is not None}


def _merge(into: Event, delta: Mapping[str, Any], depth: int = 0) -> None:
    """Continue texts and lists, go into objects, set everything else; objects of a list are told apart by index."""
    if depth > _DEPTH_MAX:
        return
    for name, value in delta.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif isinstance(value, str) and isinstance(known, str) and name not in _SET:
            into[name] = known + value
        elif isinstance(value, dict):
            _merge(into.setdefault(name, {}) if isinstance(known, dict) else _set(into, name, {}), value, depth + 1)
        elif isinstance(value, list):
            _extend(known if isinstance(known, list) else _set(into, name, []), value, depth + 1)
        else:
            into[name] = value


def _set(into: Event, name: str, value: Any) -> Any:
    into[name] = value
    return value


def _extend(into: list[Any], parts: list[Any], depth: int) -> None:
    for part in parts:
        index = part.get("index") if isinstance(part, dict) else None
        known = next((item for item in into if isinstance(item, dict) and item.get("index") == index), None)
        if index is None or known is None:
            into.append(dict(part) if isinstance(part, dict) else part)
        else:
            _merge(known, part, depth)


def _responses(events: list[Event]) -> Event | None:
    """The last event has the whole; before it came, the items that are done and the texts that had begun."""
    told = [event["response"] for event in events if isinstance(event.get("response"), dict)]
    if told and told[-1].get("status") in ("completed", "incomplete", "failed"):
        last: Event = told[-1]
        return last
    if not told:
        return None
    items: dict[int, Any] = {}
    for event in events:
        index = event.get("output_index")
        if index is None:
            continue
        if event.get("type") == "response.output_item.added":
            items[index] = dict(event["item"])
        elif event.get("type") == "response.output_item.done":
            items[index] = event["item"]
        elif event.get("type") == "response.output_text.delta" and isinstance(items.get(index), dict):
            content = items[index].setdefault("content", [])
            if not content:
                content.append({"type": "output_text", "text": ""})
            content[-1]["text"] += event["delta"]
    return {**told[-1], "output": [items[index] for index in sorted(items)]}


def _messages(events: list[Event]) -> Event | None:
    message: Event | None = None
    blocks: dict[int, Event] = {}
    for event in events:
        kind = event.get("type")
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            _block_delta(blocks.setdefault(event["index"], {}), event["delta"])
        elif kind == "message_delta" and message is not None:
            message |= event.get("delta") or {}
            message["usage"] = (message.get("usage") or {}) | (event.get("usage") or {})
    if message is not None:
        message["content"] = [_block(blocks[index]) for index in sorted(blocks)]
    return message


def _block_delta(block: Event, delta: Event) -> None:
    if delta.get("type") == "citations_delta":
        block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        return
    for name, value in delta.items():
        if name != "type" and isinstance(value, str):
            block[name] = (block.get(name) or "") + value


def _block(block: Event) -> Event:
    """A block as a whole answer has it: a tool's input comes as pieces of its JSON."""
    if "partial_json" in block:
        text = block.pop("partial_json")
        try:
            block["input"] = _decode(text) if text else {}
        except msgspec.DecodeError:
            block["input"] = text
    return block


_FORMS: Final[Mapping[Name, Callable[[list[Event]], Event | None]]] = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": lambda _: None,
    "responses": _responses,
    "messages": _messages,
}
