"""The published schema, the struct, and what is really written agree."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.logs.conftest import make_record
from tollkeeper.domain.record import SCHEMA_VERSION, AttemptRecord, RequestRecord
from tollkeeper.logs import schema

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "log-record.schema.json").read_text())


ATTEMPTS = (
    AttemptRecord(attempt="r.1", provider="p", model="m", upstream_model="u", result="server_error", status=500),
    AttemptRecord(attempt="r.2", provider="q", model="m", upstream_model="u", result="answered", cost_nano=7),
)


def encoded(**fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(make_record(1, **fields)))
    return decoded


def test_struct_schema_page_and_columns_name_the_same_fields() -> None:
    names = list(RequestRecord.__struct_fields__)
    assert list(SCHEMA["properties"]) == SCHEMA["required"] == list(schema.columns()) == list(encoded()) == names
    rows = [line.split("`")[1] for line in (DOCS / "log-schema.md").read_text().splitlines() if line[:3] == "| `"]
    assert rows == names + list(AttemptRecord.__struct_fields__)
    assert all(field["description"] for field in SCHEMA["properties"].values())


def test_a_record_with_every_kind_of_value_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(encoded(), SCHEMA)
    full = encoded(
        user="u",
        metadata={"a": "b"},
        tags=("x", "y"),
        shadow_refusals=("key/tokens",),
        queue_us=3,
        attempt_list=ATTEMPTS,
    )
    jsonschema.validate(full, SCHEMA)
    assert full["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    "fields",
    [
        {"tags": "x"},
        {"metadata": {"a": 1}},
        {"status": "200"},
        {"model": None},
        {"schema_version": 0},
        {"attempt_list": [{"attempt": 1}]},
    ],
)
def test_a_wrong_record_is_not_valid(fields: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(encoded(**fields), SCHEMA)
