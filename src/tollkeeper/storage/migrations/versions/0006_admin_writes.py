"""Idempotency keys, secrets that go on for a while after a rotation, and how the delivery of alerts ended."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ADDED = (
    ("key_digests", "valid_until_us", sa.BigInteger),
    ("keys", "previous_until_us", sa.BigInteger),
    ("budget_alerts", "delivered_us", sa.BigInteger),
    ("budget_alerts", "failure", sa.Text),
)


def upgrade() -> None:
    """The previous release writes no new column. It takes an old secret with an overlap for one without an end."""
    for table, column, kind in ADDED:
        op.add_column(table, sa.Column(column, kind(), nullable=True))
    op.create_index("ix_budget_alerts_crossed_us", "budget_alerts", ["crossed_us"])
    op.create_table(
        "idempotency_keys",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("status", sa.BigInteger, nullable=True),
        sa.Column("sealed", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_us", "idempotency_keys", ["expires_us"])


def downgrade() -> None:
    """Old secrets end with it."""
    op.drop_table("idempotency_keys")
    op.drop_index("ix_budget_alerts_crossed_us", "budget_alerts")
    op.execute("DELETE FROM key_digests WHERE valid_until_us IS NOT NULL")
    for table, column, _ in ADDED:
        op.drop_column(table, column)
