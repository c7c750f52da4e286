"""Write docs/ENV_VARIABLES.md and docs/SETTINGS.md from settings.py, the schema of log records from record.py, and
docs/METRICS.md from a gateway that is started for it. docs/reference/ is written by reference_pages.py.

Types and defaults come from the running classes, the line of why from the docstring below each field. A test calls
`pages` and fails when a page on disk differs, so the reference cannot go stale.
"""

import ast
import asyncio
import inspect
import json
import socket
import sys
import tempfile
import textwrap
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from tools import reference_pages

from tollkeeper import settings
from tollkeeper.admin.openapi import document
from tollkeeper.app.gateway import Gateway
from tollkeeper.app.supervisor import Supervisor
from tollkeeper.domain.record import SCHEMA_VERSION, AttemptRecord, RequestRecord
from tollkeeper.logs import schema
from tollkeeper.logs.buffer import LogBuffer
from tollkeeper.observability.metrics import CHILDREN_MAX, Declaration

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
HEAD: Final = (
    "<!-- Written by tools/write_reference.py (`make docs`) from src/tollkeeper/settings.py; do not edit. -->\n"
)
SECTIONS: Final[tuple[tuple[str, type[settings.Group]], ...]] = (
    ("", settings.Settings),
    ("server", settings.ServerSettings),
    ("admin", settings.AdminSettings),
    ("store", settings.StoreSettings),
    ("outage", settings.OutageSettings),
    ("database", settings.DatabaseSettings),
    ("logs", settings.LogSettings),
    ("worker", settings.WorkerSettings),
    ("routing", settings.RoutingSettings),
    ("billing", settings.BillingSettings),
    ("alerts", settings.AlertSettings),
    ("tracing", settings.TracingSettings),
    ("providers.<name>", settings.ProviderSettings),
    ("models.<name>", settings.ModelSettings),
    ("[models.<name>.deployments]", settings.DeploymentSettings),
    ("[models.<name>.prices]", settings.PriceSettings),
    ("[models.<name>.prices.tiers]", settings.TierSettings),
    ("models.<name>.prices.service_tiers.<tier>", settings.ServedSettings),
    ("secrets", settings.SecretSettings),
)

TYPES: Final[dict[Any, str]] = {
    int: "whole number",
    str: "string",
    bool: "`true` or `false`",
    Path: "path",
    datetime: "date, or date and time",
}


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Field → the docstring below it, as one line; empty where there is none."""
    texts: dict[str, str] = {}
    for above in kind.__bases__:
        if issubclass(above, settings.Group) and above is not settings.Group:
            texts |= field_texts(above)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    name = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            texts[name] = ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            texts[name] = " ".join(str(node.value.value).split())
    return texts


def type_text(hint: Any, name: str) -> str:
    """A type as an operator writes its value."""
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return "list of strings"
    if get_origin(hint) is Union or (get_args(hint) and type(None) in get_args(hint)):
        return " or ".join(type_text(option, name) for option in get_args(hint) if option is not type(None))
    if hint is float and name.endswith("_s"):
        return "duration"
    return {
        int: "whole number",
        float: "number",
        str: "string",
        bool: "`true` or `false`",
        Path: "path",
        datetime: "date, or date and time",
    }[hint]


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """The default as it would be written in the file; `–` for none."""
    value = field.default
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and field.name.endswith("_s"):
        return f"`{value:g}s`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{value}`"


INHERITED: Final[dict[type[settings.Group], tuple[type[settings.Group], str]]] = {
    settings.PriceSettings: (settings.AmountSettings, "Beside these, every `…_usd` of [models.<name>]."),
    settings.TierSettings: (settings.RateSettings, "Beside these, every price of tokens of [models.<name>]."),
    settings.ServedSettings: (settings.RateSettings, "Beside these, every price of tokens of [models.<name>]."),
}
"""Sections whose prices are told elsewhere."""


def rows(prefix: str, kind: type[settings.Group]) -> list[tuple[str, str, str, str, str]]:
    """One row a setting: name, variable, type, default, text. Sections inside the section are left out."""
    texts, hints = field_texts(kind), get_type_hints(kind)
    variables = {path: variable for variable, path in settings.ENVIRONMENT.items()}
    found: list[tuple[str, str, str, str, str]] = []
    told = INHERITED[kind][0].__struct_fields__ if kind in INHERITED else ()
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if field.name in told:
            continue
        if any(isinstance(kind, type) and issubclass(kind, settings.Group) for kind in (hint, *get_args(hint))):
            continue
        path = (*filter(None, prefix.split(".")), field.name)
        variable = variables.get(path, "")
        found.append(
            (
                field.encode_name,
                f"`{variable}`" if variable else "",
                type_text(hint, field.name),
                default_text(field),
                texts[field.name],
            )
        )
    return found


def settings_page() -> str:
    """The text of docs/SETTINGS.md."""
    lines = [
        HEAD,
        "# Settings",
        "",
        "`tollkeeper.toml` in the working directory, or the file named with `--config`. The environment wins over",
        "the file. Unknown names are refused. A duration is `300ms`, `5s`, `2m`, `1h` or a plain number of seconds.",
        "`tollkeeper config show` prints what is in force; `tollkeeper.example.toml` is an example.",
    ]
    for prefix, kind in SECTIONS:
        lines += ["", f"## [{prefix}]" if prefix else "## Top level", "", inspect.cleandoc(kind.__doc__ or "")]
        if kind in INHERITED:
            lines += ["", INHERITED[kind][1]]
        if not rows(prefix, kind):
            continue
        lines += ["", "| setting | variable | type | default | meaning |", "|---|---|---|---|---|"]
        for name, *rest in rows(prefix, kind):
            lines.append(f"| `{name}` | " + " | ".join(rest) + " |")
    return "\n".join(lines) + "\n"


ELSEWHERE: Final[dict[str, str]] = {
    "REDIS_MAX_CONN_AGE": "Of the library's `RedisClient.from_env()`: a connection so old is replaced; 30m.",
    "REDIS_IDLE_TIMEOUT": "Of the same: an idle connection above `REDIS_MIN_IDLE_CONNS` is closed after it; 5m.",
    "HTTPS_PROXY": "The HTTP proxy through which providers are reached over `https`, unless `NO_PROXY` names them: "
    "[TLS](howto/tls.md#through-a-proxy).",
    "SSL_CERT_FILE": "The authorities that are trusted, instead of the system's.",
    "AWS_ACCESS_KEY_ID": "Credentials of an S3 log store, with `AWS_SECRET_ACCESS_KEY` and, if there is one, "
    "`AWS_SESSION_TOKEN`. Without: the role of the pod (`AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`), of the "
    "task (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `AWS_CONTAINER_CREDENTIALS_FULL_URI`), or of the instance "
    "(`AWS_METADATA_ENDPOINT` for another address than the usual).",
    "AWS_REGION": "Its region, or `AWS_DEFAULT_REGION`.",
    "AWS_ENDPOINT_URL_S3": "Another S3 server, or `AWS_ENDPOINT_URL`.",
    "AZURE_STORAGE_ACCOUNT_NAME": "The account of an `az://` log store; with `AZURE_STORAGE_ACCOUNT_KEY`, a service "
    "principal's variables or a managed identity.",
    "GOOGLE_APPLICATION_CREDENTIALS": "Path of the credentials of a `gs://` log store, or `GOOGLE_SERVICE_ACCOUNT`.",
    "LITELLM_DATABASE_URL": "LiteLLM's database, for `tollkeeper import litellm`.",
    "LISTEN_FDS": "Set by systemd, with `LISTEN_PID` and `LISTEN_FDNAMES`: the socket that it has opened.",
    "NOTIFY_SOCKET": "Set by systemd: where readiness and stopping are told.",
}
"""Variables that are no settings. Those of other programs keep the meaning that they have there."""


def variables_page() -> str:
    """The text of docs/ENV_VARIABLES.md."""
    lines = [
        HEAD,
        "# Environment variables",
        "",
        "They win over `tollkeeper.toml`. An empty variable counts as not set. The secrets can also be given as",
        "`…_FILE`, the path of a file that holds nothing else.",
        "",
        "| variable | setting | type | default | meaning |",
        "|---|---|---|---|---|",
    ]
    known = {".".join(filter(None, (prefix, row[0]))): row for prefix, kind in SECTIONS for row in rows(prefix, kind)}
    for variable, path in settings.ENVIRONMENT.items():
        _, _, kind_text, default, text = known[".".join(path)]
        names = f"`{variable}`" + (f", `{variable}_FILE`" if path[0] == "secrets" else "")
        lines.append(f"| {names} | `{'.'.join(path)}` | {kind_text} | {default} | {text} |")
    lines += [
        "",
        "When the configuration names no provider, these alone make one:",
        "",
        "| key | address | provider | default address |",
        "|---|---|---|---|",
    ]
    for variable, (name, base_url, dialect, base_variable) in settings.FROM_ENVIRONMENT_ONLY.items():
        lines.append(f"| `{variable}` | `{base_variable}` | `{name}` (dialect `{dialect}`) | `{base_url}` |")
    lines += ["", "Providers of the file name the variable of their key themselves (`api_key_env`)."]
    lines += ["", "Variables that are no settings:", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{variable}` | {text} |" for variable, text in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


def log_schema_page() -> str:
    """The text of docs/log-schema.md."""
    texts, words, columns = field_texts(RequestRecord), schema.type_words(), schema.columns()
    lines = [
        HEAD.replace("settings.py", "domain/record.py"),
        "# The log record",
        "",
        f"Version {SCHEMA_VERSION}, in every record as `schema_version`. Fields are only ever added to a version, so",
        "readers should pass over what they do not know; a field never changes its meaning or type within one. Every",
        "field is always written. Times are Unix microseconds, durations are microseconds, money is nano-dollars",
        "(1e-9 USD). In a record with `replaced`, any field may be null.",
        "",
        "[log-record.schema.json](log-record.schema.json) says the same to machines (JSON Schema 2020-12). The",
        "columns are those of Parquet objects and of the table `logs` of `tollkeeper logs query`, which adds the",
        "folders `dt` (DATE) and `hour` (BIGINT) of the object that a record is in. Columns are nullable.",
        "",
        "| field | JSON | column | meaning |",
        "|---|---|---|---|",
    ]
    for name, text in texts.items():
        lines.append(f"| `{name}` | {words[name]} | `{columns[name]}` | {text} |")
    lines += ["", "Each object of `attempt_list`:", "", "| field | JSON | meaning |", "|---|---|---|"]
    words = schema.type_words(AttemptRecord)
    for name, text in field_texts(AttemptRecord).items():
        lines.append(f"| `{name}` | {words[name]} | {text} |")
    return "\n".join(lines) + "\n"


def log_schema_json() -> str:
    """The text of docs/log-record.schema.json."""
    return json.dumps(schema.json_schema(field_texts(RequestRecord), field_texts(AttemptRecord)), indent=2) + "\n"


async def _started(folder: Path) -> tuple[list[Declaration], dict[str, Any]]:
    secrets = settings.SecretSettings(
        admin_token="a" * 32, digest_key="d" * 32, webhook_url="http://127.0.0.1:9/", webhook_secret="w" * 32
    )
    tracing = settings.TracingSettings(endpoint="http://127.0.0.1:9")
    gateway = Gateway(settings.Settings(data_dir=folder, secrets=secrets, tracing=tracing))
    await gateway.start()
    try:
        return gateway.metrics.declared(), document(gateway._admin.load().api)
    finally:
        await gateway.stop()


@cache
def started() -> tuple[list[Declaration], dict[str, Any]]:
    """The metrics that a started gateway declares, and its OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_started(Path(folder)))


def declared() -> tuple[Declaration, ...]:
    """Every metric of a gateway, as one that is started declares them."""
    return tuple(started()[0])


def declared_by_buffers() -> list[Declaration]:
    """Every metric of a LogBuffer of the library."""
    return LogBuffer().metrics.declared()


def declared_by_supervisors() -> list[Declaration]:
    """Every metric that `serve --workers N` has beside those of its workers."""
    with socket.socket() as listening:
        return Supervisor(wanted=2, listening=(listening,), command=(), drain_s=0).metrics.declared()


def metrics_page() -> str:
    """The text of docs/METRICS.md."""
    lines = [
        HEAD.replace("src/tollkeeper/settings.py", "the metrics that a started gateway declares"),
        "# Metrics",
        "",
        "`GET /metrics` of each gateway, in Prometheus' text format and without a token: sum over `instance`, and",
        "over `worker`, a label that everything has with `serve --workers N`, where one scrape tells of all workers.",
        "Numbers begin at 0 with the process. Money is in nano-dollars (1e-9 USD).",
        f"Labels are bounded: of a metric's values beyond {CHILDREN_MAX} the rest is counted as `other`; a `model`",
        "without a known price is `other`, too. Keys, teams and organisations are no labels; `tollkeeper usage` and",
        "the admin API tell what they spend.",
        "",
        "Beside these, `process_…` tells the process's CPU time, memory, open files and start, as the clients of",
        "Prometheus do.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    lines += map(_metric_row, declared())
    lines += ["", "## With `serve --workers N`", "", 'Labelled `worker="supervisor"`, as are its own `process_…`.']
    lines += ["", "| metric | type | labels | meaning |", "|---|---|---|---|"]
    lines += map(_metric_row, declared_by_supervisors())
    lines += ["", "## Of the library's `LogBuffer`", "", "In `buffer.metrics.exposition()`."]
    lines += [
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *map(_metric_row, declared_by_buffers()),
    ]
    return "\n".join(lines) + "\n"


def _metric_row(metric: Declaration) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |"


def pages() -> dict[Path, str]:
    """Every page with the text it should have, but for METRICS.md and reference/api.md: those need a gateway."""
    return {
        DOCS / "SETTINGS.md": settings_page(),
        DOCS / "ENV_VARIABLES.md": variables_page(),
        DOCS / "log-schema.md": log_schema_page(),
        DOCS / "log-record.schema.json": log_schema_json(),
        **reference_pages.pages(),
    }


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    made = {DOCS / "METRICS.md": metrics_page(), reference_pages.API: reference_pages.api_page(started()[1])}
    for page, text in (pages() | made).items():
        page.write_text(text)
        print(f"wrote {page.name}", file=sys.stderr)
