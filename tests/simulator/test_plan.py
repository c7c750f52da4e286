"""Answers are deterministic, sensible and within their maximum."""

import msgspec
import pytest

from tollkeeper.simulator.asks import Ask, Endpoint, parse_ask
from tollkeeper.simulator.plan import plan_answer
from tollkeeper.simulator.prose import SENTENCES, TEXT, WORDS, draw, passage, word


def test_the_text_stands_in_json_as_it_is() -> None:
    """Answers are spliced into JSON without escaping."""
    assert msgspec.json.encode(TEXT) == f'"{TEXT}"'.encode() and TEXT.isascii()


@pytest.mark.parametrize("first", [0, SENTENCES[3], SENTENCES[-2]])
@pytest.mark.parametrize("words", [0, 1, 7, len(WORDS), len(WORDS) + 1, 5000])
def test_pieces_joined_are_the_passage(first: int, words: int) -> None:
    """A stream and a whole answer say the same, however often the text comes round."""
    assert "".join(word(first, number) for number in range(words)) == passage(first, words)
    assert len(passage(first, words).split()) == words


def test_drawn_answers_are_whole_sentences() -> None:
    """From the beginning of a sentence to the end of one."""
    for seed in range(2000):
        first, words = draw(seed, seed % 3)
        text = passage(first, words)
        assert text[0].isupper() and text.endswith(".") and first in SENTENCES


@pytest.mark.parametrize("content", ["", "a", "abcd", "abcde", "Grüße, 你好", "\ud83d\ude00" * 9])
def test_input_is_about_four_bytes_a_token_and_never_more_than_the_bytes(content: str) -> None:
    """The estimate is the bytes' quarter, rounded up."""
    text = content.encode("utf-16", "surrogatepass").decode("utf-16")
    ask = parse_ask(Endpoint.CHAT, msgspec.json.encode({"model": "x", "messages": [{"content": text}]}))
    assert isinstance(ask, Ask) and ask.input_tokens == -(-len(text.encode()) // 4) <= len(text.encode())


@pytest.mark.parametrize("maximum", [1, 5, 1000])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize(
    "directive", ["", "[[sim output=700]]", "[[sim output=700 reasoning=600]]", "[[sim reasoning=9]]"]
)
def test_output_never_exceeds_the_maximum(maximum: int, choices: int, directive: str) -> None:
    """At most the maximum in each choice, reasoning included; the parts add up; the same request, the same plan."""
    body = {"model": "x", "messages": [{"content": directive}], "max_tokens": maximum, "n": choices}
    ask = parse_ask(Endpoint.CHAT, msgspec.json.encode(body))
    assert isinstance(ask, Ask)
    plan = plan_answer(ask)
    assert plan == plan_answer(ask)
    assert plan.usage.output_tokens == plan.chunks + plan.usage.reasoning_tokens <= maximum * choices
    assert all(choice.tokens <= maximum for choice in plan.choices)


def test_cached_parts_fit_into_the_input() -> None:
    """A directive cannot make the parts larger than the whole."""
    body = {"model": "x", "messages": [{"content": "[[sim input=10 cached=8 cache_write=8]]"}]}
    ask = parse_ask(Endpoint.CHAT, msgspec.json.encode(body))
    assert isinstance(ask, Ask)
    usage = plan_answer(ask).usage
    assert (usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens) == (10, 8, 2)
