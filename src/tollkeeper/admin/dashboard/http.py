"""What pages and signing in share of HTTP: forms, answers with the headers that every one has, and where a request
comes from. Knows nothing of sessions or pages.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tollkeeper.admin.asgi import DASHBOARD
from tollkeeper.domain.errors import InvalidInput

FORM_BYTES_MAX: Final = 2**17
FIELDS_MAX: Final = 200
POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Form:
    """The fields of a form, or of a query: text, trimmed."""

    def __init__(self, text: str) -> None:
        try:
            self.fields = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX)
        except ValueError:
            raise InvalidInput(f"at most {FIELDS_MAX} fields") from None

    def text(self, name: str) -> str:
        """The field, or empty."""
        return next((value.strip() for key, value in self.fields if key == name), "")

    def given(self, name: str) -> str | None:
        """The field, or None where it is empty."""
        return self.text(name) or None

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.fields)


def html(text: str, status: int) -> Response:
    """A page that nobody keeps."""
    return HTMLResponse(text, status, {**HEADERS, "cache-control": "no-store"})


def redirect(path: str) -> Response:
    """Another page, to be fetched; for the answer to a form."""
    return RedirectResponse(path, 303, {**HEADERS, "cache-control": "no-store"})


def see(path: str, query: Mapping[str, str] | None = None) -> Response:
    """As `redirect`, of a page below `/dashboard`."""
    asked = urlencode(query or {})
    return redirect(f"{DASHBOARD}{path}" + (f"?{asked}" if asked else ""))


def address_of(request: Request) -> str:
    """Where a request comes from, as the connection says."""
    return request.client.host if request.client is not None else "unknown"


def is_secure(request: Request) -> bool:
    """Whether the browser came by https: the cookie is then never sent otherwise. A client that lies about it only
    keeps its own cookie from being sent."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))


async def read_form(request: Request) -> Form:
    """The fields of a POST. Raises InvalidInput."""
    if request.method != "POST":
        return Form("")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise InvalidInput(f"a form may have {FORM_BYTES_MAX} bytes")
    try:
        return Form(body.decode())
    except UnicodeDecodeError:
        raise InvalidInput("a form is text in UTF-8") from None
