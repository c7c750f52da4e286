"""Tables as files to download, for the API and the pages."""

from collections.abc import Sequence

from starlette.responses import Response

from tollkeeper.domain.csv_text import csv_text
from tollkeeper.domain.words import Words


def csv_file(name: str, rows: Sequence[Words]) -> Response:
    """`<name>.csv` with a column for everything that some row has, in the order of the first that has it."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    headers = {
        "content-disposition": f'attachment; filename="{name}.csv"',
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    return Response(csv_text(columns, rows), media_type="text/csv; charset=utf-8", headers=headers)
