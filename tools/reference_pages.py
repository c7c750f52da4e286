"""The reference pages that are read off the running program: commands, errors, headers, keys of Redis.

`pages` gives each page with the text that it should have; tools/write_reference.py writes them and a test compares.
What is not in the program, the meaning of a header or of an error, stands here, once; a name without one fails.
"""

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import typer.main

from tollkeeper.admin.errors import ERRORS
from tollkeeper.cli import app
from tollkeeper.domain.errors import Fault
from tollkeeper.gateway.dialects.fault import STATUS
from tollkeeper.governance import logins, redis_keys, redis_store

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = ROOT / "src" / "tollkeeper"
FOLDER: Final = ROOT / "docs" / "reference"
API: Final = FOLDER / "api.md"
HEAD: Final = "<!-- Written by tools/write_reference.py (`make docs`) from {}; do not edit. -->\n"

FAULTS: Final[dict[Fault, str]] = {
    Fault.MALFORMED: "The body is no JSON object.",
    Fault.INVALID: "A field is missing or of the wrong type; `param` names it.",
    Fault.TOO_LARGE: "The body is longer than `server.body_bytes_max`, a form than `server.upload_bytes_max`.",
    Fault.NO_KEY: "Neither `Authorization: Bearer` nor `x-api-key` was sent.",
    Fault.BAD_KEY: "The key is not known here.",
    Fault.EXPIRED_KEY: "The key has expired.",
    Fault.REVOKED_KEY: "The key was revoked.",
    Fault.MODEL_FORBIDDEN: "The key, its team or its organisation may not use this model.",
    Fault.UNKNOWN_MODEL: "No provider serves a model of this name.",
    Fault.UNKNOWN_ROUTE: "There is nothing at this path.",
    Fault.UNKNOWN_OBJECT: "No such stored object of this organisation's, or one that nobody can tell whose it is.",
    Fault.ELSEWHERE: "What the request refers to is kept at another provider than the one that serves the model.",
    Fault.WRONG_METHOD: "The path exists, for another method.",
    Fault.WRONG_DIALECT: "The model's provider speaks the other dialect.",
    Fault.UNPRICED: "The key has a hard budget and the model no known price.",
    Fault.UNBOUNDED: "The key has a hard budget and the input's cost has no upper bound.",
    Fault.COST_CAP: "The request may cost more than the cap for one request.",
    Fault.RATE_LIMIT: "A limit of requests or tokens; the message names it, `retry-after` is the true wait.",
    Fault.CONCURRENCY: "Too many requests in flight; a slot may come free at any time.",
    Fault.BUDGET: "A budget; the message says which, and when its period ends.",
    Fault.NEVER_FITS: "Larger than a limit or budget itself: waiting cannot help.",
    Fault.OVERLOADED: "This process has no room for the request now.",
    Fault.STORE_AWAY: "Redis is away, or recovers, and the configuration says to refuse meanwhile.",
    Fault.DEPLOYMENTS_FULL: "All deployments of the model are at their own limits.",
    Fault.UPSTREAM_DOWN: "The provider could not be reached.",
    Fault.UPSTREAM_TIMEOUT: "The provider did not answer in time.",
    Fault.UPSTREAM_BROKEN: "The provider's answer could not be read.",
    Fault.UPSTREAM_REFUSED_US: "The provider refused the gateway's own key.",
    Fault.INTERNAL: "A defect; the log has it under the request's id.",
}

ANSWERED: Final[dict[str, str]] = {
    "x-request-id": "The gateway's id of the request; log record, log lines and upstream request carry it.",
    "request-id": "The same, where Anthropic's SDK looks for it.",
    "x-ratelimit-limit-requests": "The tightest limit of requests, of one minute if there is one.",
    "x-ratelimit-remaining-requests": "What is left of it.",
    "x-ratelimit-reset-requests": "When all of it is free again (`1m1s`).",
    "x-ratelimit-limit-tokens": "The same, of tokens.",
    "x-ratelimit-remaining-tokens": "What is left of it.",
    "x-ratelimit-reset-tokens": "When all of it is free again.",
    "anthropic-ratelimit-requests-limit": "The same in the Anthropic dialect.",
    "anthropic-ratelimit-requests-remaining": "",
    "anthropic-ratelimit-requests-reset": "A time (RFC 3339).",
    "anthropic-ratelimit-tokens-limit": "",
    "anthropic-ratelimit-tokens-remaining": "",
    "anthropic-ratelimit-tokens-reset": "A time (RFC 3339).",
    "retry-after": "Of a refusal: seconds after which this request passes if nothing else arrives or settles.",
    "retry-after-ms": "The same in milliseconds.",
    "x-should-retry": "`false` where waiting cannot help, or not within a minute.",
    "x-tollkeeper-cost-usd": "What the request was charged. Not on streams: their head leaves before.",
    "x-tollkeeper-budget-remaining-usd": "The least that is left of any budget above the request, holds taken off.",
    "x-tollkeeper-max-tokens": "The limit of output tokens that was put in, because the request named none.",
    "x-tollkeeper-shadow": "Shadow limits that would have refused: `scope/kind`, separated by commas.",
    "x-tollkeeper-degraded": "What was decided without Redis: `limits`, `budgets`.",
    "x-tollkeeper-attempts": "How many attempts it took, if more than one.",
    "x-tollkeeper-model": "The model that answered, if it took more than one attempt.",
    "x-content-type-options": "`nosniff`, where an answer is not made here, such as audio.",
    "x-upstream-request-id": "The provider's own id.",
}
READ: Final[dict[str, str]] = {
    "x-tollkeeper-provider": "Where a file is to be kept: a configured provider; default: the first of the dialect.",
    "authorization": "`Bearer tk_…`: the key.",
    "x-api-key": "The key, as Anthropic's SDK sends it.",
    "x-request-id": "The client's own id; it is recorded, the gateway's is another one.",
    "x-tollkeeper-user": "The end user, for limits per user and the record.",
    "x-tollkeeper-metadata": "A JSON object for the record.",
    "x-tollkeeper-tags": "`a,b`, for the record.",
    "x-tollkeeper-log-bodies": "`off` keeps the bodies of this request out of the record.",
}
LIBRARY_KEYS: Final = (
    ("ratelimit:{<id>}:<window µs>", "`SlidingWindowLimiter` of the library; `prefix=` names another first part."),
    ("tokenbucket:{<id>}:…", "`TokenBucketLimiter` of the library."),
)


def cli_page() -> str:
    """The text of docs/reference/cli.md."""
    lines = [
        HEAD.format("src/tollkeeper/cli/"),
        "# Commands",
        "",
        "Exit codes: 0 done, 1 refused or failed (one line on standard error), 2 used wrongly. Data goes to standard",
        "output, everything else to standard error. `--help` of each command says the same as this page.",
    ]
    for words, command in _commands(typer.main.get_command(app), ("tollkeeper",)):
        context = command.context_class(command, info_name=" ".join(words))
        told = [record for p in command.params if (record := p.get_help_record(context)) and p.name != "help"]
        usage = " ".join((*words, *command.collect_usage_pieces(context)))
        lines += ["", f"## {' '.join(words[1:])}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["```text", usage.replace("{", "").replace("}", ""), "```"]
        if told:
            rows = (f"| `{name}` | {text} |" for name, text in (map(_in_table, record) for record in told))
            lines += ["", "| | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _in_table(text: str) -> str:
    """Text of a cell, in or outside of backticks."""
    return text.replace("|", "\\|")


def _commands(command: Any, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words, in the order of `--help`."""
    if not hasattr(command, "list_commands"):
        return [(words, command)]
    names = command.list_commands(None)
    return [found for name in names for found in _commands(command.get_command(None, name), (*words, name))]


def _prose(text: str) -> str:
    """Text of a cell in which nothing is markup."""
    return re.sub(r"<[^>`]*>(?:[:-]<[^>`]*>)*", lambda found: f"`{found[0]}`", _in_table(text))


def errors_page() -> str:
    """The text of docs/reference/errors.md."""
    lines = [
        HEAD.format("src/tollkeeper/gateway/dialects/fault.py"),
        "# Errors",
        "",
        "What the data plane answers when it refuses or fails, in the caller's dialect: `error.code` and",
        "`error.message` (OpenAI), or `error.type` and `error.message` (Anthropic). In the middle of a stream it is",
        "an event with the same body, which SDKs raise.",
        "",
        "| status | code | meaning |",
        "|---|---|---|",
    ]
    for fault in sorted(Fault, key=lambda fault: STATUS[fault]):
        lines.append(f"| {STATUS[fault]} | `{fault.value}` | {FAULTS[fault]} |")
    return "\n".join(lines) + "\n"


def headers_page() -> str:
    """The text of docs/reference/headers.md."""
    lines = [
        HEAD.format("tools/reference_pages.py"),
        "# Headers",
        "",
        "Of a request's other headers only those that the provider's API knows are sent on to it.",
        "",
        "| of a request | meaning |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in READ.items()),
        "",
        "| of an answer | meaning |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in ANSWERED.items()),
    ]
    return "\n".join(lines) + "\n"


def api_page(described: dict[str, Any]) -> str:
    """The text of docs/reference/api.md, from the OpenAPI document of a gateway."""
    groups: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            roles = ", ".join(operation.get("x-roles", ()))
            asked = ", ".join(
                f"`{each['name']}`" for each in operation.get("parameters", ()) if each["in"] == "query"
            )
            row = f"| `{method.upper()} {path}` | {_in_table(operation['summary'])} | {asked} | {roles} |"
            groups.setdefault(operation["tags"][0], []).append(row)
    lines = [
        HEAD.format("the OpenAPI document of a gateway"),
        "# HTTP API",
        "",
        "A running gateway has all of this with parameters, bodies and answers at `/docs`, and as OpenAPI 3.1 at",
        "`/openapi.json`. Operators' requests carry an admin token, `Authorization: Bearer …`; the last column says",
        "which roles may make them. How the data plane bounds and charges requests: [Endpoints](../endpoints.md).",
    ]
    for tag, rows in groups.items():
        lines += ["", f"## {tag}", "", "| | | query | roles |", "|---|---|---|---|", *rows]
    lines += ["", "## Errors of the admin API", "", "`error.code`, as [Administration](../admin.md) tells it."]
    lines += ["", "| code | status | type | |", "|---|---|---|---|"]
    lines += [f"| `{code}` | {kind.status} | `{kind.type}` | {kind.text} |" for code, kind in ERRORS.items()]
    return "\n".join(lines) + "\n"


def redis_patterns() -> dict[str, str]:
    """Pattern of a key → what it holds, from the docstrings of the functions that make keys and the header of
    logqueue.lua. `{…}` is the hash tag, `<…>` a part, `[…]` may be missing."""
    found: dict[str, str] = {}
    for name, function in inspect.getmembers(redis_keys, inspect.isfunction):
        if name.endswith("_key") and function.__module__ == redis_keys.__name__:
            told = re.fullmatch(r"`([^`]+)`: (.+)", " ".join(inspect.cleandoc(function.__doc__ or "").split()))
            assert told, f"{name}: begin its docstring with the pattern of the key"
            found[told[1]] = told[2][0].upper() + told[2][1:]
    found[redis_store.ANNOUNCED_KEY] = _docstring_of(redis_store, "ANNOUNCED_KEY")
    found[redis_store.TURN_KEY] = _docstring_of(redis_store, "TURN_KEY")
    found[f"{logins.PREFIX}:{{<slot>}}:<window µs>"] = _docstring_of(logins, "PREFIX")
    queue = (SOURCE / "governance" / "scripts" / "logqueue.lua").read_text()
    for part, text in re.findall(r"^--   <p>(\S+) +(.+)$", queue, re.MULTILINE):
        found[f"logs:{{<shard>}}:{part}"] = text[0].upper() + text[1:]
    return dict(sorted(found.items()))


def _docstring_of(module: ModuleType, constant: str) -> str:
    """The docstring below a constant of a module."""
    body = ast.parse(inspect.getsource(module)).body
    for node, below in pairwise(body):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == constant:
            assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            return " ".join(str(below.value.value).split())
    raise AssertionError(f"{constant} has no docstring")


def redis_keys_page() -> str:
    """The text of docs/reference/redis-keys.md."""
    lines = [
        HEAD.format("src/tollkeeper/governance/redis_keys.py, redis_store.py and scripts/logqueue.lua"),
        "# Keys in Redis",
        "",
        "`{root}` is the id of an organisation as a hash tag: all its keys are in one slot of a cluster.",
        "`[…]` may be missing; a scope is the id of a key or team, none is the organisation itself. Nothing here is",
        "meant to be written by hand: `tollkeeper limits reset`, `tollkeeper usage corrections`.",
        "",
        "| key | content, time to live |",
        "|---|---|",
        *(f"| `{pattern}` | {_prose(text)} |" for pattern, text in redis_patterns().items()),
        "",
        "| of the library | |",
        "|---|---|",
        *(f"| `{pattern}` | {text} |" for pattern, text in LIBRARY_KEYS),
    ]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Every page with the text it should have."""
    return {
        FOLDER / "cli.md": cli_page(),
        FOLDER / "errors.md": errors_page(),
        FOLDER / "headers.md": headers_page(),
        FOLDER / "redis-keys.md": redis_keys_page(),
    }
