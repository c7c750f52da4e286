"""Azure OpenAI's addressing, from clients and to providers: the same formats, other paths, `api-key`, `api-version`.

A client's `api-version` is taken and means nothing here: what the provider gets is the configuration's.
"""

import re
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from tollkeeper.domain.errors import Fault, RequestError
from tollkeeper.gateway.dialects.base import Call

PREFIX: Final = "/openai/"
VERSION: Final = "api-version"
BY_DEPLOYMENT: Final = frozenset(
    (
        *("chat", "completions", "embeddings", "speech", "transcriptions", "translations", "images", "image_edits"),
        "image_variations",
    )
)
"""Endpoints that Azure has below each deployment; the others stand beside them."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEPLOYMENT: Final = re.compile(r"/openai/deployments/([^/]{1,256})(/.+)")


class Address(msgspec.Struct, frozen=True):
    """Where a client wanted to go, in OpenAI's words. `model`: the deployment that its path names."""

    path: str
    query: bytes
    model: str | None = None


def client_address(path: str, query: bytes) -> Address:
    """The meaning of a path below `PREFIX`."""
    named = _DEPLOYMENT.fullmatch(path)
    rest = path.removeprefix("/openai").removeprefix("/v1") if named is None else named[2]
    return Address("/v1" + rest, _without_version(query), None if named is None else named[1])


def _without_version(query: bytes) -> bytes:
    if VERSION.encode() not in query:
        return query
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([pair for pair in pairs if pair[0] != VERSION]).encode()


def provider_path(call: Call, path: str, *, deployment: str, version: str) -> str:
    """Where a call goes below the base URL of an Azure resource; `path` is that of OpenAI, without its version.

    Raises RequestError UNKNOWN_MODEL for a name that no deployment can have: it would be part of a path.
    """
    if call.endpoint.name in BY_DEPLOYMENT:
        if not _NAME.fullmatch(deployment):
            message = (
                f"The model '{call.model[:64]}' cannot be a deployment: these have letters, digits, '.', '_', '-'."
            )
            raise RequestError(Fault.UNKNOWN_MODEL, message, param="model")
        path = f"/deployments/{quote(deployment, safe='')}{path}"
    return f"{path}{'&' if '?' in path else '?'}{VERSION}={quote(version, safe='')}"
