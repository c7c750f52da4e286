"""Objects kept at providers, and whose they are."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TEXTS = ("root", "id", "kind", "provider", "key_id")


def upgrade() -> None:
    """Nothing of the previous release knows the new table."""
    op.create_table(
        "stored_objects",
        *[sa.Column(name, sa.Text, nullable=False) for name in TEXTS],
        sa.Column("created_us", sa.BigInteger, nullable=False),
        *[sa.Column(name, sa.Text, nullable=False) for name in ("model", "upstream_model", "seen", "notes")],
        sa.PrimaryKeyConstraint("root", "id", name="pk_stored_objects"),
    )
    op.create_index("ix_stored_objects_root_kind_created_us", "stored_objects", ["root", "kind", "created_us"])
    op.create_index("ix_stored_objects_kind_created_us", "stored_objects", ["kind", "created_us"])


def downgrade() -> None:
    """Forget them: then nobody can reach what is still kept at the providers."""
    op.drop_table("stored_objects")
