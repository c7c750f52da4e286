"""Which sessions of the dashboard were ended before their time."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The previous release does not look here: while it still runs, a session ended by this one goes on in it."""
    op.create_table(
        "session_ends",
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("era", sa.BigInteger, nullable=False),
        sa.Column("forget_us", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("subject", name="pk_session_ends"),
    )


def downgrade() -> None:
    """Forget them: sessions that were ended would stand again until their time, so replace the admin token."""
    op.drop_table("session_ends")
