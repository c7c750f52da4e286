"""Where the database is: reads `DATABASE_URL`. It opens nothing and knows no SQL.

What is shown of an address never holds a password, and `Address.without_secrets` cleans the texts of drivers.
"""

from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

import msgspec

from tollkeeper.domain.errors import ConfigurationError

_SQLITE: Final = "sqlite:///"
_MASK: Final = "***"


class Dialect(StrEnum):
    """The databases we speak to, by SQLAlchemy's names."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class Address(msgspec.Struct, frozen=True):
    """A database's address. `path` is the file of SQLite, `dsn` what PostgreSQL's driver takes (with the password).

    `shown` names the database in messages. `secrets` are the texts that must never be shown.
    """

    dialect: Dialect
    shown: str
    path: Path | None = None
    dsn: str = ""
    secrets: tuple[str, ...] = ()

    def without_secrets(self, text: str) -> str:
        """The text with every password of this address masked."""
        for secret in self.secrets:
            text = text.replace(secret, _MASK)
        return text


def read_address(url: str) -> Address:
    """`postgresql://…` or `postgres://…` (any option of libpq's URLs that the driver knows), or `sqlite:///path`.

    A driver named in the scheme (`postgresql+asyncpg://`) is accepted and ignored. Raises ConfigurationError,
    whose text never repeats the URL.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.partition("+")[0]
    plain = f"{scheme}{separator}{rest}"
    if scheme == "sqlite" and separator:
        return _sqlite(plain)
    if scheme in ("postgresql", "postgres") and separator:
        return _postgresql(plain)
    raise ConfigurationError(
        "DATABASE_URL must begin with postgresql:// or sqlite:///, like postgresql://user:password@host/name or "
        "sqlite:////var/lib/tollkeeper/tollkeeper.db"
    )


def _sqlite(url: str) -> Address:
    path = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not path or path.startswith(":memory:"):
        raise ConfigurationError(
            "DATABASE_URL: SQLite needs a file: sqlite:///relative/path.db or sqlite:////absolute/path.db"
        )
    if "?" in path or "\0" in path:
        raise ConfigurationError("DATABASE_URL: options after `?` are not known for SQLite; give the path alone")
    return Address(Dialect.SQLITE, f"SQLite file {path}", path=Path(path))


def _postgresql(url: str) -> Address:
    try:
        parts = urlsplit(url)
        user, password, host = parts.username, parts.password, _host(parts)
        options = parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        raise _unreadable() from None
    # A password with a bare `/`, `?` or `#` cuts the URL short: its tail must not become a name that is shown.
    if parts.fragment or "@" in parts.path or ("@" in parts.query and "@" not in parts.netloc):
        raise _unreadable()
    if "channel_binding" in options:
        raise ConfigurationError("DATABASE_URL: the driver does not know `channel_binding`; leave it out")
    secrets = [unquote(password), password] if password else []
    secrets += options.get("password", [])
    login = ""
    if user is not None:
        login = quote(unquote(user), safe="")
        if password is not None:
            login += f":{quote(unquote(password), safe='')}"
        login += "@"
    query = f"?{parts.query}" if parts.query else ""
    return Address(
        Dialect.POSTGRESQL,
        f"PostgreSQL at {host or ','.join(options.get('host', ['its default address']))}{parts.path}",
        dsn=f"postgresql://{login}{host}{parts.path}{query}",
        secrets=tuple(dict.fromkeys(secret for secret in secrets if secret)),
    )


def _host(parts: SplitResult) -> str:
    _ = "," in parts.netloc or parts.port  # raises ValueError for what is no port; several hosts are the driver's
    return parts.netloc.rpartition("@")[2]


def _unreadable() -> ConfigurationError:
    return ConfigurationError(
        "DATABASE_URL cannot be read; write it like postgresql://user:password@host:5432/name, with special "
        "characters of the password percent-encoded (`/` is %2F, `@` is %40, `#` is %23, `?` is %3F)"
    )
