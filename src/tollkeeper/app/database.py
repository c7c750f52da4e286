"""Opening the accounts' database with a schema that this program works on; for the gateway and for commands alike."""

from tollkeeper.app.data_dir import DataDir
from tollkeeper.domain.errors import ConfigurationError
from tollkeeper.settings import Settings
from tollkeeper.storage.database import Database


async def open_database(settings: Settings, *, pool_size: int) -> Database:
    """An embedded database is made or migrated; a shared one must have been: other programs may still work on it.

    Raises ConfigurationError, DatabaseUnavailable.
    """
    DataDir(settings.data_dir).create()
    database = await Database.open(settings.database_url, pool_size=pool_size, timeout_s=settings.database.timeout_s)
    try:
        if not await database.schema_is_current():
            if not settings.database_url.startswith("sqlite"):
                raise ConfigurationError(
                    "the database's schema is not current; run `tollkeeper migrate` once, then try again"
                )
            await database.migrate()
    except BaseException:
        await database.close()
        raise
    return database
