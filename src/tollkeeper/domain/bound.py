"""Two numbers before dispatch: the strict bound of a request's tokens, and the learned estimate of their weight.

The *bound* is what money is held for, so it may be far above the truth and never below it. The text of a request
never has more tokens than its JSON has bytes: byte-level BPE makes at most one token of a byte, JSON text is never
shorter than the UTF-8 text it stands for, and the JSON structure of a message outweighs the few tokens a chat format
adds to it. Media count by the provider's published maximum. What cannot be bounded at all carries a reason instead.

The *estimate* is what token limits count until the truth is known. It may be wrong in either direction, and learns.
This file does not know any wire format, price or model name.
"""

from typing import Final

import msgspec

OUTPUT_TOKENS_MAX: Final = 2**31 - 1
"""Largest output limit that a request may state."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks a model to read, as found in its body.

    `text_bytes`: bytes of JSON that can hold text, base64 payload of media left out. `images`: how many. `audio`:
    whether there is any that was found before what makes the request unbounded.
    `extra_input_tokens`: what a provider adds beyond the text (tool preambles). `extra_output_tokens`: output paid
    for beyond the limit, per choice (rejected predictions). `cache_write`, `cache_write_1h`: whether input can be
    charged at the rates of cache writes. `one_context`: whether all input is one prompt, which a context window
    limits as a whole; not so for lists of prompts or embeddings. `stored_context`: names the field through which a
    stored conversation of unknown size joins the input, None if there is none. `service_tiers`: those asked for
    besides the standard. `unbounded`: why the cost has no bound at all, else None. `plain`: it is one prompt of text,
    which may be written to a cache for as long as is usual, and nothing of all the rest.
    """

    text_bytes: int
    images: int = 0
    audio: bool = False
    extra_input_tokens: int = 0
    extra_output_tokens: int = 0
    cache_write: bool = False
    cache_write_1h: bool = False
    one_context: bool = True
    stored_context: str | None = None
    service_tiers: tuple[str, ...] = ()
    unbounded: str | None = None
    plain: bool = False


class Bound(msgspec.Struct, frozen=True):
    """Upper bounds of the tokens of one attempt; `unbounded` says why they bound nothing, if so."""

    input_tokens: int
    output_tokens: int
    unbounded: str | None = None


def bound(
    content: Content,
    *,
    max_output: int,
    choices: int,
    image_tokens_max: int,
    context_window: int | None = None,
    stored_tokens_max: int | None = None,
    max_output_tokens: int | None = None,
) -> Bound:
    """The bound of a request whose every choice is limited to `max_output` tokens.

    `context_window` and `max_output_tokens` are the model's own limits where they are known for certain: a provider
    refuses what is longer. `stored_tokens_max` is the most that a stored conversation and the input can be together.
    `image_tokens_max` is the most that one image can be charged as.
    """
    tokens = content.text_bytes + content.extra_input_tokens
    if content.images:
        tokens += content.images * image_tokens_max
    reason = content.unbounded
    if content.stored_context is not None:
        if stored_tokens_max is not None:
            tokens = max(tokens, stored_tokens_max)
        elif reason is None:
            reason = f"'{content.stored_context}' adds a stored conversation of unknown length"
    if context_window is not None and content.one_context:
        tokens = min(tokens, context_window)
    if max_output_tokens is not None and max_output_tokens < max_output:
        max_output = max_output_tokens
    return Bound(tokens, (max_output + content.extra_output_tokens) * choices, reason)


class Learned(msgspec.Struct):
    """Exponentially weighted means of one model, in thousandths."""

    milli_bytes_per_token: int
    milli_output: int


class TokenEstimator:
    """Guesses the tokens of a request from its bytes, learning from each settlement. At most `MODELS_MAX` models.

    All in integers: the same settlements give the same guesses everywhere.
    """

    MODELS_MAX: Final = 1024
    FIRST_BYTES_PER_TOKEN: Final = 4
    """English text with its JSON around it, before anything is known of a model."""
    FIRST_OUTPUT: Final = 256
    WEIGHT: Final = 16
    """A new observation counts one sixteenth."""

    def __init__(self) -> None:
        self._models: dict[str, Learned] = {}

    def estimate_tokens(self, model: str, *, input_bytes: int, max_output: int, choices: int = 1) -> int:
        """Likely tokens of a request, at least 1: input by bytes, output by the mean, never above its limit."""
        learned = self._models.get(model)
        if learned is None:
            return max(1, input_bytes // self.FIRST_BYTES_PER_TOKEN + min(max_output, self.FIRST_OUTPUT) * choices)
        most, output = max_output * choices, -(-learned.milli_output // 1000)
        output = output if output < most else most
        return (input_bytes * 1000 // learned.milli_bytes_per_token + output) or 1

    def learn(self, model: str, *, input_bytes: int, input_tokens: int, output_tokens: int) -> None:
        """Take in what a settled request truly had. Observations without input tokens teach nothing."""
        if input_tokens <= 0 or input_bytes <= 0:
            return
        # Cached context or images can make tokens outnumber bytes: keep the ratio above zero.
        ratio = (input_bytes * 1000 // input_tokens) or 1
        learned = self._models.get(model)
        if learned is None:
            if len(self._models) >= self.MODELS_MAX:
                self._models.pop(next(iter(self._models)))
            self._models[model] = Learned(ratio, output_tokens * 1000)
            return
        # Truncated towards zero, so that neither direction drifts. The ratio stays between two that are above zero.
        more, weight = ratio - learned.milli_bytes_per_token, self.WEIGHT
        learned.milli_bytes_per_token += more // weight if more >= 0 else -(-more // weight)
        more = output_tokens * 1000 - learned.milli_output
        learned.milli_output += more // weight if more >= 0 else -(-more // weight)
