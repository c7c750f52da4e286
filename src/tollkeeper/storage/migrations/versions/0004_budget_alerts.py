"""Warnings of budgets, and their delivery."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _int(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def upgrade() -> None:
    """Nothing of the previous release knows the new table."""
    op.create_table(
        "budget_alerts",
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("counter", sa.Text, nullable=False),
        _int("threshold_nano"),
        sa.Column("scope", sa.Text, nullable=False),
        _int("spent_nano"),
        _int("budget_nano", nullable=True),
        _int("soft_nano", nullable=True),
        _int("ends_us", nullable=True),
        _int("crossed_us"),
        _int("expires_us"),
        _int("due_us", nullable=True),
        _int("attempts"),
        sa.PrimaryKeyConstraint("root", "counter", "threshold_nano", name="pk_budget_alerts"),
    )
    op.create_index("ix_budget_alerts_due_us", "budget_alerts", ["due_us"])


def downgrade() -> None:
    """Forget them."""
    op.drop_table("budget_alerts")
