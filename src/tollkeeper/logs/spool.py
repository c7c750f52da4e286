"""A producer's records on local disk while the queue is away, and the numbers it gave, whatever happens to it.

    <root>/<producer>/lock          held while the producer lives
                      last          its last number, in a mapped page: survives a SIGKILL without a write per record
                      00000001.seg  chunks in order: length, CRC-32, msgpack

Chunks are in the page cache when `append` returns, which survives the process; a power cut may take the last seconds.
A producer that died is *adopted* by whoever locks its folder: its chunks are brought to the queue, which ignores what
it has already, and the numbers that nobody has are told as lost. Above its bound the spool forgets its oldest
segment and tells the numbers as dropped. Knows chunks, not who reads them.
"""

import errno
import fcntl
import mmap
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.domain.errors import OutboxUnavailable
from tollkeeper.domain.log_queue import Chunk

SEGMENT_BYTES: Final = 8 * 2**20
LOCK_FILE: Final = "lock"
LAST_FILE: Final = "last"
DRAFT: Final = "."
"""Begins the name of a folder that is not a spool yet."""
_HEAD: Final = struct.Struct("<II")
_LAST: Final = struct.Struct("<Q")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Chunk).decode


class _Segment(msgspec.Struct):
    path: Path
    first: int
    last: int
    size: int = 0
    read: int = 0


class Spool:
    """One producer's folder, locked while this object lives. `root` is made if it is not there.

    Raises OutboxUnavailable if the disk cannot be used.
    """

    def __init__(self, root: Path, producer: str, bytes_max: int, *, create: bool = True) -> None:
        self.folder = root / producer
        self.producer = producer
        self._bytes_max = bytes_max
        self._segments: deque[_Segment] = deque()
        self._number = 0
        self._file = -1
        self.bytes = 0
        self.leaving = False
        """The oldest segment is on its way to the queue: above the bound the one after it is forgotten instead."""
        try:
            if create and not self.folder.exists():
                # it gets its name when it is locked: whoever looks for orphans now would take it for one
                draft = root / f"{DRAFT}{producer}"
                draft.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = _locked(draft)
                draft.rename(self.folder)
            else:
                self._lock = _locked(self.folder)
            self._open_last()
            self._load()
        except OSError as error:
            raise OutboxUnavailable(f"the log spool {self.folder} cannot be used: {error.strerror}") from None

    def __repr__(self) -> str:
        return f"<Spool {self.producer} segments={len(self._segments)} bytes={self.bytes} last={self.last}>"

    def _open_last(self) -> None:
        file = os.open(self.folder / LAST_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(file, _LAST.size)
        self._page = mmap.mmap(file, _LAST.size)
        os.close(file)

    def _load(self) -> None:
        for path in sorted(self.folder.glob("*.seg")):
            chunks = list(_chunks(path.read_bytes()))
            self._number = int(path.stem)
            if chunks:
                self._segments.append(_Segment(path, chunks[0].first, chunks[-1].last, path.stat().st_size))
                self.bytes += path.stat().st_size
            else:
                path.unlink()

    @property
    def last(self) -> int:
        """The last number the producer gave."""
        number: int = _LAST.unpack_from(self._page)[0]
        return number

    def gave(self, number: int) -> None:
        """Remember the last number, even if this process is killed now."""
        _LAST.pack_into(self._page, 0, number)

    def __len__(self) -> int:
        """Segments that wait."""
        return len(self._segments)

    @property
    def newest(self) -> int:
        """The last number that waits; 0 if none does."""
        return self._segments[-1].last if self._segments else 0

    def append(self, chunk: Chunk) -> tuple[int, int] | None:
        """Keep a chunk; first and last of the numbers that had to be forgotten for it, if any.

        Raises OutboxUnavailable: it is not kept.
        """
        data = _encode(chunk)
        line = _HEAD.pack(len(data), zlib.crc32(data)) + data
        segment = self._segments[-1] if self._segments and self._file >= 0 else None
        try:
            if segment is None or segment.size + len(line) > SEGMENT_BYTES:
                segment = self._new_segment(chunk.first)
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, segment.size)
                raise OSError(errno.ENOSPC, "no space left")
        except OSError as error:
            raise OutboxUnavailable(f"the log spool {self.folder} cannot be written: {error.strerror}") from None
        segment.size += len(line)
        segment.last = chunk.last
        self.bytes += len(line)
        index = int(self.leaving)
        full = self.bytes > self._bytes_max and len(self._segments) > index + 1
        return self._delete(index) if full else None

    def _new_segment(self, first: int) -> _Segment:
        self._close_file()
        self._number += 1
        path = self.folder / f"{self._number:08}.seg"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        segment = _Segment(path, first, first - 1)
        self._segments.append(segment)
        return segment

    def _delete(self, index: int = 0) -> tuple[int, int]:
        segment = self._segments[index]
        del self._segments[index]
        self.bytes -= segment.size
        segment.path.unlink(missing_ok=True)
        return segment.first, segment.last

    def oldest(self) -> list[Chunk]:
        """The chunks of the oldest segment, the one being written included."""
        if not self._segments:
            return []
        try:
            return list(_chunks(self._segments[0].path.read_bytes()))
        except OSError as error:
            raise OutboxUnavailable(f"the log spool {self.folder} cannot be read: {error.strerror}") from None

    def forget(self, last: int) -> None:
        """Everything up to that number is in the queue."""
        while self._segments and self._segments[0].last <= last:
            if len(self._segments) == 1:
                self._close_file()
            self._delete()

    def skip(self) -> tuple[int, int]:
        """Give the oldest segment up: nothing more can be read of it. Its numbers."""
        if len(self._segments) == 1:
            self._close_file()
        return self._delete()

    def close(self, *, remove: bool) -> None:
        """Let go; `remove` it if nothing is left to be told."""
        self._close_file()
        if remove and not self._segments:
            for name in (LAST_FILE, LOCK_FILE):
                (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()
        self._page.close()
        os.close(self._lock)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _locked(folder: Path) -> int:
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise OutboxUnavailable(f"the log spool {folder} belongs to a process that lives") from None
    return lock


def _chunks(data: bytes) -> Iterator[Chunk]:
    """All whole chunks; what a crash cut off at the end is left out."""
    at = 0
    while at + _HEAD.size <= len(data):
        size, check = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + size]
        if not size or len(body) < size or zlib.crc32(body) != check:
            return  # zeros are what a power cut may leave
        yield _decode(body)
        at += _HEAD.size + size


def orphans(root: Path, bytes_max: int) -> Iterator[Spool]:
    """Spools of producers that died, each locked for the caller, who closes it."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith(DRAFT):
            try:
                yield Spool(root, folder.name, bytes_max, create=False)
            except OutboxUnavailable:
                continue
