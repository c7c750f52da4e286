"""Which schema a database has, and whether this program can work on it. Reads the migrations' own words; what brings
a schema up to date, and the library for it, is in migrate.py and loaded only when there is something to do.

A migration *expands*: it leaves programs of earlier releases working, so a newer schema is current for them, and
gateways can be replaced one by one. What it must take away it takes in a later release, by a migration that
*contracts*: its revision says which schema a program must know at least, `0012_0010`: programs that know 0010 or
later. All revisions after it say so too, so that the one word in the database tells any program whether it may go on.
"""

import re
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.storage.transactions import Transaction, Transactions

MIGRATIONS: Final = Path(__file__).parent / "migrations"
REVISION: Final = re.compile(r"(\d{4})(?:_(\d{4}))?")
_STEP: Final = re.compile(r'^revision = "(\w+)"$.*?^down_revision = (?:None|"(\w+)")$', re.MULTILINE | re.DOTALL)


async def is_current(transactions: Transactions) -> bool:
    """Whether this program can work on the schema: it is its own or a newer one. Raises ConfigurationError if it is
    one for newer programs only."""
    async with transactions.read() as transaction:
        return await serves(transaction)


async def serves(transaction: Transaction) -> bool:
    """The same, inside a transaction."""
    applied = await transaction.run(_applied)
    if applied is None:
        return False
    known = revisions()
    return applied == known[-1] if applied in known else _serves(applied, known[-1])


def revisions() -> list[str]:
    """Of the migrations that this program knows, the oldest first."""
    after: dict[str | None, str] = {}
    for path in (MIGRATIONS / "versions").glob("[0-9]*.py"):
        step = _STEP.search(path.read_text())
        assert step is not None, path
        after[step[2]] = step[1]
    found = [after[None]]
    while found[-1] in after:
        found.append(after[found[-1]])
    return found


def _serves(applied: str, head: str) -> bool:
    """True for a schema newer than this program's that serves it. Raises ConfigurationError for any other."""
    schema, known = REVISION.fullmatch(applied), REVISION.fullmatch(head)
    if known is None or schema is None or int(schema[1]) < int(known[1]):
        raise ConfigurationError(f"the database's schema {applied!r} is of no release of Tollkeeper")
    if schema[2] is not None and int(schema[2]) > int(known[1]):
        raise ConfigurationError(
            f"the database's schema {schema[1]} is for programs that know schema {schema[2]}; this one knows "
            f"{known[1]}: run a newer release"
        )
    return True


def _applied(connection: Connection) -> str | None:
    # Asked for first, since a failed query would end the transaction.
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
