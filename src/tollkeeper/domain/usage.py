"""What a request consumed, as the provider reported it."""

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens by kind, uses of tools the provider runs, and what is sold by other units. Totals include their parts.

    `input_tokens` includes cached reads and cache writes (also for Anthropic, whose own `input_tokens` leaves
    them out); `output_tokens` includes reasoning and citations. `cache_write_1h_tokens` is a part of
    `cache_write_tokens`, `cached_audio_tokens` one of `cached_tokens` and of `input_audio_tokens`, and so for images.
    `output_image_tokens` is None where a report does not tell images apart from text.
    `images` are those made, `audio_ms` the length of audio that was read, `characters` those that were spoken,
    `searches` a reranker's units.
    `service_tier` is what the provider says the request was served as, if not its standard: `priority`, `flex`, …
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cached_audio_tokens: int = 0
    input_image_tokens: int = 0
    cached_image_tokens: int = 0
    output_image_tokens: int | None = None
    citation_tokens: int = 0
    web_searches: int = 0
    file_searches: int = 0
    images: int = 0
    audio_ms: int = 0
    characters: int = 0
    searches: int = 0
    service_tier: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is tokens of text and nothing else, as most is."""
        return not (
            self.cache_write_tokens
            or self.cache_write_1h_tokens
            or self.input_audio_tokens
            or self.output_audio_tokens
            or self.cached_audio_tokens
            or self.input_image_tokens
            or self.cached_image_tokens
            or self.output_image_tokens is not None
            or self.citation_tokens
            or self.web_searches
            or self.file_searches
            or self.images
            or self.audio_ms
            or self.characters
            or self.searches
            or self.service_tier
        )

    @property
    def total_tokens(self) -> int:
        """What a token limit counts."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()
