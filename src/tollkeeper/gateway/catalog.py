"""What is known of models: prices, limits and names, from the offline price data and the settings.

Each (provider, model) is resolved once into integers and kept until its price changes by itself; a lookup after that
is one dictionary read. Which provider serves a name is not decided here but in `routing.py`; where the data come from
is the business of `price_data.py`.
"""

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Final

import msgspec

from tollkeeper.domain.bound import Bound, Content, bound
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.domain.money import nano_from_usd
from tollkeeper.domain.pricing import Price, bound_nano
from tollkeeper.domain.tariff import price_of, scaled
from tollkeeper.gateway.dialects.request import LIMIT_FIELDS
from tollkeeper.gateway.overrides import Override, applied, in_force, overrides_of
from tollkeeper.gateway.price_data import FOREVER_US, SOURCE, Listed, PriceData
from tollkeeper.settings import ModelSettings, ProviderSettings, Settings

UNLIMITED: Final = 2**62
"""Tokens, where a model's limit of them is not known."""
NEAREST_MAX: Final = 5
"""Names suggested for an unknown one."""
MODELS_MAX: Final = 4096
"""Resolved models kept; above it the oldest are resolved again when asked for."""

IMAGE_TOKENS_MAX: Final[Mapping[str, int]] = {"openai": 48_169, "anthropic": 5_000}
"""The most one image is charged as, unless configured.

OpenAI, documented (guide "Images and vision"): gpt-4o-mini 2,833 + 5,667 for each of at most 8 tiles, the worst of
all; other tiles at most 1,445; patches at most 10,000 (`detail` "original") times at most 2.46. That others who speak
its dialect stay below is our assumption: Gemini documents 2,240, Together 6,404, xAI 256 a tile.
Anthropic, documented (guide "Images and vision"): one token for each 28 × 28 pixels after scaling down; the largest
count seen reported is 4,784 (models that read 2,576 pixels), and 5,000 is our margin above it.
"""

STORED_MARGIN: Final = (5, 4)
"""Context windows in the price data are rounded (1,000,000 for 1,047,576), so a stored conversation is taken to be a
quarter larger, which is our assumption. They never tighten a bound by bytes; a configured window does, as it is."""

SEARCHES: Final = "the model searches the web at a price of its own"
"""Why its requests have no bound."""

OUTPUT_DEFAULT: Final = 4096
"""Injected into a request without an output limit if nothing is known of the model. That every current model takes it
is our assumption; a limit is sent upstream, so a wrong one is a refusal or a short answer, never a cost above the
hold."""
OUTPUT_LIMITS: Final[tuple[tuple[str, int], ...]] = (
    # Documented: "max output tokens" on OpenAI's model pages; the smallest of the names that match. The first counts.
    (r"gpt-5[\w.]*-chat|gpt-5-chat|gpt-chat", 16_384),
    (r"gpt-[56]", 128_000),
    (r"gpt-4\.1", 32_768),
    (r"gpt-4o-2024-05-13", 4_096),
    (r"gpt-4o", 16_384),
    (r"o1-mini", 65_536),
    (r"o1-preview", 32_768),
    (r"o[134]", 100_000),
    (r"gpt-4-turbo|gpt-4-\d+-preview|gpt-3\.5", 4_096),
    (r"gpt-4", 4_096),
)


TRANSCRIBES: Final = r"gpt-4o(-mini)?-transcribe(-\d{4}-\d\d-\d\d)?"
"""Documented on OpenAI's model pages: a context window of 16,000 tokens and at most 2,000 of output."""
TRANSCRIBES_WINDOW: Final = 16_000
TRANSCRIBES_OUTPUT: Final = 2_000
DRAWS: Final = r"gpt-image-1(-mini)?"
DRAWS_TOKENS_MAX: Final = 6_240
"""Documented ("Image generation", cost): the most that an image of these models has, 1536 × 1024 at high quality."""


class ImagePrice(msgspec.Struct, frozen=True):
    """Of an image of a size and quality; empty: any."""

    size: str
    quality: str
    cost_nano: int


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What is known of one model at one provider.

    `price` is None if unknown, and `unpriced` says why. `unbounded`: why the cost of every request has no bound, if
    so. `context_window`, `max_output_tokens`: configured, so certain. `stored_tokens_max`: the most a stored
    conversation can hold, if known. `listed_window`: the context window of the price data, which is rounded.
    `output_image_tokens_max`, `audio_ms_max`: the most of one image made, and of one recording, if known.
    `output_default`: the limit to inject into a request that states none.
    `searches`: every request has a web search that it is charged for, asked or not.
    `reported_max_nano`: the most that the provider's own word of a cost is taken for; None: it is not asked.
    `image_prices`: of images made, the first that fits; `price` then has that of all others.
    `undrawn`: the same before one of them was put into its place.
    `served_unasked`: service tiers that a request may be served at without asking.
    All of it holds from `valid_from_us` until before `valid_until_us`, when the price changes by itself.
    """

    price: Price | None
    image_tokens_max: int
    output_default: int
    context_window: int | None = None
    max_output_tokens: int | None = None
    stored_tokens_max: int | None = None
    listed_window: int | None = None
    unpriced: str | None = None
    unbounded: str | None = None
    searches: bool = False
    output_image_tokens_max: int | None = None
    audio_ms_max: int | None = None
    reported_max_nano: int | None = None
    image_prices: tuple[ImagePrice, ...] = ()
    undrawn: "ModelInfo | None" = None
    served_unasked: tuple[str, ...] = ()
    valid_from_us: int = -FOREVER_US
    valid_until_us: int = FOREVER_US

    def bound(self, content: Content, *, max_output: int, choices: int) -> Bound:
        """The upper bounds of a request's tokens at this model, each choice limited to `max_output`."""
        result = bound(
            content,
            max_output=max_output,
            choices=choices,
            image_tokens_max=self.image_tokens_max,
            context_window=self.context_window,
            stored_tokens_max=self.stored_tokens_max,
            max_output_tokens=self.max_output_tokens,
        )
        reason = result.unbounded or self.unbounded
        if reason is None and content.service_tiers:
            reason = self._unpriced_tier(content)
        return result if reason is None else Bound(result.input_tokens, result.output_tokens, reason)

    def text_nano(self, text_bytes: int, *, max_output: int, choices: int) -> int | None:
        """`hold_nano` of the `bound` of content that is `plain`, which always has one. None: ask them."""
        line = self._line
        if line is None:
            return None
        input_nano, output_nano, request_nano, per_nano, input_max, output_max = line
        tokens = text_bytes if text_bytes < input_max else input_max
        output = max_output if max_output < output_max else output_max
        return -(-(tokens * input_nano + output * choices * output_nano + request_nano) // per_nano)

    @cached_property
    def _line(self) -> tuple[int, int, int, int, int, int] | None:
        """By what a request of text is bounded, if it depends on neither its length nor on how it may be served."""
        price = self.price
        if price is None or price.tiers or self.served_unasked or self.unbounded is not None:
            return None
        windows = (self.context_window or UNLIMITED, self.max_output_tokens or UNLIMITED)
        return (*price.base.dearest_of_text, price.per_request, price.per_nano, *windows)

    def _unpriced_tier(self, content: Content) -> str | None:
        for tier in content.service_tiers:
            if self.price is not None and tier not in self.price.served:
                return f"the service tier '{tier}' has no known price for this model"
        return None

    def hold_nano(self, content: Content, tokens: Bound) -> int | None:
        """The most a request can cost in nano-dollars; None without a price. Only true of bounded requests."""
        if self.price is None:
            return None
        return bound_nano(
            self.price,
            tokens.input_tokens,
            tokens.output_tokens,
            cache_write=content.cache_write,
            cache_write_1h=content.cache_write_1h,
            images=content.images > 0,
            served=content.service_tiers + self.served_unasked,
        )


class Catalog:
    """All models of the configured providers. Raises ConfigurationError for a `prices` id that does not exist."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data = PriceData()
        self._priced = {name: self._provider(name, p) for name, p in settings.providers.items()}
        self._overrides = {name: overrides_of(name, model) for name, model in settings.models.items()}
        self._models: dict[tuple[str, str, str], ModelInfo] = {}

    def info(self, provider: str, model: str, upstream_model: str, now_us: int) -> ModelInfo:
        """What is known of a model now.

        `model` is the client's name, by which settings are found; `upstream_model` the provider's, by which prices
        are. Raises KeyError for a provider that is not configured.
        """
        key = (provider, model, upstream_model)
        found = self._models.get(key)
        if found is None or not found.valid_from_us <= now_us < found.valid_until_us:
            if len(self._models) >= MODELS_MAX:
                self._models.pop(next(iter(self._models)))
            found = self._models[key] = self._resolve(provider, model, upstream_model, now_us)
        return found

    def model_names(self, provider: str) -> list[str]:
        """Every name known for a provider, sorted: configured ones, and those of the price data that have a price.

        Whether the provider's `models` patterns serve them is for the caller to ask.
        """
        names = {n for n, m in self._settings.models.items() if m.provider in (None, provider)}
        priced = self._priced[provider]
        if priced is not None:
            names.update(self._data.model_names(priced))
        return sorted(names)

    def nearest(self, provider: str, name: str) -> list[str]:
        """Names known for a provider that are most like one, best first."""
        return difflib.get_close_matches(name, self.model_names(provider), NEAREST_MAX, 0.5)

    def _provider(self, name: str, provider: ProviderSettings) -> str | None:
        if provider.prices is None:
            return self._data.provider_at(provider.base_url)
        if not self._data.has(provider.prices):
            known = ", ".join(self._data.provider_ids)
            raise ConfigurationError(
                f"providers.{name}.prices: {SOURCE} has no provider {provider.prices!r}; known: {known}"
            )
        return provider.prices

    def _resolve(self, provider: str, model: str, upstream_model: str, now_us: int) -> ModelInfo:
        settings = self._settings.providers[provider]
        own = self._settings.models.get(model)
        if own is None or own.provider not in (None, provider):
            own = ModelSettings()
            overrides: tuple[Override, ...] = ()
        else:
            overrides = self._overrides[model]
        priced = self._priced[provider]
        listed = (
            Listed(None, "no prices are known for its provider")
            if priced is None
            else self._data.look_up(priced, own.priced_as or upstream_model, now_us)
        )
        entry, from_us, until_us = in_force(overrides, now_us)
        multiplier = Decimal(settings.price_multiplier)
        base = listed.tariff if listed.tariff is None or multiplier == 1 else scaled(listed.tariff, multiplier)
        tariff = applied(base, entry)
        known_as = own.priced_as or upstream_model
        searches = _always_searches(known_as)
        transcribes = re.fullmatch(TRANSCRIBES, known_as) is not None
        draws = re.fullmatch(DRAWS, known_as) is not None
        stored = own.context_window
        if stored is None and listed.context_window is not None:
            stored = listed.context_window * STORED_MARGIN[0] // STORED_MARGIN[1]
        return ModelInfo(
            price=None if tariff is None else price_of(tariff),
            image_tokens_max=own.image_tokens_max or IMAGE_TOKENS_MAX[settings.dialect],
            output_default=own.max_output_tokens or _output_default(known_as),
            context_window=own.context_window or (TRANSCRIBES_WINDOW if transcribes else None),
            max_output_tokens=own.max_output_tokens or (TRANSCRIBES_OUTPUT if transcribes else None),
            output_image_tokens_max=own.output_image_tokens_max or (DRAWS_TOKENS_MAX if draws else None),
            audio_ms_max=None if own.audio_seconds_max is None else own.audio_seconds_max * 1000,
            stored_tokens_max=stored,
            listed_window=listed.context_window,
            unpriced=None if tariff is not None else listed.unpriced,
            unbounded=SEARCHES if searches else None,
            searches=searches,
            reported_max_nano=nano_from_usd(settings.reported_cost_max_usd) if settings.trust_reported_cost else None,
            image_prices=tuple(
                ImagePrice(its.size or "", its.quality or "", nano_from_usd(its.usd)) for its in own.image_prices
            ),
            served_unasked=settings.service_tiers,
            valid_from_us=max(listed.from_us, from_us),
            valid_until_us=min(listed.until_us, until_us),
        )


def output_limit_field(endpoint: str, provider: ProviderSettings) -> str | None:
    """The field by which an endpoint (its name) takes an output limit at a provider; None: it has no output."""
    if endpoint not in LIMIT_FIELDS:
        return None
    if endpoint == "responses":
        return "max_output_tokens"
    if endpoint == "chat":
        at_openai = re.match(r"https://api\.openai\.com(?:[:/]|$)", provider.base_url)
        return provider.output_limit_field or ("max_completion_tokens" if at_openai else "max_tokens")
    return "max_tokens"


def asks_stream_usage(provider: ProviderSettings) -> bool:
    """Whether streams of chat are asked to report usage. Mistral refuses to be (422, `extra_forbidden`)."""
    if provider.asks_stream_usage is not None:
        return provider.asks_stream_usage
    return re.match(r"https://api(?:\.\w+)?\.mistral\.ai(?:[:/]|$)", provider.base_url) is None


def _output_default(model: str) -> int:
    name = model.rpartition("/")[2]
    return next((limit for pattern, limit in OUTPUT_LIMITS if re.match(pattern, name)), OUTPUT_DEFAULT)


def _always_searches(model: str) -> bool:
    """Search models and deep-research models call paid tools in every request, asked or not."""
    return "search" in model.lower()
