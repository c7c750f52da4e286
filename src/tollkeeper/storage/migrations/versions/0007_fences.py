"""Numbers of memories, so that a late write of one that was lost is told from those of its successor."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing of the previous release knows the new table; what it saves is guarded by marks alone, as before."""
    op.create_table(
        "fences",
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("root", name="pk_fences"),
    )


def downgrade() -> None:
    """Forget them."""
    op.drop_table("fences")
