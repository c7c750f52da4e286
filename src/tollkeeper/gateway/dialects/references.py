"""Which stored objects a request refers to: earlier answers, their items, files. And those nobody can isolate.

Every value of a body is looked at but what is the client's own data (schemas, arguments of tools, metadata). Bodies
that `content.py` has found to be nothing but text, and nothing that is stored, are not looked at. Where a key stands
twice in an object nobody can say what a provider would read, and the request is refused.
"""

import json
import re
from typing import Any, Final

import msgspec

from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.domain.objects import ObjectKind
from tollkeeper.gateway.dialects.base import Call

Reference = tuple[ObjectKind, str]

REFERENCES_MAX: Final = 1000
WORDS: Final = re.compile(
    rb"file_id|previous_response_id|item_reference|vector_store|container|conversation|skill_id|image_generation_call"
)
"""What a body that only counts tokens has if it refers to anything. A name with an escape is not seen: then look."""
CLIENTS_OWN: Final = frozenset(("parameters", "input_schema", "schema", "arguments", "metadata"))
CALLS: Final = ("tool_use", "server_tool_use", "mcp_tool_use", "custom_tool_call", "function_call")
"""Whose `input` is what a model wrote for a tool."""
OFF: Final = ("vector_store_ids", "vector_store_id", "container", "container_id", "skill_id")
INLINE: Final = frozenset(("type", "id", "status"))

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def references(call: Call, body: bytes) -> frozenset[Reference]:
    """The objects that a JSON body names. Raises RequestError for those that are not served."""
    if not _may_refer(call, body):
        return frozenset()
    found: set[Reference] = set()
    try:
        tree = _decode(body)
        if _encode(tree) != body:
            json.loads(body, object_pairs_hook=_without_repeats)
        if tree.get("conversation") is not None and call.endpoint.name == "responses":
            _refuse("conversation", tree)
        _walk(tree, found)
    except RecursionError:
        raise RequestError(Fault.MALFORMED, "The JSON body of your request is nested too deep.") from None
    if call.endpoint.name == "responses":
        _items(tree.get("input"), found)
    if len(found) > REFERENCES_MAX:
        raise RequestError(Fault.INVALID, f"The request refers to more than {REFERENCES_MAX} stored objects.")
    return frozenset(found)


def _may_refer(call: Call, body: bytes) -> bool:
    """Whether to look. A conversation that was found to be nothing but text cannot; most are."""
    if call.sold is not None:
        return call.endpoint.name == "count_tokens" and (b"\\u" in body or WORDS.search(body) is not None)
    content = call.content
    return bool(content.images) or content.unbounded is not None or content.stored_context is not None


def _without_repeats(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        message = "A JSON object of your request has the same key twice, which providers read differently."
        raise RequestError(Fault.INVALID, message)


def _walk(node: Any, found: set[Reference]) -> None:
    if isinstance(node, list):
        for value in node:
            _walk(value, found)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    for key, value in node.items():
        if key in CLIENTS_OWN or value is None or (key == "input" and kind in CALLS):
            continue
        if key == "audio" and isinstance(value, dict) and "id" in value:
            _refuse(key, node)
        if key in OFF and not (key == "container" and isinstance(value, dict) and value.get("type") == "auto"):
            _refuse(key, node)
        if key == "previous_response_id" and isinstance(value, str):
            found.add((ObjectKind.RESPONSE, value))
        elif key in ("file_id", "input_file_id") and isinstance(value, str):
            found.add((ObjectKind.FILE, value))
        elif key == "file_ids" and isinstance(value, list):
            found.update((ObjectKind.FILE, its) for its in value if isinstance(its, str))
        else:
            _walk(value, found)


def _refuse(key: str, node: dict[str, Any]) -> None:
    if key == "skill_id" and node.get("type") == "anthropic":
        return
    raise RequestError(
        Fault.UNKNOWN_OBJECT,
        f"'{key}' is not served here: what it names is kept at the provider and could be another organisation's.",
        param=key,
    )


def _items(value: Any, found: set[Reference]) -> None:
    """Items of an answer that are only named: what they hold is at the provider."""
    for item in value if isinstance(value, list) else []:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            continue
        kind = item.get("type")
        if kind in (None, "message", "item_reference"):
            named = item.get("content") is None
        elif kind == "reasoning":
            named = item.get("encrypted_content") is None
        elif kind == "image_generation_call":
            named = item.get("result") is None
        else:
            named = item.keys() <= INLINE
        if named:
            found.add((ObjectKind.ITEM, item["id"]))
