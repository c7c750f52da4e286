"""What a batch looks like as an object: its path, its bytes, its digest. Pure; knows no store.

    dt=2026-11-23/hour=14/<run>-<number of the lease>.jsonl.gz (or .parquet)

The folder is the UTC hour of the batch's earliest record: a record is never in a later folder than its own hour's,
and readers rely on that. Everything follows from the batch alone, so a batch that is shipped again, by whomever,
makes the same path. The digest is of the records as JSON lines, whatever the format, since compressors differ.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from tollkeeper.domain.log_queue import Gap

GZIP_LEVEL: Final = 6
"""Measured on these records: level 1 is 10 ms and 2.0%, level 6 is 25 ms and 1.4% of 8 MB."""
Format = Literal["jsonl.gz", "parquet"]
SUFFIXES: Final = (".jsonl.gz", ".parquet")
UNDATED: Final = "dt=1970-01-01/hour=00"
"""The folder of a batch without a record whose time a calendar knows."""
GAPS_PREFIX: Final = "_gaps/"
"""Objects that tell which numbers will not come; readers of `dt=*` folders never see them."""
GAPS_SUFFIX: Final = ".json"
RETIRED_PREFIX: Final = "_retired/"
"""Objects that tell which records were delivered and deleted since, because they were older than the retention."""
_PATH: Final = re.compile(r"dt=[^/]+/hour=[^/]+/[^/]+\.(?:jsonl\.gz|parquet)")


class Lines(msgspec.Struct, frozen=True):
    """The records of a batch, a line of JSON each, under the batch's name."""

    name: str
    records: tuple[bytes, ...]

    @property
    def bytes(self) -> int:
        """Of all lines."""
        return sum(map(len, self.records))


class LogObject(msgspec.Struct, frozen=True):
    """A batch ready to be written. `sha256` (hex) is of `records`: the lines before compression."""

    path: str
    body: bytes
    sha256: str


class _Timed(msgspec.Struct):
    time_us: int


_decode_time = msgspec.json.Decoder(_Timed).decode


def build(batch: Lines, form: Format = "jsonl.gz") -> LogObject:
    """The object of a batch, as JSONL, gzipped without name or time, or as Parquet.

    A batch that the Parquet schema cannot hold is JSONL nevertheless. JSONL takes about 5 µs a record, Parquet 11:
    large batches belong in a thread. Raises ConfigurationError if Parquet is not installed.
    """
    records = b"\n".join(batch.records) + b"\n"
    body, suffix = packed(records, form)
    return LogObject(f"{_folder(batch.records)}/{batch.name}{suffix}", body, digest(records))


def packed(records: bytes, form: Format) -> tuple[bytes, str]:
    """Lines as the bytes of an object, and the end of its name: as `build` says."""
    if form == "parquet":
        from tollkeeper.logs import parquet

        body = parquet.encode(tuple(records[:-1].split(b"\n")), digest(records))
        if body is not None:
            return body, ".parquet"
    return gzip.compress(records, GZIP_LEVEL, mtime=0), ".jsonl.gz"


class _Gaps(msgspec.Struct):
    gaps: tuple[Gap, ...]


def build_gaps(name: str, gaps: Sequence[Gap]) -> LogObject:
    """`_gaps/<name>.json`: what a batch tells of numbers that will not come."""
    body = msgspec.json.encode(_Gaps(tuple(gaps)))
    return LogObject(f"{GAPS_PREFIX}{name}{GAPS_SUFFIX}", body, digest(body))


def gaps_in(body: bytes) -> tuple[Gap, ...] | None:
    """What `build_gaps` was given, or None if it is not whole."""
    try:
        return msgspec.json.decode(body, type=_Gaps).gaps
    except msgspec.MsgspecError:
        return None


def is_gaps_object(path: str) -> bool:
    """Whether a path, relative to the store, is one of `build_gaps`."""
    return path.startswith(GAPS_PREFIX) and path.endswith(GAPS_SUFFIX)


def is_retired_object(path: str) -> bool:
    """Whether a path, relative to the store, is one that retention left."""
    return path.startswith(RETIRED_PREFIX) and path.endswith(GAPS_SUFFIX)


def digest(records: bytes) -> str:
    """SHA-256 of uncompressed lines, in hex."""
    return hashlib.sha256(records).hexdigest()


def records_in(body: bytes) -> bytes | None:
    """The lines of an object in either format, or None if it is not whole."""
    if body.startswith(b"PAR1"):
        from tollkeeper.logs import parquet

        return parquet.records_in(body)
    try:
        records = gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        return None
    return records if records.endswith(b"\n") else None


def conflict_path(path: str, sha256: str) -> str:
    """Where a batch goes if its own path holds other records: named by content, so that repeating is harmless."""
    suffix = suffix_of(path)
    return f"{path.removesuffix(suffix)}-{sha256[:16]}{suffix}"


def suffix_of(path: str) -> str:
    """The end of an object's path that tells its format."""
    return next(suffix for suffix in (*SUFFIXES, GAPS_SUFFIX) if path.endswith(suffix))


def twin_path(path: str) -> str:
    """The path that the same batch has in the other format."""
    suffix = suffix_of(path)
    (other,) = (each for each in SUFFIXES if each != suffix)
    return path.removesuffix(suffix) + other


def is_log_object(path: str) -> bool:
    """Whether a path, relative to the store, looks like one of ours."""
    return _PATH.fullmatch(path) is not None


def _folder(records: Sequence[bytes]) -> str:
    moment = min((known for record in records if (known := _moment(record)) is not None), default=None)
    return UNDATED if moment is None else f"dt={moment:%Y-%m-%d}/hour={moment:%H}"


def _moment(record: bytes) -> datetime | None:
    try:
        return datetime.fromtimestamp(_decode_time(record).time_us / 1_000_000, UTC)
    except (msgspec.MsgspecError, ValueError, OverflowError, OSError):
        return None
