"""The API's OpenAPI document, data plane and probes included, and the page at `/docs` that is made from it.

The page is one static document: no script, and nothing loaded from anywhere.
"""

import re
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tollkeeper.admin.errors import ERRORS
from tollkeeper.domain.idempotency import KEY_CHARACTERS_MAX

Document = dict[str, Any]

DESCRIPTION: Final = (
    "An LLM gateway with exact rate limits, hard budgets and proven logs. Applications use /v1 with a Tollkeeper "
    "key; operators use /admin/v1 with an admin token."
)
DATA_PLANE: Final = (
    ("post", "/v1/chat/completions", "Chat, in the OpenAI dialect", "Streams when `stream` is true."),
    ("post", "/v1/completions", "Text completion, in the OpenAI dialect", "Streams when `stream` is true."),
    ("post", "/v1/embeddings", "Embeddings, in the OpenAI dialect", "Charged by input tokens."),
    ("post", "/v1/responses", "Responses, in the OpenAI dialect", "Streams when `stream` is true."),
    ("post", "/v1/messages", "Messages, in the Anthropic dialect", "The key may stand in `x-api-key`."),
    ("post", "/v1/messages/count_tokens", "Count tokens, in the Anthropic dialect", "Costs nothing."),
    ("post", "/v1/moderations", "Moderation, in the OpenAI dialect", ""),
    ("post", "/v1/rerank", "Reranking, as Cohere and others have it", ""),
    ("post", "/v1/images/generations", "Make images, in the OpenAI dialect", "Streams when `stream` is true."),
    ("post", "/v1/images/edits", "Change images, in the OpenAI dialect", "A form."),
    ("post", "/v1/images/variations", "Variations of an image, in the OpenAI dialect", "A form."),
    ("post", "/v1/audio/speech", "Speak a text, in the OpenAI dialect", ""),
    ("post", "/v1/audio/transcriptions", "Write down speech, in the OpenAI dialect", "A form."),
    ("post", "/v1/audio/translations", "Write down speech in English, in the OpenAI dialect", "A form."),
    ("get", "/v1/responses/{id}", "A stored answer", "One of this key's organisation."),
    ("delete", "/v1/responses/{id}", "Delete a stored answer", "One of this key's organisation."),
    ("post", "/v1/responses/{id}/cancel", "Cancel an answer in the background", "One of this key's organisation."),
    ("get", "/v1/responses/{id}/input_items", "What a stored answer was asked", "One of this key's organisation."),
    ("post", "/v1/files", "Store a file", "A form."),
    ("get", "/v1/files", "The files of this key's organisation", ""),
    ("get", "/v1/files/{id}", "About a file", "One of this key's organisation."),
    ("delete", "/v1/files/{id}", "Delete a file", "One of this key's organisation."),
    ("get", "/v1/files/{id}/content", "A file's content", "One of this key's organisation."),
    ("post", "/v1/batches", "Run the requests of a file", "Charged with their bound, corrected when it has ended."),
    ("get", "/v1/batches", "The batches of this key's organisation", ""),
    ("get", "/v1/batches/{id}", "About a batch", "One of this key's organisation."),
    ("post", "/v1/batches/{id}/cancel", "Cancel a batch", "One of this key's organisation."),
    ("get", "/v1/models", "The models that this key may use", "In the caller's dialect."),
    ("get", "/v1/models/{name}", "About a model", "In the caller's dialect."),
)
PROBES: Final = (
    ("get", "/healthz", "Alive", "200 while the process serves."),
    ("get", "/readyz", "Ready", "Each dependency with its state; 503 when one is not ready."),
    ("get", "/metrics", "Metrics", "Prometheus' text format."),
)
STYLE: Final = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #8886}
details{margin:.4rem 0;border:1px solid #8884;border-radius:6px;padding:.4rem .8rem}
summary{cursor:pointer}code,.m{font:13px ui-monospace,monospace}
.m{display:inline-block;width:4.2rem;font-weight:700}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
td,th{text-align:left;padding:.2rem .6rem .2rem 0;vertical-align:top;border-bottom:1px solid #8883}
"""


def document(api: FastAPI) -> Document:
    """The whole document."""
    described = get_openapi(title=api.title, version=api.version, description=DESCRIPTION, routes=api.routes)
    schemes = described.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["Bearer"] = {"type": "http", "scheme": "bearer", "description": "An admin token."}
    schemes["Key"] = {"type": "http", "scheme": "bearer", "description": "A Tollkeeper key."}
    for method, path, summary, text in DATA_PLANE:
        names = re.findall(r"{(\w+)}", path)
        described["paths"].setdefault(path, {})[method] = _plain("Data plane", summary, text) | {
            "security": [{"Key": []}],
            "parameters": [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names],
        }
    for method, path, summary, text in PROBES:
        described["paths"].setdefault(path, {})[method] = _plain("Probes", summary, text)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            if path.startswith("/admin/") and method != "get":
                _describe_idempotency(operation)
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"].get("schemas", {}).pop(name, None)
    return described


def _describe_idempotency(operation: Document) -> None:
    operation.setdefault("parameters", []).append(
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Repeated within 24 hours the request is not made again; it gets the same answer.",
            "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARACTERS_MAX, "pattern": "^[ -~]*$"},
        }
    )
    conflict = {"$ref": "#/components/schemas/Error"}
    operation["responses"].setdefault(
        "409",
        {
            "description": "A request with this Idempotency-Key is being served, or its answer was lost.",
            "content": {"application/json": {"schema": conflict}},
        },
    )


def _plain(tag: str, summary: str, text: str) -> Document:
    return {"tags": [tag], "summary": summary, "description": text, "responses": {"200": {"description": "OK"}}}


def page(described: Document) -> str:
    """The document as one HTML page."""
    groups: dict[str, list[str]] = {"Data plane": []}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(described, path, method, operation))
    info = described["info"]
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(items)}" for tag, items in groups.items())
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{escape(info['description'])}</p>"
        '<p>For machines: <a href="/openapi.json">openapi.json</a></p>'
        f"{sections}{_errors()}</body></html>"
    )


def _errors() -> str:
    """Where `doc_url` leads."""
    rows = "".join(
        f'<tr id="error-{escape(code)}"><td><code>{escape(code)}</code></td><td>{kind.status}</td>'
        f"<td><code>{escape(kind.type)}</code></td><td>{escape(kind.text)}</td></tr>"
        for code, kind in ERRORS.items()
    )
    head = "<tr><th>code</th><th>status</th><th>type</th><th></th></tr>"
    return f"<h2>Errors of the admin API</h2><table>{head}{rows}</table>"


def _operation(described: Document, path: str, method: str, operation: Document) -> str:
    parts = [f"<p>{escape(operation['description'])}</p>"] if operation.get("description") else []
    if operation.get("x-roles"):
        parts.append(f"<p>For {escape(', '.join(operation['x-roles']))}.</p>")
    if operation.get("parameters"):
        rows = [(p["name"], p["in"], p.get("description", "")) for p in operation["parameters"]]
        parts.append(_table(("parameter", "in", ""), rows))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        parts.append("<p>Request</p>" + _schema(described, body))
    for status, response in operation["responses"].items():
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        fields = _schema(described, schema) if schema and status.startswith("2") else ""
        parts.append(f"<p><code>{escape(status)}</code> {escape(response.get('description', ''))}</p>{fields}")
    return (
        f'<details><summary><span class="m">{escape(method.upper())}</span><code>{escape(path)}</code> – '
        f"{escape(operation.get('summary', ''))}</summary>{''.join(parts)}</details>"
    )


def _schema(described: Document, schema: Document) -> str:
    fields = _resolved(described, schema).get("properties", {})
    rows = []
    for name, field in fields.items():
        rows.append((name, _type_text(described, field), field.get("description", "")))
        inner = _resolved(described, _inner(field)).get("properties", {})
        rows += [(f"{name}.{n}", _type_text(described, f), f.get("description", "")) for n, f in inner.items()]
    return _table(("field", "type", ""), rows) if rows else ""


def _inner(field: Document) -> Document:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    found: Document = options[0].get("items", options[0]) if options else {}
    return found


def _resolved(described: Document, schema: Document) -> Document:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Document = described["components"]["schemas"][name] if name else schema
    return found


def _type_text(described: Document, field: Document) -> str:
    if "anyOf" in field:
        return " or ".join(_type_text(described, option) for option in field["anyOf"])
    if "$ref" in field:
        return "object"
    if field.get("type") == "array":
        return f"list of {_type_text(described, field['items'])}"
    return str(field.get("type", "any"))


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(a)}</code></td><td>{escape(b)}</td><td>{escape(c)}</td></tr>" for a, b, c in rows
    )
    return f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table>"
