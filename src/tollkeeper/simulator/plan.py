"""Plans: how many tokens an answer has and which words it says. Pure and deterministic; knows no wire format."""

from typing import Any, Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.asks import Ask, Endpoint
from tollkeeper.simulator.directives import Fault
from tollkeeper.simulator.prose import draw, passage, word

_TOOL_OVERHEAD_TOKENS: Final = 12
_TOOL_ENDPOINTS: Final = frozenset({Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES})


class ToolCall(msgspec.Struct, frozen=True):
    """A call of a tool; `arguments` is JSON of an object."""

    name: str
    arguments: str


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One answer of `tokens` visible tokens. `capped`: the maximum of output tokens ended it."""

    first_word: int
    tokens: int
    capped: bool
    tool: ToolCall | None = None

    def text(self) -> str:
        """The whole visible answer; a tool call's is its arguments."""
        return passage(self.first_word, self.tokens) if self.tool is None else self.tool.arguments

    def pieces(self, start: int, stop: int) -> list[str]:
        """Pieces `start` to `stop` of the answer, one a token; all of them joined are `text()`."""
        if self.tool is None:
            return [word(self.first_word, number) for number in range(start, stop)]
        arguments, parts = self.tool.arguments, self.tokens
        size = len(arguments)
        return [arguments[size * at // parts : size * (at + 1) // parts] for at in range(start, stop)]


class Plan(msgspec.Struct, frozen=True, gc=False):
    """An answer before it takes a dialect's form. `tell_usage` False: the answer leaves its usage out."""

    usage: Usage
    choices: tuple[Choice, ...]
    tell_usage: bool = True

    @property
    def chunks(self) -> int:
        """Content chunks of the answer as a stream: one a visible token."""
        return sum(choice.tokens for choice in self.choices)


def plan_answer(ask: Ask) -> Plan:
    """What the request is answered with: the same for the same request, always."""
    directive = ask.directive
    input_tokens = ask.input_tokens if directive.input is None else directive.input
    cached = min(directive.cached, input_tokens)
    cache_write = min(directive.cache_write, input_tokens - cached)
    tell_usage = directive.fault is not Fault.NO_USAGE
    if ask.endpoint is Endpoint.EMBEDDINGS:
        return Plan(Usage(input_tokens, 0, cached, cache_write), (), tell_usage)
    choices, output, reasoning = _choices(ask)
    usage = Usage(input_tokens, output, cached, cache_write, reasoning_tokens=reasoning)
    return Plan(usage, choices, tell_usage)


def _choices(ask: Ask) -> tuple[tuple[Choice, ...], int, int]:
    """The choices, their output tokens in total, and how many of those are reasoning."""
    directive, count = ask.directive, ask.choices
    tool = _tool_call(ask) if directive.tool and ask.tools and ask.endpoint in _TOOL_ENDPOINTS else None
    choices: list[Choice] = []
    output = reasoning = 0
    for index in range(count):
        first, tokens = draw(ask.seed, index)
        if directive.output is not None:
            tokens = directive.output // count + (index < directive.output % count)
        elif tool is not None:
            tokens = _TOOL_OVERHEAD_TOKENS + len(tool.arguments) // 4
        if directive.reasoning and directive.output is None:
            tokens += directive.reasoning // count + 1
        capped = ask.output_max is not None and tokens > ask.output_max
        if ask.output_max is not None and capped:
            tokens = ask.output_max
        hidden = min(tokens, directive.reasoning - reasoning)
        visible = tokens - hidden
        choices.append(Choice(first, visible, capped, None if tool is None else _padded(tool, visible)))
        output += tokens
        reasoning += hidden
    return tuple(choices), output, reasoning


def _padded(tool: ToolCall, tokens: int) -> ToolCall:
    """The call with spaces in its JSON, where needed for every token to have a piece of its own."""
    missing = tokens - len(tool.arguments)
    return tool if missing <= 0 else ToolCall(tool.name, "{" + " " * missing + tool.arguments[1:])


def _tool_call(ask: Ask) -> ToolCall:
    """A call of the directed tool with arguments that fit its schema in type, `{}` if the tool is not offered."""
    name = ask.directive.tool or ""
    tools: Any = msgspec.json.decode(ask.tools)
    for tool in tools if isinstance(tools, list) else []:
        inner = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(inner, dict) and inner.get("name") == name:
            return ToolCall(name, _arguments(inner.get("parameters") or inner.get("input_schema")))
    return ToolCall(name, "{}")


def _arguments(schema: Any) -> str:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return "{}"
    return msgspec.json.encode({name: _example(shape) for name, shape in properties.items()}).decode()


def _example(shape: Any) -> Any:
    if not isinstance(shape, dict):
        return "toll"
    if shape.get("enum"):
        return shape["enum"][0]
    examples: dict[Any, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    kind = shape.get("type")
    return examples.get(kind, "toll") if isinstance(kind, str) else "toll"
