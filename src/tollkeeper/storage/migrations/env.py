"""What Alembic runs: migrations on the connection that `migrate.py` hands over, inside its transaction."""

from alembic import context

from tollkeeper.storage.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
