"""Idempotency keys of usage."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing of the previous release knows the new table."""
    op.create_table(
        "usage_keys",
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("cost_nano", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("root", "digest", name="pk_usage_keys"),
    )
    op.create_index("ix_usage_keys_root_until_us", "usage_keys", ["root", "until_us"])


def downgrade() -> None:
    """Forget them."""
    op.drop_table("usage_keys")
