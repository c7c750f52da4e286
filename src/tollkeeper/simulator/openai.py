"""OpenAI's chat completions, completions, embeddings, model list and errors on the wire. Decides nothing."""

import array
import base64
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.answers import Events, Identity, interleaved, quoted
from tollkeeper.simulator.asks import Ask, Refusal
from tollkeeper.simulator.plan import Choice, Plan

_VECTORS: Final = 16
_TAIL: Final = ',"service_tier":"default","system_fingerprint":"fp_simulated"'
_DONE: Final = b"data: [DONE]\n\n"


def usage_json(usage: Usage) -> str:
    """The usage object of chat completions and completions."""
    return (
        f'{{"prompt_tokens":{usage.input_tokens},"completion_tokens":{usage.output_tokens},'
        f'"total_tokens":{usage.total_tokens},"prompt_tokens_details":{{"cached_tokens":{usage.cached_tokens},'
        f'"cache_write_tokens":{usage.cache_write_tokens},"audio_tokens":0}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{usage.reasoning_tokens},"audio_tokens":0,'
        '"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    )


def _ending(choice: Choice) -> str:
    if choice.capped:
        return "length"
    return "stop" if choice.tool is None else "tool_calls"


def _call_id(name: Identity, choice: int) -> str:
    return f"call_{name.number:020x}{choice:04x}"


def chat_body(plan: Plan, name: Identity) -> bytes:
    """A chat completion."""
    choices = ",".join(
        f'{{"index":{at},"message":{_message(choice, name, at)},"logprobs":null,"finish_reason":"{_ending(choice)}"}}'
        for at, choice in enumerate(plan.choices)
    )
    usage = f',"usage":{usage_json(plan.usage)}' if plan.tell_usage else ""
    return (
        f'{{"id":"chatcmpl-{name.number:024x}","object":"chat.completion","created":{name.created},'
        f'"model":{name.model},"choices":[{choices}]{usage}{_TAIL}}}'
    ).encode()


def _message(choice: Choice, name: Identity, at: int) -> str:
    if choice.tool is None:
        return f'{{"role":"assistant","content":"{choice.text()}","refusal":null,"annotations":[]}}'
    return (
        '{"role":"assistant","content":null,"refusal":null,"annotations":[],"tool_calls":['
        f'{{"id":"{_call_id(name, at)}","type":"function","function":{{"name":{quoted(choice.tool.name)},'
        f'"arguments":{quoted(choice.text())}}}}}]}}'
    )


def completion_body(plan: Plan, name: Identity) -> bytes:
    """A legacy completion."""
    choices = ",".join(
        f'{{"text":"{choice.text()}","index":{at},"logprobs":null,"finish_reason":"{_ending(choice)}"}}'
        for at, choice in enumerate(plan.choices)
    )
    usage = f',"usage":{usage_json(plan.usage)}' if plan.tell_usage else ""
    return (
        f'{{"id":"cmpl-{name.number:024x}","object":"text_completion","created":{name.created},'
        f'"model":{name.model},"choices":[{choices}]{usage}}}'
    ).encode()


def chat_events(ask: Ask, plan: Plan, name: Identity) -> Events:
    """A chat completion in chunks: role, content, ending, and usage where it was asked for."""
    with_usage = ask.include_usage and plan.tell_usage
    head, tail = _chunk_frame(f"chatcmpl-{name.number:024x}", "chat.completion.chunk", name, _TAIL, with_usage)
    opening = "".join(
        f'{head}{{"index":{at},"delta":{_first_delta(choice, name, at)},"logprobs":null,"finish_reason":null}}{tail}'
        for at, choice in enumerate(plan.choices)
    )
    frames = [
        (
            f'{head}{{"index":{at},"delta":{{"content":"',
            f'"}},"logprobs":null,"finish_reason":null}}{tail}',
        )
        if choice.tool is None
        else (
            f'{head}{{"index":{at},"delta":{{"tool_calls":[{{"index":0,"function":{{"arguments":"',
            f'"}}}}]}},"logprobs":null,"finish_reason":null}}{tail}',
        )
        for at, choice in enumerate(plan.choices)
    ]
    endings = "".join(
        f'{head}{{"index":{at},"delta":{{}},"logprobs":null,"finish_reason":"{_ending(choice)}"}}{tail}'
        for at, choice in enumerate(plan.choices)
    )
    return _events(plan, opening, frames, endings, head, _TAIL, with_usage)


def _first_delta(choice: Choice, name: Identity, at: int) -> str:
    if choice.tool is None:
        return '{"role":"assistant","content":"","refusal":null}'
    return (
        f'{{"role":"assistant","content":null,"tool_calls":[{{"index":0,"id":"{_call_id(name, at)}",'
        f'"type":"function","function":{{"name":{quoted(choice.tool.name)},"arguments":""}}}}],"refusal":null}}'
    )


def completion_events(ask: Ask, plan: Plan, name: Identity) -> Events:
    """A legacy completion in chunks."""
    with_usage = ask.include_usage and plan.tell_usage
    head, tail = _chunk_frame(f"cmpl-{name.number:024x}", "text_completion", name, "", with_usage)
    frames = [
        (f'{head}{{"text":"', f'","index":{at},"logprobs":null,"finish_reason":null}}{tail}')
        for at in range(len(plan.choices))
    ]
    endings = "".join(
        f'{head}{{"text":"","index":{at},"logprobs":null,"finish_reason":"{_ending(choice)}"}}{tail}'
        for at, choice in enumerate(plan.choices)
    )
    return _events(plan, "", frames, endings, head, "", with_usage)


def _chunk_frame(ident: str, kind: str, name: Identity, extra: str, with_usage: bool) -> tuple[str, str]:
    """What stands before and after the one choice of a chunk."""
    head = f'data: {{"id":"{ident}","object":"{kind}","created":{name.created},"model":{name.model},"choices":['
    return head, f"]{extra}" + (',"usage":null}\n\n' if with_usage else "}\n\n")


def _events(
    plan: Plan,
    opening: str,
    frames: list[tuple[str, str]],
    endings: str,
    head: str,
    extra: str,
    with_usage: bool,
) -> Events:
    last = f'{head}]{extra},"usage":{usage_json(plan.usage)}}}\n\n' if with_usage else ""
    closing = (endings + last).encode() + _DONE
    if len(plan.choices) == 1:
        choice, (before, after) = plan.choices[0], frames[0]
        between = after + before

        def run(start: int, stop: int) -> bytes:
            return f"{before}{between.join(escaped(choice.pieces(start, stop)))}{after}".encode()

        return Events(opening.encode(), run, plan.chunks, closing)
    order = interleaved(plan.choices)

    def mixed(start: int, stop: int) -> bytes:
        told: list[str] = []
        for at, number in order[start:stop]:
            (piece,) = escaped(plan.choices[at].pieces(number, number + 1))
            told += frames[at][0], piece, frames[at][1]
        return "".join(told).encode()

    return Events(opening.encode(), mixed, len(order), closing)


def escaped(pieces: list[str]) -> Iterable[str]:
    """The pieces as they stand inside a JSON string. Words need no escape, arguments of tools do."""
    return [piece if '"' not in piece and "\\" not in piece else quoted(piece)[1:-1] for piece in pieces]


def embeddings_body(ask: Ask, plan: Plan, name: Identity) -> bytes:
    """One unit vector an input; equal texts get equal vectors."""
    rows = ",".join(
        f'{{"object":"embedding","index":{at},"embedding":'
        f"{_vector((ask.seed + at) % _VECTORS, ask.dimensions, ask.base64)}}}"
        for at in range(ask.inputs)
    )
    usage = (
        f',"usage":{{"prompt_tokens":{plan.usage.input_tokens},"total_tokens":{plan.usage.input_tokens}}}'
        if plan.tell_usage
        else ""
    )
    return f'{{"object":"list","data":[{rows}],"model":{name.model}{usage}}}'.encode()


@lru_cache(maxsize=64)
def _vector(variant: int, dimensions: int, as_base64: bool) -> str:
    raw = [math.sin((variant + 1) * (at + 1)) + 0.01 for at in range(dimensions)]
    length = math.sqrt(sum(x * x for x in raw))
    vector = array.array("f", [x / length for x in raw])
    if as_base64:
        return f'"{base64.b64encode(vector.tobytes()).decode()}"'
    return "[" + ",".join(f"{x:.8f}" for x in vector) + "]"


def models_body(models: Iterable[str]) -> bytes:
    """The answer to GET /v1/models."""
    rows = [{"id": it, "object": "model", "created": 1700000000, "owned_by": "simulator"} for it in models]
    return msgspec.json.encode({"object": "list", "data": rows})


def error_body(refusal: Refusal) -> bytes:
    """An error as OpenAI tells it."""
    error = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.code}
    return msgspec.json.encode({"error": error})


def directed_error(status: int) -> Refusal:
    """The error that a `status` directive asks for, with OpenAI's words."""
    known = {
        400: Refusal(400, "Simulated: the request was invalid."),
        401: wrong_key("sk-simulated"),
        403: Refusal(403, "Simulated: country, region, or territory not supported.", "request_forbidden"),
        404: Refusal(404, "Simulated: the model does not exist.", code="model_not_found"),
        429: Refusal(
            429,
            "Rate limit reached for the model on requests per min (RPM): Limit 500, Used 500, Requested 1. "
            "Please try again shortly.",
            "requests",
            "rate_limit_exceeded",
        ),
        503: Refusal(503, "The engine is currently overloaded, please try again later", "server_error"),
    }
    if status in known:
        return known[status]
    if status >= 500:
        return Refusal(
            status, "The server had an error while processing your request. Sorry about that!", "server_error"
        )
    return Refusal(status, "Simulated: the request was refused.")


def missing_key() -> Refusal:
    """The 401 without a key."""
    return Refusal(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
        "auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're "
        "accessing the API from your browser and are prompted for a username and password. You can obtain an API "
        "key from https://platform.openai.com/account/api-keys.",
    )


def wrong_key(key: str) -> Refusal:
    """The 401 with a wrong key, which it shows in part."""
    shown = key if len(key) < 13 else f"{key[:8]}{'*' * min(len(key) - 12, 40)}{key[-4:]}"
    return Refusal(
        401,
        f"Incorrect API key provided: {shown}. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def unknown_model(model: str) -> Refusal:
    """The 404 of a model that is not served."""
    return Refusal(
        404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
    )


def unknown_url(method: str, path: str) -> Refusal:
    """The 404 of a path that is not served."""
    return Refusal(404, f"Invalid URL ({method} {path})")


def wrong_method(method: str, path: str) -> Refusal:
    """The 405."""
    return Refusal(
        405,
        f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)",
        code="method_not_supported",
    )
