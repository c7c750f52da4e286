"""The schema of log records in other people's languages: JSON Schema, and the types of DuckDB and Parquet columns.

Everything follows from the types of `RequestRecord`; nothing here is kept by hand but the table of type names.
"""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from tollkeeper.domain.record import SCHEMA_VERSION, AttemptRecord, RequestRecord

_COLUMNS: Final[Mapping[Any, str]] = {
    int: "BIGINT",
    str: "VARCHAR",
    bool: "BOOLEAN",
    tuple[str, ...]: "VARCHAR[]",
    dict[str, str]: "MAP(VARCHAR, VARCHAR)",
}
_JSON: Final[Mapping[Any, dict[str, Any]]] = {
    int: {"type": "integer"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
    dict[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
}


_ATTEMPTS: Final = tuple[AttemptRecord, ...]


def _fields(struct: type[msgspec.Struct] = RequestRecord) -> dict[str, tuple[Any, bool]]:
    """Field → its type without None, and whether it may be null. Raises KeyError for a type no table knows."""
    found: dict[str, tuple[Any, bool]] = {}
    for name, hint in get_type_hints(struct).items():
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        (kind,) = (option for option in options if option is not NoneType)
        found[name] = (kind, NoneType in options)
    return {name: found[name] for name in struct.__struct_fields__}


def columns() -> dict[str, str]:
    """Field → DuckDB type, in the record's order. Every column may hold NULL: older records have fewer fields."""
    return {name: _column(kind) for name, (kind, _) in _fields().items()}


def _column(kind: Any) -> str:
    if kind != _ATTEMPTS:
        return _COLUMNS[kind]
    return (
        "STRUCT(" + ", ".join(f"{name} {_COLUMNS[its]}" for name, (its, _) in _fields(AttemptRecord).items()) + ")[]"
    )


def _properties(struct: type[msgspec.Struct], texts: Mapping[str, str], attempts: Any) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, (kind, nullable) in _fields(struct).items():
        schema = dict(attempts if kind == _ATTEMPTS else _JSON[kind])
        if nullable:
            schema["type"] = [schema["type"], "null"]
        properties[name] = schema | {"description": texts[name]}
    return properties


def json_schema(texts: Mapping[str, str], attempt_texts: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of one record; texts are the fields' descriptions. All fields are always written."""
    its = _properties(AttemptRecord, attempt_texts, None)
    attempt = {"type": "object", "properties": its, "required": list(its), "additionalProperties": True}
    properties = _properties(RequestRecord, texts, {"type": "array", "items": attempt})
    properties["schema_version"]["minimum"] = SCHEMA_VERSION
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Tollkeeper log record, version {SCHEMA_VERSION}",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": True,
    }


def type_words(struct: type[msgspec.Struct] = RequestRecord) -> dict[str, str]:
    """Field → its type as people read it in JSON."""
    words: dict[Any, str] = {int: "integer", str: "string", bool: "boolean", tuple[str, ...]: "list of strings"}
    words[_ATTEMPTS] = "list of objects"
    return {
        name: words.get(kind, "object of strings") + (" or null" if nullable else "")
        for name, (kind, nullable) in _fields(struct).items()
    }
