"""Endpoints that are no conversations: passed on whole, bounded before, charged exactly, refused without a price."""

import io
import wave
from typing import Any

import aiohttp
import pytest

from tests.gateway.conftest import Reply, Stand, settings_for
from tollkeeper.domain.policy import Budget, Policy, Unit, Window
from tollkeeper.domain.pricing import cost_nano
from tollkeeper.domain.usage import Usage
from tollkeeper.gateway.catalog import Catalog
from tollkeeper.gateway.measured import drawn

BUDGET = Policy(budgets=(Budget(10**10),))
"""Ten dollars."""


def wav(ms: int, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * (rate * ms // 1000))
    return buffer.getvalue()


async def post_form(stand: Stand, path: str, texts: dict[str, str], **files: tuple[str, bytes]) -> Reply:
    data = aiohttp.FormData(quote_fields=False)
    for name, text in texts.items():
        data.add_field(name, text)
    for name, (filename, content) in files.items():
        data.add_field(name, content, filename=filename, content_type="application/octet-stream")
    async with aiohttp.ClientSession() as session:
        sent = {"authorization": f"Bearer {stand.secret}"}
        async with session.post(stand.url + path, data=data, headers=sent) as got:
            return Reply(got.status, {n.lower(): v for n, v in got.headers.items()}, await got.read())


async def charged(stand: Stand) -> tuple[int, int, Usage]:
    """Cost, hold and usage of the single request, after checking that the provider served the same."""
    end, record = await stand.one_end()
    assert end.kind == "settled" and record.status == 200
    served = stand.simulator.served.requests[-1]
    assert served.usage == end.usage, "the provider's truth"
    assert end.cost_nano <= record.hold_nano, "the bound"
    assert (record.images, record.audio_ms, record.characters, record.searches) == (
        *(end.usage.images, end.usage.audio_ms, end.usage.characters, end.usage.searches),
    )
    return end.cost_nano, record.hold_nano, end.usage


async def test_count_tokens_is_free_and_admitted(stand: Stand) -> None:
    """No price is needed, nothing is charged or counted in tokens; but it is one of the requests a limit counts."""
    stand.key(Policy(budgets=(Budget(1),), windows=(Window(Unit.REQUESTS, 1),)))
    body = {"model": "claude-unheard-of", "messages": [{"role": "user", "content": "hi"}], "system": "x"}
    reply = await stand.post(body, "/messages/count_tokens")
    assert reply.status == 200 and reply.json["input_tokens"] > 0, reply.body
    end, record = await stand.one_end()
    assert (end.kind, end.cost_nano, record.hold_nano) == ("settled", 0, 0)
    assert stand.governor.granted[0].demand.tokens == 0
    refused = await stand.post(body, "/messages/count_tokens")
    assert refused.status == 429 and refused.json["error"]["type"] == "rate_limit_error"
    assert stand.simulator.served.last == 1


async def test_moderations_are_free_at_openai_and_no_other_name_is(stand: Stand) -> None:
    stand.key(BUDGET)
    reply = await stand.post({"input": ["a", "b"]}, "/moderations")
    assert reply.status == 200 and len(reply.json["results"]) == 2, reply.body
    assert (await charged(stand))[0] == 0
    for model in ("text-moderation-mine", "gpt-4o-moderation"):
        refused = await stand.post({"input": "a", "model": model}, "/moderations")
        assert refused.status == 400 and "per_request_usd" in refused.json["error"]["message"], refused.body


async def test_images_by_number(stand: Stand) -> None:
    stand.key(BUDGET)
    reply = await stand.post({"model": "dall-e-3", "prompt": "a cat", "n": 3}, "/images/generations")
    assert reply.status == 200 and len(reply.json["data"]) == 3, reply.body
    assert await charged(stand) == (120_000_000, 120_000_000, Usage(images=3))


@pytest.mark.parametrize(
    ("asked", "held", "charged_usd"),
    [
        ({"size": "1024x1024", "quality": "low"}, 1, 1),
        ({"size": "1024x1024", "quality": "high"}, 5, 5),
        ({"size": "512x512", "quality": "low"}, 2, 2),
        ({"quality": "low"}, 2, 2),
        ({"size": "auto"}, 5, 5),
    ],
)
async def test_images_by_size_and_quality(stand: Stand, asked: dict[str, str], held: int, charged_usd: int) -> None:
    """The first price that fits; what is not told may be the dearest. In hundredths of a dollar."""
    stand.key(BUDGET)
    reply = await stand.post({"model": "gpt-sized", "prompt": "a cat", "n": 2} | asked, "/images/generations")
    assert reply.status == 200, reply.body
    cost, hold, _ = await charged(stand)
    assert (hold, cost) == (2 * held * 10_000_000, 2 * charged_usd * 10_000_000)


async def test_an_image_without_a_price_of_its_size_is_refused_for_budgets(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "gpt-sized", "prompt": "a cat", "size": "1x1", "quality": "high"}
    refused = await stand.post(body, "/images/generations")
    assert refused.status == 400 and refused.json["error"]["code"] == "model_not_priced", refused.body


async def test_an_image_is_charged_as_what_the_answer_tells(stand: Stand) -> None:
    """Held for the dearest, since the request does not say."""
    stand.key(BUDGET)
    body = {"model": "house-gpt-image", "prompt": "a cat", "stream": True}
    reply = await stand.post(body, "/images/generations")
    assert reply.status == 200, reply.body
    cost, hold, _ = await charged(stand)
    assert (hold, cost) == (90_000_000, 30_000_000)
    assert stand.records.all[0].price_version == "configuration images 1024x1024 medium"


def test_what_an_answer_tells_of_an_image_decides() -> None:
    """It may be cheaper than what was held for, and where it has no price, that counts."""
    configured = settings_for("http://127.0.0.1:1/v1")
    info = Catalog(configured).info("sim", "gpt-sized", "gpt-sized", 0)
    held = drawn(info, "", "")
    for told, nano in (
        (("1024x1024", "low"), 10_000_000),
        (("1024x1024", "high"), 50_000_000),
        (("2x2", "low"), 20_000_000),
    ):
        found = drawn(held, *told)
        assert found.price is not None and cost_nano(found.price, Usage(images=1)) == nano
    assert drawn(held, "2x2", "high") == info


async def test_images_by_tokens(stand: Stand) -> None:
    stand.key(BUDGET)
    reply = await stand.post({"model": "gpt-image-1", "prompt": "a cat", "n": 2}, "/images/generations")
    assert reply.status == 200, reply.body
    cost, hold, usage = await charged(stand)
    assert (usage.images, usage.output_tokens) == (2, 2 * 1056)
    assert cost == 2 * 2 * 5000 + 2 * 1056 * 40_000 - 2 * 5000, usage
    assert hold >= 2 * 6240 * 40_000


async def test_image_streams(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "gpt-image-1", "prompt": "a cat", "stream": True, "partial_images": 1}
    reply = await stand.post(body, "/images/generations")
    assert (
        reply.headers["content-type"].startswith("text/event-stream") and b"image_generation.completed" in reply.body
    )
    assert (await charged(stand))[2].images == 1


async def test_image_edits_and_variations(stand: Stand) -> None:
    stand.key(BUDGET)
    texts = {"model": "gpt-image-1", "prompt": "a hat", "n": "2"}
    reply = await post_form(stand, "/images/edits", texts, image=("cat.png", b"PNG"), mask=("m.png", b"PNG"))
    assert reply.status == 200, reply.body
    assert (await charged(stand))[2].input_image_tokens == 300


async def test_a_model_without_a_price_for_images_is_refused_for_budgets(stand: Stand) -> None:
    """The message tells the settings to write; a key without a budget may use it."""
    stand.key(BUDGET)
    refused = await post_form(stand, "/images/variations", {}, image=("cat.png", b"PNG"))
    assert refused.status == 400 and refused.json["error"]["code"] == "model_not_priced"
    assert 'per_image_usd under models."dall-e-2"' in refused.json["error"]["message"]
    assert stand.simulator.served.last == 0
    stand.key()
    assert (await post_form(stand, "/images/variations", {}, image=("cat.png", b"PNG"))).status == 200


async def test_a_price_of_another_kind_is_none(stand: Stand) -> None:
    """What is sold by the hour or the image has no price as a chat, and is not charged as nothing."""
    stand.key(BUDGET)
    for model in ("whisper-1", "dall-e-3", "omni-moderation-latest", "tts-1"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        refused = await stand.post(body)
        assert refused.status == 400 and refused.json["error"]["code"] == "model_not_priced", refused.body


async def test_speech_by_characters(stand: Stand) -> None:
    stand.key(BUDGET)
    reply = await stand.post({"model": "tts-1", "voice": "alloy", "input": "Grüße"}, "/audio/speech")
    assert reply.status == 200 and reply.headers["content-type"] == "audio/mpeg"
    assert reply.body.startswith(b"ID3") and reply.body.endswith("Grüße".encode())
    assert await charged(stand) == (75_000, 75_000, Usage(characters=5))
    assert "x-ratelimit-limit-requests" not in reply.headers and "x-tollkeeper-budget-remaining-usd" in reply.headers


async def test_speech_by_tokens(stand: Stand) -> None:
    """Sound tells no usage: bounded only where the configuration bounds the answer; events tell it."""
    stand.key(BUDGET)
    body = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "Hello"}
    refused = await stand.post(body, "/audio/speech")
    assert refused.status == 400 and "max_output_tokens" in refused.json["error"]["message"]
    stand.key()
    reply = await stand.post(body | {"stream_format": "sse"}, "/audio/speech")
    assert reply.status == 200 and b"speech.audio.done" in reply.body
    end, _ = await stand.one_end()
    assert end.kind == "settled" and end.cost_nano == 2 * 600 + 20 * 12_000


@pytest.mark.parametrize("path", ["/audio/transcriptions", "/audio/translations"])
async def test_recordings_by_their_length(stand: Stand, path: str) -> None:
    stand.key(BUDGET)
    reply = await post_form(stand, path, {"model": "whisper-1"}, file=("a.wav", wav(1500)))
    assert reply.status == 200 and reply.json["text"], reply.body
    cost, hold, usage = await charged(stand)
    assert (cost, usage) == (150_000, Usage(audio_ms=1500))
    assert hold == 150_300, "the header's bytes count as sound"


async def test_plain_text_of_a_wav_is_charged_by_the_file(stand: Stand) -> None:
    stand.key(BUDGET)
    texts = {"model": "whisper-1", "response_format": "text"}
    reply = await post_form(stand, "/audio/transcriptions", texts, file=("a.wav", wav(1000)))
    assert reply.status == 200 and reply.headers["content-type"] == "text/plain" and reply.body.endswith(b"\n")
    end, _ = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("settled", 100_300)


async def test_compressed_recordings_need_a_bound(stand: Stand) -> None:
    stand.key(BUDGET)
    sound = b"\xff\xf3" * 16_000
    refused = await post_form(stand, "/audio/transcriptions", {"model": "whisper-1"}, file=("a.mp3", sound))
    assert refused.status == 400 and "audio_seconds_max" in refused.json["error"]["message"]
    reply = await post_form(stand, "/audio/transcriptions", {"model": "whisper-long"}, file=("a.mp3", sound))
    assert reply.status == 200, reply.body
    assert await charged(stand) == (200_000, 60_000_000, Usage(audio_ms=2000))


async def test_recordings_by_tokens(stand: Stand) -> None:
    """Whole and as events; the bound is the model's documented context window."""
    stand.key(BUDGET)
    texts = {"model": "gpt-4o-transcribe", "prompt": "Names: Ada"}
    reply = await post_form(stand, "/audio/transcriptions", texts, file=("a.mp3", b"\xff" * 48_000))
    assert reply.status == 200, reply.body
    cost, _, usage = await charged(stand)
    assert (usage.input_audio_tokens, usage.input_tokens, usage.output_tokens) == (30, 33, 8)
    assert cost == 30 * 6000 + 3 * 2500 + 8 * 10_000


async def test_recording_streams(stand: Stand) -> None:
    stand.key(BUDGET)
    texts = {"model": "gpt-4o-transcribe", "stream": "true"}
    reply = await post_form(stand, "/audio/transcriptions", texts, file=("a.mp3", b"\xff" * 16_000))
    assert b"transcript.text.done" in reply.body, reply.body
    assert (await charged(stand))[2].input_audio_tokens == 10


async def test_rerank_by_searches(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "rerank-v3.5", "query": "q", "documents": ["d"] * 101, "top_n": 2}
    reply = await stand.post(body, "/rerank")
    assert reply.status == 200 and len(reply.json["results"]) == 2, reply.body
    assert await charged(stand) == (4_000_000, 4_000_000, Usage(searches=2))


async def test_rerank_by_tokens(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "house-model", "query": "which?", "documents": ["one", {"text": "two"}]}
    reply = await stand.post(body, "/rerank")
    assert reply.status == 200, reply.body
    assert (await charged(stand))[2].input_tokens == reply.json["usage"]["total_tokens"]


async def test_without_a_report_the_hold_is_charged(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "rerank-v3.5", "query": "q [[sim fault=no_usage]]", "documents": ["d"]}
    assert (await stand.post(body, "/rerank")).status == 200
    end, record = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("presumed", record.hold_nano) and end.cost_nano > 0


async def test_a_provider_that_fails_costs_nothing(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "tts-1", "voice": "alloy", "input": "x [[sim status=500]]"}
    assert (await stand.post(body, "/audio/speech")).status == 500
    end, _ = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("settled", 0)


async def test_sound_that_breaks_off_is_charged_at_its_hold(stand: Stand) -> None:
    stand.key(BUDGET)
    body = {"model": "tts-1", "voice": "alloy", "input": "x [[sim fault=truncate]]"}
    with pytest.raises(aiohttp.ClientError):
        await stand.post(body, "/audio/speech")
    end, record = await stand.one_end()
    assert (end.kind, end.cost_nano) == ("presumed", record.hold_nano)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/moderations", {}),
        ("/moderations", {"input": 7}),
        ("/images/generations", {"model": "dall-e-3", "prompt": "x", "n": 11}),
        ("/images/generations", {"model": "dall-e-3", "prompt": "x", "n": 0}),
        ("/images/generations", {"prompt": "x"}),
        ("/audio/speech", {"model": "tts-1"}),
        ("/rerank", {"model": "rerank-v3.5", "query": "q", "documents": []}),
        ("/rerank", {"model": "rerank-v3.5", "documents": ["d"]}),
        ("/messages/count_tokens", {"model": "claude-haiku-4-5", "messages": []}),
        ("/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
        ("/audio/transcriptions", {"model": "whisper-1"}),
        ("/images/edits", {"model": "dall-e-3"}),
    ],
)
async def test_wrong_requests(stand: Stand, path: str, body: Any) -> None:
    reply = await stand.post(body, path)
    assert reply.status == 400, reply.body
    assert not stand.governor.granted and stand.simulator.served.last == 0


async def test_wrong_forms(stand: Stand) -> None:
    for texts, files in (
        ({"model": "whisper-1"}, {}),
        ({"model": "whisper-1"}, {"model": ("x", b"x"), "file": ("a", b"a")}),
        ({}, {"file": ("a", b"a")}),
    ):
        reply = await post_form(stand, "/audio/transcriptions", texts, **files)
        assert reply.status == 400, reply.body
    assert not stand.governor.granted


async def test_a_field_that_may_cost_is_refused_for_budgets(stand: Stand) -> None:
    stand.key(BUDGET)
    reply = await stand.post({"model": "dall-e-3", "prompt": "x", "upscale": 4}, "/images/generations")
    assert reply.status == 400 and "'upscale'" in reply.json["error"]["message"]


async def test_too_large_a_form_is_refused_before_it_is_read(stand: Stand) -> None:
    secret = stand.secret
    async with aiohttp.ClientSession() as session:
        headers = {"authorization": f"Bearer {secret}", "content-type": "multipart/form-data; boundary=x"}
        headers["content-length"] = str(2**40)
        async with session.post(f"{stand.url}/audio/transcriptions", data=b"", headers=headers) as got:
            assert got.status == 413
