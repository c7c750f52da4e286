"""Directives: how a test steers one answer from inside its request. Knows only their syntax.

A directive is `[[sim name=value …]]` on one line, anywhere in the request's body. In a conversation the last one
counts. A name or value that is not understood is refused with a 400, so that no test passes by a typing error.

| name | meaning |
|---|---|
| `input` | input tokens, cached reads and cache writes included, in both dialects |
| `output` | output tokens over all choices, reasoning included; still cut at the request's maximum |
| `cached`, `cache_write` | parts of `input`; cut so that they fit into it |
| `reasoning` | the part of `output` that is not shown |
| `delay_ms`, `chunk_delay_ms` | time before the first byte; time between two chunks of a stream |
| `status`, `retry_after` | answer with this error status (400 to 599) and this `retry-after` header (seconds) |
| `times` | of all requests with this body, only the first so many get the directive's error, fault or delay |
| `model` | only requests for this model get them |
| `tool` | answer with a call of this tool, if the request offers tools |
| `fault` | break the answer, see below |
| `after` | break a stream after this many content chunks |

| fault | without `after` | in a stream with `after` |
|---|---|---|
| `reset` | TCP reset instead of an answer | TCP reset after the chunks |
| `garbage` | bytes that are not HTTP, then close | bytes that break the chunked framing, then close |
| `stall` | never answer | say nothing more after the chunks |
| `truncate` | half a body, then close (a stream: after one chunk) | close after the chunks |
| `bad_json` | status 200, invalid JSON (a stream: after one chunk) | one invalid data line, then go on |
| `no_usage` | an answer without usage | the same |
| `close` | a whole answer, then close without having announced it | the same |
| `huge_header` | a whole answer with a header of 256 KiB | the same |
"""

import re
from enum import StrEnum
from typing import Annotated, Final

import msgspec

OUTPUT_TOKENS_MAX: Final = 1_000_000
INPUT_TOKENS_MAX: Final = 1_000_000_000
DELAY_MS_MAX: Final = 600_000

_MARK: Final = b"[[sim"
_PATTERN: Final = re.compile(rb"\[\[sim((?: +[a-z_]+=[A-Za-z0-9_.-]+)*) *\]\]")

_Input = Annotated[int, msgspec.Meta(ge=0, le=INPUT_TOKENS_MAX)]
_Output = Annotated[int, msgspec.Meta(ge=0, le=OUTPUT_TOKENS_MAX)]
_Delay = Annotated[float, msgspec.Meta(ge=0, le=DELAY_MS_MAX)]


class Fault(StrEnum):
    """How an answer is broken; the module's table says what each one does."""

    RESET = "reset"
    GARBAGE = "garbage"
    BAD_JSON = "bad_json"
    STALL = "stall"
    TRUNCATE = "truncate"
    NO_USAGE = "no_usage"
    CLOSE = "close"
    HUGE_HEADER = "huge_header"


class Directive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one request asks of the simulator; None leaves it to the simulator."""

    input: _Input | None = None
    output: _Output | None = None
    cached: _Input = 0
    cache_write: _Input = 0
    reasoning: _Output = 0
    delay_ms: _Delay | None = None
    chunk_delay_ms: _Delay | None = None
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    fault: Fault | None = None
    after: _Output | None = None
    tool: str | None = None
    times: Annotated[int, msgspec.Meta(ge=0)] | None = None
    model: str | None = None

    def spent(self) -> "Directive":
        """The same without its error, fault and delay."""
        return msgspec.structs.replace(self, status=None, retry_after=None, fault=None, after=None, delay_ms=None)


class BadDirective(msgspec.Struct, frozen=True):
    """A directive that was not understood, and why."""

    why: str


NO_DIRECTIVE: Final = Directive()


def parse_directive(body: bytes) -> Directive | BadDirective:
    """The last directive of a request's raw body; `NO_DIRECTIVE` if there is none."""
    at = body.rfind(_MARK)
    if at < 0:
        return NO_DIRECTIVE
    match = _PATTERN.match(body, at)
    if match is None:
        return BadDirective("write [[sim name=value name=value]], on one line and with single spaces")
    pairs = dict(pair.split("=", 1) for pair in match[1].decode("ascii").split())
    try:
        return msgspec.convert(pairs, Directive, strict=False)
    except msgspec.ValidationError as error:
        return BadDirective(str(error))
