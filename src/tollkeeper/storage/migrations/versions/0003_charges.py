"""Charges that carry a rank; producers that are at rest, claimed, or whose marks were dropped."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def upgrade() -> None:
    """A new table, and columns that old rows and old programs leave empty."""
    op.add_column("producers", _int("rested_us", nullable=True))
    op.add_column("producers", _text("claimant", nullable=True))
    op.add_column("producers", _int("claimed_us", nullable=True))
    op.add_column("producers", _int("forgotten_us", nullable=True))
    op.create_table(
        "charges",
        _text("root"),
        _text("attempt"),
        _int("rank"),
        _text("key_id"),
        _int("presumed_nano", nullable=True),
        _int("cost_nano"),
        _int("requests"),
        _int("input_tokens"),
        _int("output_tokens"),
        _int("cached_tokens"),
        _text("known"),
        _int("updated_us"),
        sa.PrimaryKeyConstraint("root", "attempt", name="pk_charges"),
    )
    op.create_index("ix_charges_attempt", "charges", ["attempt"])
    op.create_index("ix_charges_rank_updated_us", "charges", ["rank", "updated_us"])
