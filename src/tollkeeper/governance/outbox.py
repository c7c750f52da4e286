"""A producer's outbox: what it has dispatched and settled, on local disk until the database covers it.

A folder per producer, locked by its process, holds numbered segments of JSON lines: a dispatch line before the first
byte of a request goes upstream, an entry line when it ends. Lines are in the page cache when a method returns, which
survives the process; `fsync` brings them to the disk in groups. Space is reserved before a request is admitted:
segments are allocated ahead, so that a full disk refuses admissions and never a settlement.

Segments are forgotten oldest first, when all their entries are covered and none of their dispatches is in flight; in
any other order a dispatch could be left behind without its entry and be charged again by a successor.
This file knows nothing of the store: who sends entries, and when, is the ledger's matter.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.domain.entries import Dispatch, Entry
from tollkeeper.domain.errors import OutboxUnavailable

SEGMENT_BYTES: Final = 8 * 2**20
LINE_BYTES: Final = 2048
"""Reserved for each of an attempt's two lines."""
CLEAN_FILE: Final = "clean.json"
LOCK_FILE: Final = "lock"
ROOTS_FILE: Final = "roots"
ASIDE: Final = "."
"""Begins the name of a folder that is no outbox yet, or no more."""


class DispatchLine(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """Before the first byte goes upstream."""

    root: str
    dispatch: Dispatch


class EntryLine(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """A numbered entry."""

    root: str
    entry: Entry


class CleanState(msgspec.Struct, frozen=True):
    """Left by a clean stop: the next start goes on with this producer's numbers."""

    producer: str
    numbers: dict[str, int]


Line = DispatchLine | EntryLine
_pwrite: Final = ctypes.PyDLL(None, use_errno=True).pwrite
"""As `os.pwrite`, but it keeps the interpreter's lock. A line is in the page cache within a microsecond; giving the
lock away for that long wakes whichever thread waits for it (the one that syncs, the one that compresses), and getting
it back took a request 10 µs, twice."""
_pwrite.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long)
_pwrite.restype = ctypes.c_ssize_t
_encoder: Final = msgspec.json.Encoder()
_decoder: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)


class Segment:
    """One file: allocated zeros that lines replace. `last` is the highest entry number in it per root, `in_flight`
    how many attempts that were dispatched in it have not ended."""

    __slots__ = ("fd", "in_flight", "last", "offset", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: dict[str, int] = {}
        self.in_flight = 0
        self.size = self.offset = 0
        self.fd = -1

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} {self.offset}/{self.size} in_flight={self.in_flight}>"

    def allocate(self) -> None:
        """Make the file at its full size. Raises OSError."""
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.fd, 0, SEGMENT_BYTES)
        except OSError:
            self.close()
            self.path.unlink(missing_ok=True)
            raise
        self.size = SEGMENT_BYTES

    def write(self, line: bytes) -> None:
        """Append one line. Raises OSError."""
        written = _pwrite(self.fd, line, len(line), self.offset)
        if written != len(line):
            code = ctypes.get_errno() if written < 0 else errno.ENOSPC
            raise OSError(code, os.strerror(code))
        self.offset += written

    def read(self) -> Iterator[Line]:
        """All whole lines; what a crash cut off at the end is left out, for it was never answered."""
        for line in self.path.read_bytes().rstrip(b"\0").split(b"\n")[:-1]:
            yield _decoder.decode(line)

    def close(self) -> None:
        """Nothing can be written from here on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.size = -1, self.offset


class Outbox:
    """One producer's folder, locked while this object lives. All methods but `fsync` are for one event loop."""

    def __init__(self, folder: Path, lock_fd: int, producer: str, numbers: dict[str, int]) -> None:
        self.folder, self.producer = folder, producer
        self.numbers = numbers
        self.in_flight: dict[str, tuple[str, Dispatch, Segment]] = {}
        """Attempt → its root, its dispatch line, and where that is."""
        self.failure: str | None = None
        self._lock_fd = lock_fd
        self._covered: dict[str, int] = {}
        self._segments: list[Segment] = []  # oldest first; the last is written to
        self._spare: list[Segment] = []
        self._room = 0  # what may be written and is not reserved for one more line
        self._open_attempts = 0
        self._dirty = asyncio.Event()
        self._is_dirty = False  # the same: asked for every line
        roots = folder / ROOTS_FILE
        self.roots: set[str] = set(roots.read_text().split()) if roots.exists() else set()
        """Every root this producer has ever asked for an admission: where a successor must close it."""
        for path in sorted(folder.glob("*.seg")):
            self._load(Segment(path))

    def __repr__(self) -> str:
        return f"<Outbox {self.producer} segments={len(self._segments)} in_flight={len(self.in_flight)}>"

    def _load(self, segment: Segment) -> None:
        for line in segment.read():
            if isinstance(line, DispatchLine):
                self._fly(segment, line.root, line.dispatch)
            else:
                self._note(segment, line.root, line.entry)
        self._segments.append(segment)

    def _fly(self, segment: Segment, root: str, dispatch: Dispatch) -> None:
        if dispatch.attempt in self.in_flight:
            self._land(dispatch.attempt)  # it would count twice
        self.in_flight[dispatch.attempt] = (root, dispatch, segment)
        segment.in_flight += 1

    def _land(self, attempt: str) -> None:
        known = self.in_flight.pop(attempt, None)
        if known is not None:
            known[2].in_flight -= 1

    def _note(self, segment: Segment, root: str, entry: Entry) -> None:
        number = entry.number
        if number > segment.last.get(root, 0):
            segment.last[root] = number
        if number > self.numbers.get(root, 0):
            self.numbers[root] = number
        self._land(entry.attempt)

    # Writing

    @property
    def bytes_kept(self) -> int:
        """Bytes of lines that are not yet forgotten."""
        return sum(segment.offset for segment in self._segments)

    def know(self, root: str) -> None:
        """Remember a root before its first admission. Raises OutboxUnavailable."""
        if root not in self.roots:
            try:
                with (self.folder / ROOTS_FILE).open("a") as file:
                    file.write(f"{root}\n")
            except OSError as error:
                self.failure = f"cannot write to {self.folder}: {error.strerror}"
                raise OutboxUnavailable(self.failure) from error
            self.roots.add(root)

    def reserve(self) -> None:
        """Make sure of room for one more attempt's lines. Raises OutboxUnavailable: nothing may be admitted then."""
        needed = (self._open_attempts + 1) * 2 * LINE_BYTES
        if self._room < needed:
            self._make_room(needed)
        self.failure = None
        self._open_attempts += 1

    def _make_room(self, needed: int) -> None:
        while self._room < needed:
            try:
                self._allocate()
            except OSError as error:
                self.failure = f"cannot reserve space in {self.folder}: {error.strerror}"
                raise OutboxUnavailable(self.failure) from error

    def release(self) -> None:
        """Give back a reservation that will write nothing (more)."""
        self._open_attempts -= 1

    def dispatch(self, root: str, dispatch: Dispatch) -> None:
        """Write the dispatch line. Raises OutboxUnavailable: the request must not be sent then."""
        try:
            segment = self._write(DispatchLine(root, dispatch))
        except OSError as error:
            self.failure = f"cannot write to {self.folder}: {error.strerror}"
            raise OutboxUnavailable(self.failure) from error
        self._fly(segment, root, dispatch)

    def append(self, root: str, entry: Entry) -> None:
        """Write an entry, which must carry `next_number(root)`. A disk that fails now is reported, not raised: the
        entry still goes to the store, and admissions stop."""
        try:
            segment = self._write(EntryLine(root, entry))
        except OSError as error:
            self.failure = f"cannot write to {self.folder}: {error.strerror}"
            segment = self._segments[-1]
        self.numbers[root] = segment.last[root] = entry.number
        self._land(entry.attempt)

    def _write(self, line: Line) -> Segment:
        """Append one line; where it is. Raises OSError, and OutboxUnavailable if there is no room."""
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.size - segment.offset < LINE_BYTES:  # none, in one that was read
            segment = self._next_segment()
        if not self._is_dirty:
            self._is_dirty = True
            self._dirty.set()
        text = _encoder.encode(line) + b"\n"
        segment.write(text)
        self._room -= len(text)
        return segment

    def tell(self, root: str, entry: Entry) -> None:
        """Write an entry again, which a caller is about to be told of. Raises OutboxUnavailable."""
        entry = msgspec.structs.replace(entry, told=True)
        try:
            segment = self._write(EntryLine(root, entry))
        except OSError as error:
            self.failure = f"cannot write to {self.folder}: {error.strerror}"
            return
        self._note(segment, root, entry)

    def next_number(self, root: str) -> int:
        """The number the next entry of a root must carry."""
        return self.numbers.get(root, 0) + 1

    def _allocate(self) -> None:
        known = [int(s.path.stem) for s in (*self._segments, *self._spare)]
        segment = Segment(self.folder / f"{max(known, default=0) + 1:08d}.seg")
        segment.allocate()
        self._spare.append(segment)
        self._measure()

    def _next_segment(self) -> Segment:
        if not self._spare:
            try:
                self._allocate()
            except OSError as error:
                self.failure = f"cannot reserve space in {self.folder}: {error.strerror}"
                raise OutboxUnavailable(self.failure) from error
        self._segments.append(self._spare.pop(0))
        self._measure()
        return self._segments[-1]

    def _measure(self) -> None:
        """The room that is left, whenever there is another segment; every line takes its length of it."""
        current = self._segments[-1] if self._segments else None
        free = current.size - current.offset if current else 0
        self._room = free - LINE_BYTES + len(self._spare) * SEGMENT_BYTES

    async def fsync_loop(self, interval_s: float) -> None:
        """Bring written lines to the disk, at most every `interval_s`, off the request path."""
        loop = asyncio.get_running_loop()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._is_dirty = False
            for segment in [s for s in self._segments if s.fd >= 0]:
                try:
                    await loop.run_in_executor(None, os.fdatasync, segment.fd)
                except OSError as error:
                    self.failure = f"cannot sync {self.folder}: {error.strerror}"
            for done in [s for s in self._segments[:-1] if s.fd >= 0]:
                done.close()
            await asyncio.sleep(interval_s)

    # Reading and forgetting

    def entries_above(self, root: str, number: int) -> list[Entry]:
        """All kept entries of a root above `number`, in order."""
        found: dict[int, Entry] = {}
        for segment in self._segments:
            if segment.last.get(root, 0) > number:
                for line in segment.read():
                    if isinstance(line, EntryLine) and line.root == root and line.entry.number > number:
                        found[line.entry.number] = line.entry  # what was said of it last
        return [found[number] for number in sorted(found)]

    def kept_roots(self) -> set[str]:
        """Roots with entries that are not forgotten yet."""
        return {root for segment in self._segments for root in segment.last}

    def covered(self, root: str) -> int:
        """The last entry of a root that the database is known to have."""
        return self._covered.get(root, 0)

    async def synced(self) -> None:
        """Bring all that is written to the disk. Raises OutboxUnavailable."""
        loop = asyncio.get_running_loop()
        try:
            for segment in [s for s in self._segments if s.fd >= 0]:
                await loop.run_in_executor(None, os.fdatasync, segment.fd)
        except OSError as error:
            raise OutboxUnavailable(f"cannot sync {self.folder}: {error.strerror}") from error

    def uncovered_of(self, root: str) -> int:
        """How many entries of a root the database is not known to cover."""
        return self.numbers.get(root, 0) - self._covered.get(root, 0)

    def cover(self, root: str, mark: int) -> None:
        """The database has everything of a root up to `mark`: forget what is no more needed."""
        self._covered[root] = max(mark, self._covered.get(root, 0))
        while len(self._segments) > 1 and self._is_covered(self._segments[0]):
            segment = self._segments.pop(0)
            segment.close()
            segment.path.unlink(missing_ok=True)

    def _is_covered(self, segment: Segment) -> bool:
        return not segment.in_flight and all(self._covered.get(r, 0) >= n for r, n in segment.last.items())

    # The end

    def close(self, *, clean: bool) -> None:
        """Unlock. A clean stop with nothing in flight leaves the numbers for the next start; anything else leaves a
        dead producer's outbox."""
        if clean and not self.in_flight and self._lock_fd >= 0:
            for segment in self._segments:
                if segment.fd >= 0:
                    os.fdatasync(segment.fd)
            while self._segments and self._is_covered(self._segments[0]):
                self._segments.pop(0).path.unlink(missing_ok=True)
            for spare in self._spare:
                spare.path.unlink(missing_ok=True)
            _write_whole(self.folder / CLEAN_FILE, _encoder.encode(CleanState(self.producer, self.numbers)))
        self.unlock()

    def remove(self) -> None:
        """Delete the folder of a producer that is closed and covered by the database. It is put aside first: whoever
        looks through the outboxes meanwhile must find it whole or not at all."""
        aside = self.folder.rename(self.folder.with_name(f"{ASIDE}{self.folder.name}"))
        for path in aside.iterdir():
            path.unlink()
        aside.rmdir()
        self.unlock()

    def unlock(self) -> None:
        """Let go of the folder as it is."""
        for segment in (*self._segments, *self._spare):
            segment.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def open_outbox(base: Path) -> tuple[Outbox, list[Outbox]]:
    """Go on with a cleanly stopped producer's outbox, or begin a new one; and lock those of dead producers.

    Returns ours and the dead, which the caller must close. Raises OutboxUnavailable.
    """
    own: Outbox | None = None
    dead: list[Outbox] = []
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in sorted(path for path in base.iterdir() if not path.name.startswith(ASIDE)):
            lock_fd = _lock(folder)
            if lock_fd is None:
                continue
            clean = folder / CLEAN_FILE
            if not clean.exists():
                dead.append(Outbox(folder, lock_fd, folder.name, {}))
            elif own is None:
                state = msgspec.json.decode(clean.read_bytes(), type=CleanState)
                own = Outbox(folder, lock_fd, state.producer, dict(state.numbers))
                clean.unlink()
            else:
                os.close(lock_fd)
        return own or new_outbox(base), dead
    except (OSError, msgspec.DecodeError) as error:
        raise OutboxUnavailable(f"cannot open the outbox in {base}: {error}") from error


def new_outbox(base: Path) -> Outbox:
    """The outbox of a new producer. Raises OutboxUnavailable.

    It gets its name when it is locked: a gateway that starts at the same time would take it for a dead one's.
    """
    producer = f"p_{secrets.token_hex(8)}"
    draft = base / f"{ASIDE}{producer}"
    try:
        draft.mkdir(mode=0o700)
        lock_fd = _lock(draft)
        folder = draft.rename(base / producer)
    except OSError as error:
        raise OutboxUnavailable(f"cannot open an outbox in {base}: {error}") from error
    assert lock_fd is not None, "nobody else knows this name"
    return Outbox(folder, lock_fd, producer, {})


def entries_kept(base: Path) -> dict[tuple[str, str], set[int]]:
    """Numbers of the entries in all outboxes, by producer and root; only read, whoever has them open.

    A producer that writes meanwhile may have forgotten a segment: what is gone by now is covered.
    """
    kept: dict[tuple[str, str], set[int]] = {}
    for path in sorted(base.glob("[!.]*/*.seg")):
        try:
            for line in Segment(path).read():
                if isinstance(line, EntryLine):
                    kept.setdefault((path.parent.name, line.root), set()).add(line.entry.number)
        except FileNotFoundError:
            continue
    return kept


def _lock(folder: Path) -> int | None:
    """The lock of a folder; None: its process lives, or somebody has just removed it."""
    path = folder / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    draft = path.with_suffix(".tmp")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    draft.replace(path)
    folder_fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
