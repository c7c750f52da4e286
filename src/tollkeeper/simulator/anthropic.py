"""Anthropic's messages, model list and errors on the wire. Decides nothing.

Anthropic's `input_tokens` leaves out cached reads and cache writes, which the project's `Usage` includes.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.answers import Events, Identity, quoted
from tollkeeper.simulator.asks import Refusal
from tollkeeper.simulator.openai import escaped
from tollkeeper.simulator.plan import Choice, Plan

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES: Final = {
    429: "This request would exceed your organization's rate limit. Please reduce the prompt length or the maximum "
    "tokens requested, or try again later.",
    500: "Internal server error",
    529: "Overloaded",
}
_PING: Final = 'event: ping\ndata: {"type":"ping"}\n\n'
_BLOCK_STOP: Final = 'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
_MESSAGE_STOP: Final = 'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def _tokens(usage: Usage, output: int) -> str:
    fresh = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
    return (
        f'"input_tokens":{fresh},"cache_creation_input_tokens":{usage.cache_write_tokens},'
        f'"cache_read_input_tokens":{usage.cached_tokens},"output_tokens":{output}'
    )


def usage_json(usage: Usage, output: int) -> str:
    """The usage object of a message with `output` tokens so far."""
    long_lived = usage.cache_write_1h_tokens
    return (
        f'{{{_tokens(usage, output)},"cache_creation":{{"ephemeral_5m_input_tokens":'
        f'{usage.cache_write_tokens - long_lived},"ephemeral_1h_input_tokens":{long_lived}}}{_thinking(usage)},'
        '"service_tier":"standard","inference_geo":"not_available"}'
    )


def _thinking(usage: Usage) -> str:
    details = f'{{"thinking_tokens":{usage.reasoning_tokens}}}' if usage.reasoning_tokens else "null"
    return f',"output_tokens_details":{details},"server_tool_use":null'


def _ending(choice: Choice) -> str:
    if choice.capped:
        return "max_tokens"
    return "end_turn" if choice.tool is None else "tool_use"


def _message(name: Identity, content: str, ending: str, usage: str) -> str:
    return (
        f'{{"id":"msg_{name.number:024x}","type":"message","role":"assistant","model":{name.model},'
        f'"content":[{content}],"stop_reason":{ending},"stop_sequence":null,"stop_details":null,'
        f'"container":null{usage}}}'
    )


def _block(choice: Choice, name: Identity, text: str, arguments: str) -> str:
    if choice.tool is None:
        return f'{{"type":"text","text":"{text}","citations":null}}'
    return (
        f'{{"type":"tool_use","id":"toolu_{name.number:024x}","name":{quoted(choice.tool.name)},"input":{arguments}}}'
    )


def message_body(plan: Plan, name: Identity) -> bytes:
    """A whole message."""
    choice = plan.choices[0]
    text = choice.text()
    usage = f',"usage":{usage_json(plan.usage, plan.usage.output_tokens)}' if plan.tell_usage else ""
    return _message(name, _block(choice, name, text, text), f'"{_ending(choice)}"', usage).encode()


def message_events(plan: Plan, name: Identity) -> Events:
    """A message in events, from message_start to message_stop; `message_delta` has the final usage."""
    choice, usage = plan.choices[0], plan.usage
    early = f',"usage":{usage_json(usage, min(1, usage.output_tokens))}' if plan.tell_usage else ""
    late = f',"usage":{{{_tokens(usage, usage.output_tokens)}{_thinking(usage)}}}' if plan.tell_usage else ""
    opening = (
        f'event: message_start\ndata: {{"type":"message_start","message":{_message(name, "", "null", early)}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":'
        f"{_block(choice, name, '', '{}')}}}\n\n{_PING}"
    )
    kind, field = ("text_delta", "text") if choice.tool is None else ("input_json_delta", "partial_json")
    before = (
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        f'{{"type":"{kind}","{field}":"'
    )
    after = '"}}\n\n'
    between = after + before

    def run(start: int, stop: int) -> bytes:
        return f"{before}{between.join(escaped(choice.pieces(start, stop)))}{after}".encode()

    closing = (
        f'{_BLOCK_STOP}event: message_delta\ndata: {{"type":"message_delta","delta":{{"stop_reason":'
        f'"{_ending(choice)}","stop_sequence":null,"stop_details":null,"container":null}}{late}}}\n\n{_MESSAGE_STOP}'
    )
    return Events(opening.encode(), run, choice.tokens, closing.encode())


def models_body(models: Iterable[str]) -> bytes:
    """The answer to GET /v1/models."""
    rows = [
        {
            "type": "model",
            "id": it,
            "display_name": it,
            "created_at": "2023-11-14T22:13:20Z",
            "lifecycle": "active",
        }
        for it in models
    ]
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
    return msgspec.json.encode({"data": rows, "has_more": False, "first_id": first, "last_id": last})


def error_body(refusal: Refusal, request_id: str) -> bytes:
    """An error as Anthropic tells it."""
    fallback = "api_error" if refusal.status >= 500 else "invalid_request_error"
    error = {"type": _ERROR_TYPES.get(refusal.status, fallback), "message": refusal.message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def directed_error(status: int) -> Refusal:
    """The error that a `status` directive asks for, with Anthropic's words."""
    return Refusal(status, _MESSAGES.get(status, "Simulated: the request was refused."))


def missing_key() -> Refusal:
    """The 401 without a key."""
    return Refusal(401, "x-api-key header is required")


def wrong_key() -> Refusal:
    """The 401 with a wrong key."""
    return Refusal(401, "invalid x-api-key")


def unknown_model(model: str) -> Refusal:
    """The 404 of a model that is not served."""
    return Refusal(404, f"model: {model}")
