"""When a gateway looks at a stored object whose cost is known only when it is over."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The previous release leaves the new column empty: it looks at nothing by itself."""
    op.add_column("stored_objects", sa.Column("due_us", sa.BigInteger, nullable=True))
    op.create_index("ix_stored_objects_due_us", "stored_objects", ["due_us"])


def downgrade() -> None:
    """Objects are looked at by their owners alone again."""
    op.drop_index("ix_stored_objects_due_us", "stored_objects")
    op.drop_column("stored_objects", "due_us")
