"""Tables as CSV (RFC 4180) that no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet begins to compute at, as OWASP lists it. Such a text gets an apostrophe before it."""


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A head and a line for each row; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(name, row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def _cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str) and not _is_amount(name, value) and value.lstrip(" ").startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


def _is_amount(name: str, value: str) -> bool:
    """Money, which is a string so that it stays exact, may be below zero."""
    return name.endswith("_usd") and value.removeprefix("-").replace(".", "", 1).isdecimal()
