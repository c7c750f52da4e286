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
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from tollkeeper.domain.log_queue import Gap

_igzip: Callable[..., bytes] | None = None
with suppress(ImportError):  # it has wheels for x86-64 and ARM
    from isal.igzip import compress as _igzip

ISAL_LEVEL: Final = 2
"""Measured on records without bodies, all different: 0.4 µs each and 6.8% of their size, on the core that also serves
requests; zlib takes 6.1 µs and 6.0% at level 6, 2.5 µs and 7.5% at level 1."""
GZIP_LEVEL: Final = 1
"""Where there is no isal for the machine."""
FIRST_US: Final = -62_135_596_800_000_000
LAST_US: Final = 253_402_300_799_999_999
"""The years 1 to 9999, which a calendar knows."""
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

    A batch that the Parquet schema cannot hold is JSONL nevertheless. JSONL takes about 2 µs a record, Parquet 11:
    large batches belong in a thread. Raises ConfigurationError if Parquet is not installed.
    """
    records = b"\n".join((*batch.records, b""))
    body, suffix = packed(records, form)
    return LogObject(f"{_folder(batch.records)}/{batch.name}{suffix}", body, digest(records))


def packed(records: bytes, form: Format) -> tuple[bytes, str]:
    """Lines as the bytes of an object, and the end of its name: as `build` says."""
    if form == "parquet":
        from tollkeeper.logs import parquet

        body = parquet.encode(tuple(records[:-1].split(b"\n")), digest(records))
        if body is not None:
            return body, ".parquet"
    if _igzip is None:
        return gzip.compress(records, GZIP_LEVEL, mtime=0), ".jsonl.gz"
    return _igzip(records, ISAL_LEVEL, mtime=0), ".jsonl.gz"


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
    earliest_us = LAST_US + 1
    for record in records:
        try:
            time_us = _decode_time(record).time_us
        except (msgspec.MsgspecError, ValueError):
            continue
        if FIRST_US <= time_us < earliest_us:
            earliest_us = time_us
    if earliest_us > LAST_US:
        return UNDATED
    moment = datetime.fromtimestamp(earliest_us // 1_000_000, UTC)
    return f"dt={moment:%Y-%m-%d}/hour={moment:%H}"
