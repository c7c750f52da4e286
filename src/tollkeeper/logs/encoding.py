"""A record as bytes: its JSON line, taken apart so that the bodies can be shed. Knows the record, not the queue.

A record is one line of JSON. If it has bodies, the line is cut before them: the *part* goes up to the comma before
`request_body`, the *body* is the rest. A line whose body was shed ends as that of a record whose bodies were left
out, and says why.
"""

from typing import Any, Final

import msgspec

from tollkeeper.domain.record import RequestRecord

SHED: Final = "the log buffer was full"
"""`bodies_omitted` of a record whose bodies were shed."""
STAND_IN_FIELD_MAX: Final = 256
"""Characters kept of each text in a record that stands in for another."""
RECORD_BYTES_MAX: Final = 2**20
"""Largest encoded record; a larger one is replaced."""

_CUT: Final = b',"request_body":'
_encode: Final = msgspec.json.Encoder().encode
_bare: Final = RequestRecord(
    request_id="",
    time_us=0,
    key_id="",
    key_name="",
    organisation_id="",
    endpoint="",
    dialect="",
    provider="",
    model="",
    status=0,
    bodies_omitted=SHED,
)
_END: Final = _encode(_bare)
_END_SHED: Final = _END[_END.index(_CUT) + 1 :]


def encode(record: RequestRecord) -> tuple[bytes, bytes]:
    """Part and body, which is empty if the record has none. Raises what msgspec raises."""
    line = _encode(record)
    if record.request_body is None and record.response_body is None:
        return line, b""
    cut = line.index(_CUT) + 1  # inside a text the quotes would be escaped
    return line[:cut], line[cut:]


def line_of(part: bytes, body: bytes) -> bytes:
    """The line of a record that was in the queue, whose body may have been shed."""
    return part + body if body or part.endswith(b"}") else part + _END_SHED


def stand_in(record: Any, producer: str, number: int, reason: str) -> bytes:
    """A small line of the same number that says why it replaces the record; keeps what can be kept."""
    fields = {name: _small(getattr(record, name, None)) for name in RequestRecord.__struct_fields__}
    kept = {name: default if fields[name] is None else fields[name] for name, default in _DEFAULTS.items()}
    return _encode(kept | {"producer": producer, "number": number, "replaced": reason})


_DEFAULTS: Final[dict[str, Any]] = msgspec.to_builtins(_bare) | {"bodies_omitted": None}


def _small(value: Any) -> Any:
    """The value if JSON certainly takes it and it is short, a text's beginning, else None."""
    if isinstance(value, str):
        return value[:STAND_IN_FIELD_MAX].encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    return None
