"""What a request consumed, as the provider reported it."""

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens by kind. Totals include their parts.

    `input_tokens` includes cached reads and cache writes (also for Anthropic, whose own `input_tokens` leaves
    them out); `output_tokens` includes reasoning. `cache_write_1h_tokens` is a part of `cache_write_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """What a token limit counts."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()
