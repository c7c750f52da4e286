"""Accounts, their digests and change counter; producers, marks, spend and the monthly summary."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _totals() -> "list[sa.Column[int]]":
    names = ("cost_nano", "requests", "input_tokens", "output_tokens", "cached_tokens", "updated_us")
    return [_int(name) for name in names]


def upgrade() -> None:
    """Make every table; the change counter gets its one row."""
    _accounts()
    _spend()


def _accounts() -> None:
    op.create_table(
        "change_counter",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        _int("version"),
        sa.PrimaryKeyConstraint("id", name="pk_change_counter"),
        sa.CheckConstraint("id = 1", name=op.f("ck_change_counter_one_row")),
    )
    op.execute("INSERT INTO change_counter (id, version) VALUES (1, 0)")
    op.create_table(
        "organisations",
        _text("id"),
        _text("name"),
        sa.Column("implicit", sa.Boolean, nullable=False),
        _text("policy"),
        _int("created_us"),
        _int("deleted_us", nullable=True),
        _int("changed_version"),
        sa.PrimaryKeyConstraint("id", name="pk_organisations"),
    )
    op.create_index("ix_organisations_changed_version", "organisations", ["changed_version"])
    _unique_live("organisations", ["name"], "deleted_us IS NULL AND NOT implicit")
    op.create_table(
        "teams",
        _text("id"),
        _text("organisation_id"),
        _text("name"),
        _text("policy"),
        _int("created_us"),
        _int("deleted_us", nullable=True),
        _int("changed_version"),
        sa.PrimaryKeyConstraint("id", name="pk_teams"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisations.id"], name="fk_teams_organisation_id"),
        sa.UniqueConstraint("organisation_id", "id", name="uq_teams_organisation_id_id"),
    )
    op.create_index("ix_teams_changed_version", "teams", ["changed_version"])
    _unique_live("teams", ["organisation_id", "name"], "deleted_us IS NULL")
    _keys()


def _unique_live(table: str, columns: list[str], where: str) -> None:
    op.create_index(
        f"uq_{table}_live_name",
        table,
        columns,
        unique=True,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )


def _keys() -> None:
    op.create_table(
        "keys",
        _text("id"),
        _text("organisation_id"),
        _text("team_id", nullable=True),
        _text("name"),
        _text("hint"),
        _text("policy"),
        _int("created_us"),
        _int("expires_us", nullable=True),
        _int("revoked_us", nullable=True),
        _int("changed_version"),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["organisation_id"], ["organisations.id"], name="fk_keys_organisation_id"),
        sa.ForeignKeyConstraint(
            ["organisation_id", "team_id"], ["teams.organisation_id", "teams.id"], name="fk_keys_team"
        ),
    )
    op.create_index("ix_keys_name", "keys", ["name"])
    op.create_index("ix_keys_organisation_id_team_id", "keys", ["organisation_id", "team_id"])
    op.create_index("ix_keys_team_id", "keys", ["team_id"])
    op.create_index("ix_keys_changed_version", "keys", ["changed_version"])
    op.create_table(
        "key_digests",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        _text("key_id"),
        _int("created_us"),
        _int("expires_us", nullable=True),
        _int("changed_version"),
        sa.PrimaryKeyConstraint("digest", name="pk_key_digests"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_key_digests_key_id"),
    )
    op.create_index("ix_key_digests_key_id", "key_digests", ["key_id"])
    op.create_index("ix_key_digests_changed_version", "key_digests", ["changed_version"])


def _spend() -> None:
    op.create_table(
        "producers",
        _text("id"),
        _int("enrolled_us"),
        _int("seen_us"),
        _int("closed_us", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_producers"),
    )
    op.create_table(
        "marks",
        _text("root"),
        _text("producer"),
        _int("number"),
        sa.PrimaryKeyConstraint("root", "producer", name="pk_marks"),
    )
    op.create_table(
        "spend",
        _text("root"),
        _text("scope"),
        _text("period"),
        *_totals(),
        sa.PrimaryKeyConstraint("root", "scope", "period", name="pk_spend"),
    )
    op.create_table(
        "monthly_usage_summary",
        _text("key_id"),
        sa.Column("year", sa.Integer, nullable=False),
        sa.Column("month", sa.Integer, nullable=False),
        *_totals(),
        sa.PrimaryKeyConstraint("key_id", "year", "month", name="pk_monthly_usage_summary"),
    )
    op.create_index("ix_monthly_usage_summary_year_month", "monthly_usage_summary", ["year", "month"])
