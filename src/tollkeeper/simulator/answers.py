"""The shape that both dialects give their answers. Knows neither dialect."""

from collections.abc import Callable, Sequence

import msgspec

from tollkeeper.simulator.plan import Choice


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What names an answer: a number unique in this simulator, the model as a JSON string, Unix seconds."""

    number: int
    model: str
    created: int


class Events(msgspec.Struct, frozen=True):
    """A stream of server-sent events: `opening`, `count` content chunks, `closing`.

    `chunks(start, stop)` renders content chunks, any range of them; a chunk is one token.
    """

    opening: bytes
    chunks: Callable[[int, int], bytes]
    count: int
    closing: bytes


def quoted(text: str) -> str:
    """The text as a JSON string."""
    return msgspec.json.encode(text).decode()


def interleaved(choices: Sequence[Choice]) -> list[tuple[int, int]]:
    """The order of chunks of several choices told at once: (choice, piece), a round of pieces after the other."""
    rounds = max((choice.tokens for choice in choices), default=0)
    return [(at, number) for number in range(rounds) for at, choice in enumerate(choices) if number < choice.tokens]
