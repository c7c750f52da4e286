"""OpenAI's Responses API on the wire, whole and as events with sequence numbers. Decides nothing."""

from typing import Final

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.answers import Events, Identity, quoted
from tollkeeper.simulator.asks import Ask
from tollkeeper.simulator.openai import escaped
from tollkeeper.simulator.plan import Choice, Plan

_EVENTS_BEFORE_TEXT: Final = 4
_EVENTS_BEFORE_CALL: Final = 3


def response_usage_json(usage: Usage) -> str:
    """The usage object of the Responses API."""
    return (
        f'{{"input_tokens":{usage.input_tokens},"input_tokens_details":{{"cached_tokens":{usage.cached_tokens},'
        f'"cache_write_tokens":{usage.cache_write_tokens}}},"output_tokens":{usage.output_tokens},'
        f'"output_tokens_details":{{"reasoning_tokens":{usage.reasoning_tokens}}},'
        f'"total_tokens":{usage.total_tokens}}}'
    )


def response_body(ask: Ask, plan: Plan, name: Identity) -> bytes:
    """A whole response."""
    return _final(ask, plan, name).encode()


def response_events(ask: Ask, plan: Plan, name: Identity) -> Events:
    """A response in events: created, in_progress, the item, its deltas, the item again, completed (or incomplete)."""
    choice = plan.choices[0]
    started = _response(ask, name, "in_progress", "", "null")
    opening = [
        _event("response.created", 0, f'"response":{started}'),
        _event("response.in_progress", 1, f'"response":{started}'),
    ]
    text, call = choice.tool is None, f"fc_{name.number:024x}"
    item_id = f"msg_{name.number:024x}" if text else call
    first = _EVENTS_BEFORE_TEXT if text else _EVENTS_BEFORE_CALL
    opening.append(
        _event(
            "response.output_item.added", 2, f'"output_index":0,"item":{_item(choice, name, "in_progress", False)}'
        )
    )
    if text:
        opening.append(
            _event(
                "response.content_part.added",
                3,
                f'"item_id":"{item_id}","output_index":0,"content_index":0,"part":{_part("")}',
            )
        )
    kind = "response.output_text.delta" if text else "response.function_call_arguments.delta"
    before = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'
    content = '"content_index":0,"logprobs":[],' if text else ""
    middle = f',"item_id":"{item_id}","output_index":0,{content}"delta":"'

    def run(start: int, stop: int) -> bytes:
        pieces = escaped(choice.pieces(start, stop))
        return "".join(
            [f'{before}{number}{middle}{piece}"}}\n\n' for number, piece in enumerate(pieces, first + start)]
        ).encode()

    closing = _closing(ask, plan, name, item_id, first + choice.tokens)
    return Events("".join(opening).encode(), run, choice.tokens, closing.encode())


def _closing(ask: Ask, plan: Plan, name: Identity, item_id: str, number: int) -> str:
    choice = plan.choices[0]
    place = f'"item_id":"{item_id}","output_index":0'
    if choice.tool is None:
        text = choice.text()
        events = [
            ("response.output_text.done", f'{place},"content_index":0,"logprobs":[],"text":"{text}"'),
            ("response.content_part.done", f'{place},"content_index":0,"part":{_part(text)}'),
        ]
    else:
        arguments = f'"name":{quoted(choice.tool.name)},"arguments":{quoted(choice.text())}'
        events = [("response.function_call_arguments.done", f"{place},{arguments}")]
    events.append(
        ("response.output_item.done", f'"output_index":0,"item":{_item(choice, name, _status(choice), True)}')
    )
    events.append((f"response.{_status(choice)}", f'"response":{_final(ask, plan, name)}'))
    return "".join(_event(kind, number + at, fields) for at, (kind, fields) in enumerate(events))


def _event(kind: str, number: int, fields: str) -> str:
    return f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number},{fields}}}\n\n'


def _status(choice: Choice) -> str:
    return "incomplete" if choice.capped else "completed"


def _part(text: str) -> str:
    return f'{{"type":"output_text","annotations":[],"logprobs":[],"text":"{text}"}}'


def _item(choice: Choice, name: Identity, status: str, whole: bool) -> str:
    if choice.tool is None:
        content = _part(choice.text()) if whole else ""
        return (
            f'{{"id":"msg_{name.number:024x}","type":"message","status":"{status}","role":"assistant",'
            f'"content":[{content}]}}'
        )
    arguments = quoted(choice.text()) if whole else '""'
    return (
        f'{{"id":"fc_{name.number:024x}","type":"function_call","status":"{status}",'
        f'"call_id":"call_{name.number:024x}","name":{quoted(choice.tool.name)},"arguments":{arguments}}}'
    )


def queued_body(ask: Ask, name: Identity) -> bytes:
    """The first answer to a request with `background: true`: what it becomes is kept to be asked for."""
    return _response(ask, name, "queued", "", "null").replace('"background":false', '"background":true', 1).encode()


def _final(ask: Ask, plan: Plan, name: Identity) -> str:
    choice = plan.choices[0]
    usage = response_usage_json(plan.usage) if plan.tell_usage else "null"
    return _response(ask, name, _status(choice), _item(choice, name, _status(choice), True), usage)


def _response(ask: Ask, name: Identity, status: str, items: str, usage: str) -> str:
    details = '{"reason":"max_output_tokens"}' if status == "incomplete" else "null"
    maximum = "null" if ask.output_max is None else ask.output_max
    user = f',"user":{quoted(ask.user)}' if ask.user else ""
    return (
        f'{{"id":"resp_{name.number:024x}","object":"response","created_at":{name.created},"status":"{status}",'
        f'"background":false,"error":null,"incomplete_details":{details},"instructions":null,'
        f'"max_output_tokens":{maximum},"metadata":{{}},"model":{name.model},"output":[{items}],'
        '"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{"effort":null,"summary":null},'
        '"service_tier":"default","store":true,"temperature":1.0,"text":{"format":{"type":"text"}},'
        '"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled",'
        f'"usage":{usage}{user}}}'
    )
