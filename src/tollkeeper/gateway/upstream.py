"""What the gateway wants of an HTTP client, and the words for what can go wrong with one.

Two implementations stand behind `Upstream`: `Http1Upstream` (the default, ours) and `AiohttpUpstream`. Every failure
leaves them as an UpstreamError that says whether a byte of the request can have left this machine, because that
decides between void and charge. Neither knows dialects, money or the client.
"""

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from tollkeeper.domain.errors import Fault, UpstreamError

RESPONSE_BYTES_MAX: Final = 64 * 2**20
"""Largest body read whole: a batch of 2,048 embeddings with 3,072 dimensions is about 60 MB of JSON at most."""
HEADERS_MAX: Final = 128
KEEPALIVE_S: Final = 4.0
"""Idle connections are dropped before common servers drop them (uvicorn, Node: 5 s), because a request that meets
a connection being closed may or may not have been taken."""


Body = bytes | Sequence[bytes | memoryview]


class FixedHeaders(Mapping[str, str]):
    """Headers that many requests carry alike, made once and kept: what was found out is known of the object."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = dict(fields)

    __hash__, __eq__ = object.__hash__, object.__eq__

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


NO_HEADERS: Final = FixedHeaders({})


class RequestHeaders(Mapping[str, str]):
    """Those of one request: `fixed` ones, and its `own`, none of which is among the fixed."""

    __slots__ = ("fixed", "own")

    def __init__(self, fixed: FixedHeaders, own: dict[str, str]) -> None:
        self.fixed, self.own = fixed, own

    def __getitem__(self, name: str) -> str:
        return self.own[name] if name in self.own else self.fixed[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.fixed
        yield from self.own

    def __len__(self) -> int:
        return len(self.fixed) + len(self.own)


class UpstreamResponse(Protocol):
    """A response whose headers have arrived. It must be closed; `close` may be called at any time and twice."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By case-insensitive name."""
        ...

    async def read(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes:
        """The whole body. Raises UpstreamError if it is cut, silent for too long, or larger than `bytes_max`."""
        ...

    async def next_chunk(self) -> bytes:
        """What has arrived since, at least one byte; empty at the end. Raises UpstreamError if the body is cut or
        silent for too long."""
        ...

    def whole(self, bytes_max: int = RESPONSE_BYTES_MAX) -> bytes | None:
        """As `read`, if all of the body is here and nothing of it was taken; else None, and nothing is taken."""
        ...

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        ...


class Upstream(Protocol):
    """Sends requests to the configured providers."""

    def send(
        self, provider: str, path: str, headers: Mapping[str, str], body: Body, method: str = "POST"
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        """Ask at the provider's base URL + `path`. Raises UpstreamError. Cancelling it closes the connection.

        A body in pieces is written piece by piece, without being put together. `headers` are all headers but Host and
        Content-Length, their names in lower case.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def unreachable(reason: str) -> UpstreamError:
    """No connection came about. `reason` tells no host and no address: these are none of the client's business."""
    return UpstreamError(Fault.UPSTREAM_DOWN, f"The provider cannot be reached: {reason}.", sent=False)


def proxy_refused(status: int) -> UpstreamError:
    """The provider's proxy does not connect us on."""
    return unreachable("its proxy wants other credentials" if status == 407 else f"its proxy answered {status}")


def no_connection() -> UpstreamError:
    """None in time, new or from the pool."""
    message = "No connection to the provider in time (it is away, or all connections to it are busy)."
    return UpstreamError(Fault.UPSTREAM_TIMEOUT, message, sent=False)


def unusable_url() -> UpstreamError:
    """The settings' address is none."""
    return UpstreamError(Fault.UPSTREAM_DOWN, "The provider's base_url cannot be used.", sent=False)


def no_answer() -> UpstreamError:
    """No head of an answer in time."""
    return UpstreamError(Fault.UPSTREAM_TIMEOUT, "The provider did not answer in time.", sent=True)


def not_http() -> UpstreamError:
    """What came instead of a head breaks the protocol or its bounds."""
    return UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer is not valid HTTP.", sent=True)


def hung_up() -> UpstreamError:
    """The connection ended before the head of an answer."""
    return UpstreamError(Fault.UPSTREAM_DOWN, "The provider closed the connection without an answer.", sent=True)


def silent() -> UpstreamError:
    """A pause in the middle of a body, or no end of it in time."""
    return UpstreamError(Fault.UPSTREAM_TIMEOUT, "The provider stopped in the middle of its answer.", sent=True)


def cut() -> UpstreamError:
    """The body is not whole."""
    return UpstreamError(Fault.UPSTREAM_BROKEN, "The provider's answer was cut short.", sent=True)


def too_large(bytes_max: int) -> UpstreamError:
    """The body is larger than its reader takes."""
    return UpstreamError(Fault.UPSTREAM_BROKEN, f"The provider's answer is larger than {bytes_max} bytes.", sent=True)
