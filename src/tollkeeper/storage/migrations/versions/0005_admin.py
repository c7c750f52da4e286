"""Tokens of the admin API, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def upgrade() -> None:
    """Nothing of the previous release knows the new tables; its changes leave no events."""
    op.create_table(
        "admin_tokens",
        *map(_text, ("id", "name", "role", "owns", "hint")),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("previous_digest", sa.LargeBinary, nullable=True),
        _int("previous_until_us", nullable=True),
        _int("created_us"),
        _int("expires_us", nullable=True),
        _int("revoked_us", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_admin_tokens"),
        sa.UniqueConstraint("digest", name="uq_admin_tokens_digest"),
        sa.UniqueConstraint("previous_digest", name="uq_admin_tokens_previous_digest"),
    )
    op.create_table(
        "audit_events",
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        _int("at_us"),
        *map(_text, ("actor_id", "actor_name", "source")),
        _text("address", nullable=True),
        _text("request_id", nullable=True),
        sa.Column("idempotency", sa.LargeBinary, nullable=True),
        _text("action"),
        _text("object_id"),
        _text("before_json", nullable=True),
        _text("after_json", nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_audit_events"),
    )
    op.create_index("ix_audit_events_at_us", "audit_events", ["at_us"])
    op.create_index("ix_audit_events_object_id_number", "audit_events", ["object_id", "number"])
    op.create_index("ix_audit_events_actor_id_number", "audit_events", ["actor_id", "number"])
    op.create_index("ix_audit_events_idempotency", "audit_events", ["idempotency"])
    op.create_index("ix_keys_created_us_id", "keys", ["created_us", "id"])


def downgrade() -> None:
    """Forget them."""
    op.drop_index("ix_keys_created_us_id", "keys")
    op.drop_table("audit_events")
    op.drop_table("admin_tokens")
