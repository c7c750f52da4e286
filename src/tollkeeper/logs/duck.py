"""The only home of DuckDB: a connection that can read named files and nothing else.

DuckDB is large (66 MB) and optional (`tollkeeper[query]`): it is loaded when a query or a Parquet object asks for it,
never on the path of a request. Nothing is ever fetched by it: no extension, no URL, no file but those it was given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tollkeeper.domain.errors import ConfigurationError

THREADS: Final = 2
MEMORY_BYTES_MAX: Final = 512 * 2**20
SPILL_BYTES_MAX: Final = 4 * 2**30
"""Temporary files of one query; above it the query fails."""


def load(what: str) -> Any:
    """The module. Raises ConfigurationError naming `what` needs it, if it is not installed."""
    try:
        import duckdb
    except ImportError:
        raise ConfigurationError(f"{what} needs DuckDB: pip install 'tollkeeper[query]'") from None
    return duckdb


def connect(what: str, paths: Sequence[Path], folder: Path) -> Any:
    """A connection that may read and write `paths` alone, and spill into `folder`. Its settings cannot be changed."""
    connection = load(what).connect(":memory:")
    connection.execute(f"SET threads={THREADS}")
    connection.execute(f"SET memory_limit='{MEMORY_BYTES_MAX >> 20}MiB'")
    connection.execute(f"SET temp_directory={quoted(str(folder / 'spill'))}")
    connection.execute(f"SET max_temp_directory_size='{SPILL_BYTES_MAX >> 20}MiB'")
    connection.execute("SET autoinstall_known_extensions=false")
    connection.execute("SET autoload_known_extensions=false")
    connection.execute("SET TimeZone='UTC'")
    connection.execute(f"SET allowed_paths={listed(paths)}")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    return connection


def quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def listed(paths: Sequence[Path]) -> str:
    """Paths as a list of SQL."""
    return "[" + ", ".join(quoted(str(path)) for path in paths) + "]"


def struct_of(columns: dict[str, str]) -> str:
    """Columns with their types as DuckDB's readers take them."""
    return "{" + ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in columns.items()) + "}"
