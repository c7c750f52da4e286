"""Usage as providers really report it, and what it costs: every token charged once, at its own price.

The shapes are those of the providers' own documentation, SDKs and SDK tests, with their fields in their places; the
amounts were reckoned by hand from the list prices in the comments. Both are written out here, so that neither reading
nor arithmetic is checked against itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from tests.gateway.test_catalog import NOW, us
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import Catalog
from tollkeeper.gateway.charge import Charge, CostSource, charge_of, with_parts, with_tokens
from tollkeeper.gateway.dialects import ENDPOINTS, Answer, StreamMeter, read_answer
from tollkeeper.settings import ProviderSettings, Settings

CHAT, COMPLETIONS = ENDPOINTS["/v1/chat/completions"], ENDPOINTS["/v1/completions"]
RESPONSES, MESSAGES = ENDPOINTS["/v1/responses"], ENDPOINTS["/v1/messages"]
EMBEDDINGS, RERANK = ENDPOINTS["/v1/embeddings"], ENDPOINTS["/v1/rerank"]
IMAGES, HEARD = ENDPOINTS["/v1/images/generations"], ENDPOINTS["/v1/audio/transcriptions"]

PROVIDERS = ("openai", "anthropic", "mistral", "x-ai", "google")
SETTINGS = Settings(
    providers={
        name: ProviderSettings(
            base_url="http://127.0.0.1:1/v1", dialect="anthropic" if name == "anthropic" else "openai", prices=name
        )
        for name in PROVIDERS
    }
)
CATALOG = Catalog(SETTINGS)


class Shape(NamedTuple):
    """`told`: an answer, or the events of a stream. `nano`: what it costs as `model` of `provider`, if that is asked.
    `cost`: what the provider says. `whole`: the usage with the tokens of other rounds, if there were any."""

    name: str
    endpoint: Any
    told: Mapping[str, Any] | Sequence[Any]
    usage: Usage | None
    model: str = ""
    nano: int | None = None
    whole: Usage | None = None
    cost: bytes = b""


def chat(usage: Mapping[str, Any], **beside: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": [{"index": 0}], "usage": usage, **beside}


def chunk(usage: Mapping[str, Any] | None, *, choices: int = 1, **beside: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0}] * choices, "usage": usage, **beside}


def start(**usage: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"model": "claude-opus-4-6", "content": [], "usage": usage}}


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP = {"type": "message_stop"}
DONE = "[DONE]"
NONE = {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
ADVISED = [
    {"type": "message", "input_tokens": 412, "cache_read_input_tokens": 0, "output_tokens": 89},
    {
        "type": "advisor_message",
        "model": "claude-opus-4-7",
        "input_tokens": 823,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "output_tokens": 1612,
    },
    {"type": "message", "input_tokens": 0, "cache_read_input_tokens": 412, "output_tokens": 442},
]

SHAPES = (
    # OpenAI. gpt-4o: 2.50 in, 1.25 cached, 10 out.
    Shape(
        "cached tokens are inside prompt_tokens",
        CHAT,
        chat(
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "total_tokens": 2306,
                "prompt_tokens_details": {"cached_tokens": 1920},
                "completion_tokens_details": NONE,
            },
            service_tier="default",
        ),
        Usage(2006, 300, 1920),
        "openai/gpt-4o",
        (86 * 2500 + 1920 * 1250 + 300 * 10_000),
    ),
    Shape(
        "reasoning is inside completion_tokens",
        CHAT,
        chat(
            {
                "prompt_tokens": 26,
                "completion_tokens": 637,
                "total_tokens": 663,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {**NONE, "reasoning_tokens": 448},
            }
        ),
        Usage(26, 637, reasoning_tokens=448),
        "openai/o3-mini",  # 1.10 in, 4.40 out
        26 * 1100 + 637 * 4400,
    ),
    Shape(
        "rejected predictions are inside completion_tokens",
        CHAT,
        chat(
            {
                "prompt_tokens": 383,
                "completion_tokens": 256,
                "total_tokens": 639,
                "completion_tokens_details": {
                    **NONE,
                    "accepted_prediction_tokens": 120,
                    "rejected_prediction_tokens": 96,
                },
            }
        ),
        Usage(383, 256),
        "openai/gpt-4o",
        383 * 2500 + 256 * 10_000,
    ),
    Shape(
        "audio in and out, in chat",
        CHAT,
        chat(
            {
                "prompt_tokens": 236,
                "completion_tokens": 134,
                "total_tokens": 370,
                "prompt_tokens_details": {
                    "audio_tokens": 219,
                    "cached_tokens": 0,
                    "text_tokens": 17,
                    "image_tokens": 0,
                },
                "completion_tokens_details": {"audio_tokens": 108, "text_tokens": 26, "reasoning_tokens": 0},
            }
        ),
        Usage(236, 134, input_audio_tokens=219, output_audio_tokens=108),
    ),
    Shape(
        "a stream asked for usage tells it in a last chunk without choices",
        CHAT,
        [
            chunk(None),
            chunk(None, service_tier="default"),
            chunk({"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, choices=0),
            DONE,
        ],
        Usage(9, 12),
        "openai/gpt-4o",
        9 * 2500 + 12 * 10_000,
    ),
    Shape(
        "Azure's first chunk has no choices and no usage",
        CHAT,
        [
            {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": []},
            chunk(None),
            chunk(
                {
                    "completion_tokens": 12,
                    "completion_tokens_details": NONE,
                    "prompt_tokens": 9,
                    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
                    "total_tokens": 21,
                },
                choices=0,
            ),
            DONE,
        ],
        Usage(9, 12),
    ),
    Shape(
        "completions",
        COMPLETIONS,
        {"object": "text_completion", "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}},
        Usage(5, 7),
    ),
    Shape(
        "embeddings have no completion",
        EMBEDDINGS,
        {"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        Usage(8, 0),
        "openai/text-embedding-3-small",  # 0.02
        8 * 20,
    ),
    Shape(
        "responses: cached inside input, reasoning inside output",
        RESPONSES,
        {
            "object": "response",
            "service_tier": "default",
            "output": [{"type": "message"}],
            "usage": {
                "input_tokens": 1036,
                "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 0},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 64},
                "total_tokens": 1123,
            },
        },
        Usage(1036, 87, 1000, reasoning_tokens=64),
        "openai/gpt-4.1",  # 2.00 in, 0.50 cached, 8.00 out
        36 * 2000 + 1000 * 500 + 87 * 8000,
    ),
    Shape(
        "responses: the provider's own count of searches, of which a discounted one is none",
        RESPONSES,
        [
            {"type": "response.created", "response": {"id": "r", "usage": None, "output": []}},
            {
                "type": "response.completed",
                "response": {
                    "id": "r",
                    "output": [{"type": "web_search_call", "action": {"type": "search"}}] * 2,
                    "usage": {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30},
                    "tool_usage": {
                        "image_gen": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
                        "web_search": {"num_requests": 1},
                    },
                },
            },
        ],
        Usage(10, 20, web_searches=1),
    ),
    Shape(
        "responses: images drawn by the hosted tool are told beside",
        RESPONSES,
        {
            "output": [{"type": "image_generation_call", "result": "aGk="}],
            "tools": [{"type": "image_generation", "model": "gpt-image-1-mini", "size": "auto"}],
            "usage": {"input_tokens": 2300, "output_tokens": 40, "total_tokens": 2340},
            "tool_usage": {
                "image_gen": {
                    "input_tokens": 150,
                    "input_tokens_details": {"image_tokens": 100, "text_tokens": 50},
                    "output_tokens": 272,
                    "output_tokens_details": {"image_tokens": 272, "text_tokens": 0},
                    "total_tokens": 422,
                },
                "web_search": {"num_requests": 0},
            },
        },
        Usage(2300, 40),
        "openai/gpt-4.1",
        # gpt-image-1-mini: 2.00 text, 2.50 images, 8.00 out
        2300 * 2000 + 40 * 8000 + 50 * 2000 + 100 * 2500 + 272 * 8000,
        Usage(2450, 312),
    ),
    Shape(
        "images: text and images in, images out",
        IMAGES,
        {
            "created": 1,
            "data": [{"b64_json": ""}],
            "usage": {
                "total_tokens": 100,
                "input_tokens": 50,
                "output_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            },
        },
        Usage(50, 50, input_image_tokens=40, output_image_tokens=None, images=1),
        "openai/gpt-image-1",  # 5 text, 10 images, 40 out
        10 * 5000 + 40 * 10_000 + 50 * 40_000,
    ),
    Shape(
        "images: an SVG's authoring is told beside",
        IMAGES,
        {
            "data": [{"b64_json": ""}],
            "usage": {"total_tokens": 100, "input_tokens": 50, "output_tokens": 50},
            "svg_usage": {
                "model": "gpt-4.1",
                "input_tokens": 7,
                "output_tokens": 30,
                "reasoning_tokens": 4,
                "total_tokens": 37,
            },
        },
        Usage(50, 50, images=1),
        "openai/gpt-image-1",
        50 * 5000 + 50 * 40_000 + 7 * 2000 + 30 * 8000,
        Usage(57, 80, reasoning_tokens=4, images=1),
    ),
    Shape(
        "a transcription by tokens",
        HEARD,
        {
            "text": "hi",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45,
                "total_tokens": 59,
            },
        },
        Usage(14, 45, input_audio_tokens=14),
    ),
    Shape(
        "a transcription by its length",
        HEARD,
        {"text": "hi", "usage": {"type": "duration", "seconds": 9.5}},
        Usage(audio_ms=9500),
    ),
    # Anthropic. claude-sonnet-4-5: 3 in, 0.30 read, 3.75 and 6 written, 15 out, 10 a thousand searches.
    Shape(
        "Anthropic: reads and writes are beside input_tokens, by lifetime",
        MESSAGES,
        {
            "type": "message",
            "usage": {
                "input_tokens": 2048,
                "cache_read_input_tokens": 1800,
                "cache_creation_input_tokens": 248,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 503,
                "output_tokens_details": {"thinking_tokens": 200},
                "server_tool_use": None,
                "service_tier": "standard",
                "inference_geo": "global",
            },
        },
        Usage(4096, 503, 1800, 248, 100, 200),
        "anthropic/claude-sonnet-4-5",
        2048 * 3000 + 1800 * 300 + 148 * 3750 + 100 * 6000 + 503 * 15_000,
    ),
    Shape(
        "Anthropic: a web search, in a stream, whose delta tells the whole input",
        MESSAGES,
        [
            start(input_tokens=2679, cache_creation_input_tokens=0, cache_read_input_tokens=0, output_tokens=3),
            {"type": "ping"},
            delta(
                input_tokens=10682,
                cache_creation_input_tokens=0,
                cache_read_input_tokens=0,
                output_tokens=510,
                server_tool_use={"web_search_requests": 1, "web_fetch_requests": 2},
            ),
            STOP,
        ],
        Usage(10682, 510, web_searches=1),
        "anthropic/claude-sonnet-4-5",
        10682 * 3000 + 510 * 15_000 + 10_000_000,
    ),
    Shape(
        "Anthropic: a stream whose delta tells the output alone",
        MESSAGES,
        [
            start(
                input_tokens=25,
                cache_read_input_tokens=100,
                cache_creation_input_tokens=30,
                cache_creation={"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 30},
                output_tokens=1,
                service_tier="standard",
            ),
            delta(output_tokens=15),
            STOP,
        ],
        Usage(155, 15, 100, 30, 30),
        "anthropic/claude-sonnet-4-5",
        25 * 3000 + 100 * 300 + 30 * 6000 + 15 * 15_000,
    ),
    Shape(
        "Anthropic: the tokens of a compaction are in no total",
        MESSAGES,
        [
            start(input_tokens=180_000, output_tokens=1),
            delta(
                input_tokens=23_000,
                output_tokens=1000,
                iterations=[
                    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
                    {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
                ],
            ),
            STOP,
        ],
        Usage(23_000, 1000),
        "anthropic/claude-opus-4-6",  # 5 in, 25 out
        203_000 * 5000 + 4500 * 25_000,
        Usage(203_000, 4500),
    ),
    Shape(
        "Anthropic: an advisor is charged as the model it is",
        MESSAGES,
        {
            "type": "message",
            "usage": {
                "input_tokens": 412,
                "cache_read_input_tokens": 412,
                "cache_creation_input_tokens": 0,
                "output_tokens": 531,
                "iterations": ADVISED,
            },
        },
        Usage(824, 531, 412),
        "anthropic/claude-sonnet-4-5",
        # claude-opus-4-7: 5 in, 25 out
        412 * 3000 + 412 * 300 + 531 * 15_000 + 823 * 5000 + 1612 * 25_000,
        Usage(1647, 2143, 412),
    ),
    Shape(
        "Anthropic: rounds that the totals have are counted once",
        MESSAGES,
        {
            "usage": {
                "input_tokens": 10,
                "output_tokens": 6,
                "iterations": [{"type": "message", "input_tokens": 10, "output_tokens": 6}],
            }
        },
        Usage(10, 6),
        "anthropic/claude-opus-4-6",
        10 * 5000 + 6 * 25_000,
    ),
    Shape(
        "Anthropic: kept in the US, a tenth dearer",
        MESSAGES,
        {"usage": {"input_tokens": 1000, "output_tokens": 100, "inference_geo": "us", "speed": "standard"}},
        Usage(1000, 100, service_tier="us"),
        "anthropic/claude-opus-4-6",
        1000 * 5500 + 100 * 27_500,
    ),
    Shape(
        "Anthropic's dialect elsewhere: nothing at the start, all in the delta",
        MESSAGES,
        [
            start(input_tokens=0, output_tokens=0),
            delta(input_tokens=14, cache_read_input_tokens=6, output_tokens=9),
            STOP,
        ],
        Usage(20, 9, 6),
    ),
    # Those who speak OpenAI's dialect.
    Shape(
        "DeepSeek: hits and misses make up the prompt, reasoning is inside",
        CHAT,
        chat(
            {
                "prompt_tokens": 1016,
                "completion_tokens": 110,
                "total_tokens": 1126,
                "prompt_tokens_details": {"cached_tokens": 960},
                "completion_tokens_details": {"reasoning_tokens": 80},
                "prompt_cache_hit_tokens": 960,
                "prompt_cache_miss_tokens": 56,
            }
        ),
        Usage(1016, 110, 960, reasoning_tokens=80),
    ),
    Shape(
        "Mistral: unasked, in the last chunk with choices",
        CHAT,
        [
            chunk(None),
            chunk({"prompt_tokens": 16, "total_tokens": 34, "completion_tokens": 18, "prompt_audio_seconds": None}),
            DONE,
        ],
        Usage(16, 18),
    ),
    Shape(
        "Mistral: seconds of audio",
        HEARD,
        {
            "model": "voxtral-mini-2602",
            "text": "hi",
            "language": None,
            "segments": [],
            "usage": {"prompt_audio_seconds": 30, "prompt_tokens": 150, "total_tokens": 192, "completion_tokens": 42},
        },
        Usage(150, 42, audio_ms=30_000),
        "mistral/voxtral-mini-2602",  # 0.18 an hour
        30 * 180_000_000 // 3600,
    ),
    Shape(
        "Mistral: seconds of audio, in a stream",
        HEARD,
        [
            {"type": "transcription.text.delta", "text": "hi"},
            {
                "type": "transcription.done",
                "text": "hi",
                "usage": {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12, "prompt_audio_seconds": 3},
            },
        ],
        Usage(8, 4, audio_ms=3000),
        "mistral/voxtral-mini-2602",
        3 * 180_000_000 // 3600,
    ),
    Shape(
        "Groq: times among the counts, and once more under x_groq",
        CHAT,
        [
            chunk(None, x_groq={"id": "req"}),
            chunk(
                {
                    "queue_time": 0.037493756,
                    "prompt_tokens": 18,
                    "prompt_time": 0.000680594,
                    "completion_tokens": 556,
                    "completion_time": 0.463333333,
                    "total_tokens": 574,
                    "total_time": 0.464013927,
                },
                choices=0,
                x_groq={"id": "req", "usage": {"prompt_tokens": 18, "completion_tokens": 556, "total_tokens": 574}},
            ),
            DONE,
        ],
        Usage(18, 556),
    ),
    Shape(
        "xAI: reasoning beside completion_tokens, inside the total",
        CHAT,
        chat(
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "prompt_tokens_details": {
                    "text_tokens": 32,
                    "audio_tokens": 0,
                    "image_tokens": 0,
                    "cached_tokens": 6,
                },
                "completion_tokens_details": {**NONE, "reasoning_tokens": 94},
                "num_sources_used": 0,
                "cost_in_usd_ticks": 6_718_000,
            }
        ),
        Usage(32, 103, 6, reasoning_tokens=94),
        "x-ai/grok-4.5",  # 2 in, 0.30 cached, 6 out
        26 * 2000 + 6 * 300 + 103 * 6000,
        cost=b"6718000e-10",
    ),
    Shape(
        "xAI: searches in the responses format",
        RESPONSES,
        {
            "output": [],
            "usage": {
                "input_tokens": 9212,
                "input_tokens_details": {"cached_tokens": 3072},
                "output_tokens": 3417,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 12_629,
                "num_sources_used": 0,
                "num_server_side_tools_used": 3,
                "cost_in_usd_ticks": 318_319_000,
                "server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 2, "mcp_calls": 0},
            },
        },
        Usage(9212, 3417, 3072, web_searches=3),
        cost=b"318319000e-10",
    ),
    Shape(
        "Gemini: cumulative in every chunk, thoughts only in the total",
        CHAT,
        [
            chunk({"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 462}),
            chunk({"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553}),
            DONE,
        ],
        Usage(20, 533),
        "google/gemini-2.5-flash",  # 0.30 in, 2.50 out
        20 * 300 + 533 * 2500,
    ),
    Shape(
        "Gemini: nothing but thoughts",
        CHAT,
        chat({"prompt_tokens": 8, "total_tokens": 1008}),
        Usage(8, 1000),
        "google/gemini-2.5-flash",
        8 * 300 + 1000 * 2500,
    ),
    Shape(
        "OpenRouter: writes and a stated cost",
        CHAT,
        chat(
            {
                "prompt_tokens": 194,
                "completion_tokens": 20,
                "total_tokens": 214,
                "cost": 0.00095,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": None},
                "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 100, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 5, "image_tokens": 0},
                "server_tool_use": {"web_search_requests": 2},
            }
        ),
        Usage(194, 20, 10, 100, reasoning_tokens=5, output_image_tokens=0, web_searches=2),
        cost=b"0.00095",
    ),
    Shape(
        "OpenRouter with a key of one's own: its fee and the provider's charge",
        CHAT,
        chat(
            {
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "total_tokens": 2,
                "cost": 0.0000475,
                "is_byok": True,
                "cost_details": {"upstream_inference_cost": 9.5e-04},
            }
        ),
        Usage(1, 1),
        cost=b"0.0009975",
    ),
    Shape(
        "vLLM: cumulative in every chunk, details that are null",
        CHAT,
        [
            chunk({"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None}),
            chunk({"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}),
            chunk({"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}, choices=0),
            DONE,
        ],
        Usage(7, 3),
    ),
    Shape(
        "Moonshot: cached beside the details, and usage once more in the choice",
        CHAT,
        [
            {"choices": [{"finish_reason": "stop", "usage": {"prompt_tokens": 19, "completion_tokens": 13}}]},
            chunk({"prompt_tokens": 19, "completion_tokens": 13, "total_tokens": 32, "cached_tokens": 12}, choices=0),
            DONE,
        ],
        Usage(19, 13, 12),
    ),
    Shape(
        "Qwen: explicit cache writes among the details",
        CHAT,
        chat(
            {
                "prompt_tokens": 1516,
                "completion_tokens": 25,
                "total_tokens": 1541,
                "prompt_tokens_details": {
                    "cached_tokens": 0,
                    "cache_creation": {"ephemeral_5m_input_tokens": 1502},
                    "cache_creation_input_tokens": 1502,
                    "cache_type": "ephemeral",
                },
            }
        ),
        Usage(1516, 25, 0, 1502),
    ),
    Shape(
        "LiteLLM: writes under its own names, by lifetime",
        CHAT,
        chat(
            {
                "prompt_tokens": 300,
                "completion_tokens": 5,
                "total_tokens": 305,
                "prompt_tokens_details": {
                    "cached_tokens": 100,
                    "cache_creation_tokens": 150,
                    "cache_creation_token_details": {
                        "ephemeral_5m_input_tokens": 50,
                        "ephemeral_1h_input_tokens": 100,
                    },
                },
                "cache_creation_input_tokens": 150,
                "cache_read_input_tokens": 100,
            }
        ),
        Usage(300, 5, 100, 150, 100),
    ),
    Shape(
        "Perplexity: searches, and a cost in parts",
        CHAT,
        chat(
            {
                "prompt_tokens": 8,
                "completion_tokens": 439,
                "total_tokens": 447,
                "search_context_size": "low",
                "cost": {"input_tokens_cost": 2.4e-05, "output_tokens_cost": 0.006585, "total_cost": 0.012609},
            }
        ),
        Usage(8, 439),
        cost=b"0.012609",
    ),
    Shape(
        "Voyage: embeddings tell a total alone",
        EMBEDDINGS,
        {"object": "list", "data": [], "model": "voyage-3.5", "usage": {"total_tokens": 10}},
        Usage(10, 0),
    ),
    Shape(
        "Cohere: searches as a number of any kind",
        RERANK,
        {"results": [], "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1.0}}},
        Usage(searches=1),
    ),
    Shape(
        "Jina: reranking by tokens",
        RERANK,
        {"results": [], "usage": {"total_tokens": 15}},
        Usage(15, 0),
    ),
)


def read(shape: Shape) -> Answer:
    """The answer as the gateway reads it, whole or as it streams."""
    if isinstance(shape.told, Mapping):
        return read_answer(shape.endpoint, json.dumps(shape.told).encode())
    meter = StreamMeter(shape.endpoint)
    for event in shape.told:
        data = event if isinstance(event, str) else json.dumps(event)
        meter.feed(f"data: {data}\n\n".encode())
    assert meter.complete
    return meter.answer


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_usage_is_read_once(shape: Shape) -> None:
    """Every count in its place, whoever reports it."""
    answer = read(shape)
    assert answer.usage == shape.usage
    assert with_tokens(answer.usage or Usage(), answer.parts) == (shape.whole or shape.usage)
    assert answer.cost == shape.cost


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.nano is not None], ids=lambda shape: shape.name)
def test_usage_is_priced_once(shape: Shape) -> None:
    """By the list prices, to the nano-dollar."""
    provider, _, model = shape.model.partition("/")
    info = CATALOG.info(provider, model, model, us(NOW))
    answer = read(shape)
    assert answer.usage is not None
    charge = with_parts(
        charge_of(info, answer.usage, answer.cost),
        info,
        answer.parts,
        lambda other: CATALOG.info(provider, other, other, us(NOW)).price,
    )
    assert (charge.cost_nano, charge.unpriced_tier) == (shape.nano, False)


def test_a_part_without_a_price_is_charged_as_the_model_that_was_asked() -> None:
    """And counted, for that may be below the truth; where the provider's word counts, it is of the whole."""
    told = {"input_tokens": 1, "output_tokens": 1, "iterations": [ADVISED[1] | {"model": "claude-unheard-of"}]}
    answer = read_answer(MESSAGES, json.dumps({"usage": told}).encode())
    info = CATALOG.info("anthropic", "claude-opus-4-6", "claude-opus-4-6", us(NOW))
    assert answer.usage is not None
    charge = charge_of(info, answer.usage, b"")
    found = with_parts(charge, info, answer.parts, lambda model: None)
    assert (found.cost_nano, found.unpriced_tier) == (824 * 5000 + 1613 * 25_000, True)
    word = Charge(7, CostSource.PROVIDER)
    assert with_parts(word, info, answer.parts, lambda model: None) == word


@pytest.mark.parametrize("iterations", [5, [5], [{"type": "compaction", "input_tokens": -1}], "compaction"])
def test_rounds_that_cannot_be_read_are_not_told(iterations: object) -> None:
    """The totals still are."""
    told = {"input_tokens": 1, "output_tokens": 2, "iterations": iterations, "x": "compaction"}
    answer = read_answer(MESSAGES, json.dumps({"usage": told}).encode())
    assert (answer.usage, answer.parts) == (Usage(1, 2), ())
