"""What is no conversation: moderations, reranking, images, speech, recordings, counting tokens. Decides and renders.

Forms are read by Python's own mail parser, so that the gateway's is not its own judge. A recording's length is read
from its WAV header, or is what its bytes last at 128 kbit/s; rerankers count a search for each hundred documents.
"""

import wave
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from typing import Any, Final

import msgspec

from tollkeeper.domain.usage import Usage
from tollkeeper.simulator.answers import Events
from tollkeeper.simulator.asks import BYTES_PER_TOKEN, Refusal
from tollkeeper.simulator.directives import NO_DIRECTIVE, BadDirective, Directive, Fault, parse_directive
from tollkeeper.simulator.prose import draw, passage

BYTES_PER_MS: Final = 16
AUDIO_TOKENS_PER_S: Final = 10
IMAGE_INPUT_TOKENS: Final = 300
IMAGE_OUTPUT_TOKENS: Final = 1056
SEARCH_DOCUMENTS: Final = 100
SPEECH: Final = b"ID3\x04\x00simulated speech "
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SPEECH_TYPES: Final = {"wav": "audio/wav", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac"}

_encode = msgspec.json.encode


class Media(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be served, and its answer."""

    model: str
    usage: Usage
    body: bytes
    user: str = ""
    media_type: str = "application/json"
    events: Events | None = None
    directive: Directive = NO_DIRECTIVE


class File(msgspec.Struct, frozen=True):
    """A file of a form."""

    filename: str
    media_type: str
    data: bytes


Fields = dict[str, Any]


def serve_media(path: str, content_type: bytes, body: bytes) -> Media | Refusal:
    """The answer to a POST to one of `MEDIA_PATHS`, or why the provider would refuse it."""
    directive = parse_directive(body)
    if isinstance(directive, BadDirective):
        return Refusal(400, f"Directive not understood: {directive.why}", code="invalid_directive")
    try:
        fields = form_of(content_type, body) if path in FORMS else msgspec.json.decode(body, type=dict[str, Any])
        return MEDIA_PATHS[path](fields, directive)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        return Refusal(400, f"Invalid request: {error!r}")


def form_of(content_type: bytes, body: bytes) -> Fields:
    """The fields of a form: texts as they are, files as `File`, lists (`name[]`) as lists."""
    message = BytesParser(policy=HTTP).parsebytes(b"content-type: " + content_type + b"\r\n\r\n" + body)
    if message.get_content_type() != "multipart/form-data" or not message.is_multipart() or message.defects:
        raise ValueError("the body is no form")
    fields: Fields = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data: Any = part.get_payload(decode=True)
        filename = part.get_filename()
        value: Any = data.decode() if filename is None else File(filename, part.get_content_type(), data)
        if filename is not None and (name in fields or str(name).endswith("[]")):
            name = str(name).removesuffix("[]")
            earlier = fields.get(name, [])
            fields[name] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        elif name in fields:
            raise ValueError(f"{name} twice")
        else:
            fields[str(name)] = value
    return fields


def _moderation(fields: Fields, directive: Directive) -> Media:
    model = fields.get("model", "omni-moderation-latest")
    given = fields["input"]
    results = [
        {
            "flagged": False,
            "categories": dict.fromkeys(_CATEGORIES, False),
            "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
            "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
        }
        for _ in (given if isinstance(given, list) and all(isinstance(g, str) for g in given) else [given])
    ]
    body = _encode({"id": "modr-simulated", "model": model, "results": results})
    return Media(model=model, usage=Usage(), body=body, directive=directive)


_CATEGORIES: Final = (
    *("hate", "hate/threatening", "harassment", "harassment/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)


def _rerank(fields: Fields, directive: Directive) -> Media:
    documents = fields["documents"]
    results = [{"index": at, "relevance_score": 1 / (at + 1)} for at in range(len(documents))]
    results = results[: fields.get("top_n") or len(results)]
    answer: Fields = {"id": "rerank-simulated", "results": results}
    if "rerank-v" in fields["model"]:
        searches = -(-len(documents) // SEARCH_DOCUMENTS)
        usage = Usage(searches=searches)
        answer["meta"] = {"api_version": {"version": "2"}, "billed_units": {"search_units": searches}}
    else:
        read = sum(_tokens(str(document)) + _tokens(fields["query"]) for document in documents)
        usage = Usage(input_tokens=read)
        answer |= {"model": fields["model"], "usage": {"total_tokens": read}}
    return Media(model=fields["model"], usage=usage, body=_body(answer, directive), directive=directive)


def _image(fields: Fields, directive: Directive) -> Media:
    model = fields.get("model", "dall-e-2")
    made = int(fields.get("n") or 1)
    shown = fields.get("image", [])
    shown = shown if isinstance(shown, list) else [shown]
    if not all(isinstance(image, File) and image.data for image in shown):
        raise ValueError("an image that is no file")
    if "gpt-image" not in model:
        data = [{"url": f"https://images.invalid/{at}.png"} for at in range(made)]
        body = _encode({"created": 1_700_000_000, "data": data})
        return Media(
            model=model, user=fields.get("user", ""), usage=Usage(images=made), body=body, directive=directive
        )
    text, seen = _tokens(fields.get("prompt", "")), IMAGE_INPUT_TOKENS * len(shown)
    output = IMAGE_OUTPUT_TOKENS * made if directive.output is None else directive.output
    usage = Usage(text + seen, output, input_image_tokens=seen, images=made)
    told = {
        "input_tokens": text + seen,
        "output_tokens": output,
        "total_tokens": text + seen + output,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
    }
    user = fields.get("user", "")
    if fields.get("stream") in (True, "true"):
        kind = "image_edit" if shown else "image_generation"
        last = {"type": f"{kind}.completed", "b64_json": PIXEL, "created_at": 1_700_000_000, "size": "1024x1024"}
        last |= {"quality": "medium", "background": "opaque", "output_format": "png", "usage": told}
        partial = {"type": f"{kind}.partial_image", "b64_json": PIXEL, "partial_image_index": 0} | {
            name: last[name] for name in ("created_at", "size", "quality", "background", "output_format")
        }
        events = _events([partial, last], named=True)
        return Media(model=model, user=user, usage=usage, body=b"", events=events, directive=directive)
    body = _body({"created": 1_700_000_000, "data": [{"b64_json": PIXEL}] * made, "usage": told}, directive)
    return Media(model=model, user=user, usage=usage, body=body, directive=directive)


def _speech(fields: Fields, directive: Directive) -> Media:
    text, model = fields["input"], fields["model"]
    spoken = Usage(characters=len(text))
    if "mini-tts" in model:
        output = 20 if directive.output is None else directive.output
        spoken = Usage(_tokens(text), output, characters=len(text))
    if fields.get("stream_format") == "sse":
        told = {"input_tokens": spoken.input_tokens, "output_tokens": spoken.output_tokens}
        told["total_tokens"] = spoken.total_tokens
        events = _events(
            [{"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": told}]
        )
        return Media(model=model, usage=spoken, body=b"", events=events, directive=directive)
    media_type = SPEECH_TYPES.get(fields.get("response_format", "mp3"), "audio/mpeg")
    return Media(model=model, usage=spoken, body=SPEECH + text.encode(), media_type=media_type, directive=directive)


def _recording(fields: Fields, directive: Directive) -> Media:
    file, model = fields["file"], fields["model"]
    if not isinstance(file, File):
        raise ValueError("file is no file")
    audio_ms = recording_ms(file.data)
    text = passage(draw(len(file.data), 0)[0], 8)
    if "transcribe" in model:
        heard, said = -(-audio_ms * AUDIO_TOKENS_PER_S // 1000), _tokens(fields.get("prompt", ""))
        output = 8 if directive.output is None else directive.output
        usage = Usage(heard + said, output, input_audio_tokens=heard)
        told: Fields = {
            "type": "tokens",
            "input_tokens": heard + said,
            "input_token_details": {"audio_tokens": heard, "text_tokens": said},
            "output_tokens": output,
            "total_tokens": heard + said + output,
        }
    else:
        usage = Usage(audio_ms=audio_ms)
        told = {"type": "duration", "seconds": audio_ms / 1000}
    form = fields.get("response_format", "json")
    if fields.get("stream") == "true" and "transcribe" in model:
        words = [{"type": "transcript.text.delta", "delta": f"{word} "} for word in text.split()]
        events = _events([*words, {"type": "transcript.text.done", "text": text, "usage": told}])
        return Media(model=model, usage=usage, body=b"", events=events, directive=directive)
    if form in ("text", "srt", "vtt"):
        plain = {"text": f"{text}\n", "srt": f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n", "vtt": "WEBVTT\n"}[form]
        return Media(
            model=model, usage=usage, body=plain.encode(), media_type="text/plain; charset=utf-8", directive=directive
        )
    answer: Fields = {"text": text, "usage": told}
    if form == "verbose_json":
        answer |= {"task": "transcribe", "language": "english", "duration": audio_ms / 1000, "segments": []}
    return Media(model=model, usage=usage, body=_body(answer, directive), directive=directive)


def _counting(fields: Fields, directive: Directive) -> Media:
    tokens = _tokens(str(fields["messages"])) if directive.input is None else directive.input
    return Media(model=fields["model"], usage=Usage(), body=_encode({"input_tokens": tokens}), directive=directive)


def recording_ms(data: bytes) -> int:
    """How long a recording lasts, rounded up to milliseconds."""
    try:
        with wave.open(BytesIO(data)) as read:
            frames: int = read.getnframes()
            return -(-frames * 1000 // int(read.getframerate()))
    except (wave.Error, EOFError):
        return -(-len(data) // BYTES_PER_MS)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _body(answer: Fields, directive: Directive) -> bytes:
    if directive.fault is Fault.NO_USAGE:
        answer = {name: value for name, value in answer.items() if name not in ("usage", "meta", "duration")}
    return _encode(answer)


def _events(events: list[Fields], *, named: bool = False) -> Events:
    """All but the last are content."""
    lines = [
        (b"event: " + str(event["type"]).encode() + b"\n" if named else b"") + b"data: " + _encode(event) + b"\n\n"
        for event in events
    ]
    return Events(b"", lambda start, stop: b"".join(lines[start:stop]), len(lines) - 1, lines[-1])


MEDIA_PATHS: Final[Mapping[str, Callable[[Fields, Directive], Media]]] = {
    "/v1/moderations": _moderation,
    "/v1/rerank": _rerank,
    "/v1/images/generations": _image,
    "/v1/images/edits": _image,
    "/v1/images/variations": _image,
    "/v1/audio/speech": _speech,
    "/v1/audio/transcriptions": _recording,
    "/v1/audio/translations": _recording,
    "/v1/messages/count_tokens": _counting,
}
FORMS: Final = (
    *("/v1/images/edits", "/v1/images/variations"),
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
)
