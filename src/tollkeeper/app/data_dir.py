"""The data directory: who may use it, the secrets that were made for it, and where its gateway listens.

Knows nothing of what other rooms keep there (database, outbox, logs).
"""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import Settings, read_secret

LOCK_FILE: Final = "lock"
ADDRESS_FILE: Final = "address"
DIGEST_KEY_FILE: Final = "digest-key"
ADMIN_TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a name


class DataDir:
    """Files of one data directory. Every method may raise ConfigurationError: a disk that cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def create(self) -> None:
        """Make it, for its owner alone, if it is not there."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal("cannot be made", error) from None

    def lock(self) -> None:
        """Become the only process that keeps its fast state for this directory; given back when the process ends."""
        self.create()
        try:
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refusal("cannot be written", error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            raise ConfigurationError(
                f"{self.path} is in use by another gateway (process {owner or 'unknown'}): without Redis the limits "
                "live in one process. Stop it, or give this one its own TOLLKEEPER_DATA_DIR, or both one REDIS_URL"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def unlock(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def secret(self, name: str) -> str:
        """The secret in a file of this name; 256 random bits are put there first if it does not exist."""
        path = self.path / name
        if not path.exists():
            self._make_secret(path)
        return read_secret(path, what=name)

    def _make_secret(self, path: Path) -> None:
        self.create()
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "w") as text:
                text.write(secrets.token_hex(32) + "\n")
                text.flush()
                os.fsync(file)
            # a link fails if the name exists: of two processes that make a secret at once, both use the first
            with suppress(FileExistsError):
                path.hardlink_to(draft)
        except OSError as error:
            raise self._refusal("cannot be written", error) from None
        finally:
            draft.unlink(missing_ok=True)

    def write_address(self, url: str) -> None:
        """Say where this directory's gateway listens, for the commands beside it."""
        draft = self.path / f".{ADDRESS_FILE}.{os.getpid()}"
        try:
            draft.write_text(url + "\n")
            draft.replace(self.path / ADDRESS_FILE)
        except OSError as error:
            raise self._refusal("cannot be written", error) from None

    def remove_address(self, url: str) -> None:
        """Take it back, if it is still this one."""
        if self.address() == url:
            (self.path / ADDRESS_FILE).unlink(missing_ok=True)

    def address(self) -> str | None:
        """Where a gateway said that it listens; it may be gone."""
        try:
            return (self.path / ADDRESS_FILE).read_text().strip() or None
        except OSError:
            return None

    def _refusal(self, what: str, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"the data directory {self.path} {what}: {error.strerror}; set TOLLKEEPER_DATA_DIR to one that can be"
        )


def digest_key(settings: Settings) -> bytes:
    """The configured key, or the data directory's own, which is made the first time. Raises ConfigurationError."""
    return (settings.secrets.digest_key or DataDir(settings.data_dir).secret(DIGEST_KEY_FILE)).encode()


def admin_token(settings: Settings) -> str:
    """The configured token, or the data directory's own, which is made the first time. Raises ConfigurationError."""
    return settings.secrets.admin_token or DataDir(settings.data_dir).secret(ADMIN_TOKEN_FILE)
