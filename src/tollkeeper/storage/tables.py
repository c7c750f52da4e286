"""The tables, as SQLAlchemy Core knows them. Migrations make them; a test holds both equal. No query lives here.

Money is nano-dollars and times are Unix microseconds, both BIGINT. Organisations, teams, keys and digests carry
`changed_version`: the value of `change_counter` in the transaction that last wrote the row.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _text(name: str, *, nullable: bool = False) -> "Column[str]":
    return Column(name, Text, nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> "Column[int]":
    return Column(name, BigInteger, nullable=nullable)


change_counter: Final = Table(
    "change_counter",
    METADATA,
    Column("id", Integer, nullable=False, autoincrement=False),
    _int("version"),
    PrimaryKeyConstraint("id"),
    CheckConstraint("id = 1", name="one_row"),
)
"""One row. Locked by every transaction that writes accounts, so that versions follow the order of commits."""

organisations: Final = Table(
    "organisations",
    METADATA,
    _text("id"),
    _text("name"),
    Column("implicit", Boolean, nullable=False),
    _text("policy"),
    _int("created_us"),
    _int("deleted_us", nullable=True),
    _int("changed_version"),
    PrimaryKeyConstraint("id"),
    Index("ix_organisations_changed_version", "changed_version"),
)
Index(
    "uq_organisations_live_name",
    organisations.c.name,
    unique=True,
    postgresql_where=text("deleted_us IS NULL AND NOT implicit"),
    sqlite_where=text("deleted_us IS NULL AND NOT implicit"),
)

teams: Final = Table(
    "teams",
    METADATA,
    _text("id"),
    _text("organisation_id"),
    _text("name"),
    _text("policy"),
    _int("created_us"),
    _int("deleted_us", nullable=True),
    _int("changed_version"),
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["organisation_id"], ["organisations.id"]),
    UniqueConstraint("organisation_id", "id"),
    Index("ix_teams_changed_version", "changed_version"),
)
Index(
    "uq_teams_live_name",
    teams.c.organisation_id,
    teams.c.name,
    unique=True,
    postgresql_where=text("deleted_us IS NULL"),
    sqlite_where=text("deleted_us IS NULL"),
)

keys: Final = Table(
    "keys",
    METADATA,
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
    _int("previous_until_us", nullable=True),
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["organisation_id"], ["organisations.id"]),
    # With both columns, so that no key can ever sit in a team of another organisation.
    ForeignKeyConstraint(["organisation_id", "team_id"], ["teams.organisation_id", "teams.id"], name="fk_keys_team"),
    Index("ix_keys_name", "name"),
    Index("ix_keys_created_us_id", "created_us", "id"),
    Index("ix_keys_organisation_id_team_id", "organisation_id", "team_id"),
    Index("ix_keys_team_id", "team_id"),
    Index("ix_keys_changed_version", "changed_version"),
)

key_digests: Final = Table(
    "key_digests",
    METADATA,
    Column("digest", LargeBinary, nullable=False),
    _text("key_id"),
    _int("created_us"),
    _int("expires_us", nullable=True),
    _int("changed_version"),
    _int("valid_until_us", nullable=True),
    PrimaryKeyConstraint("digest"),
    ForeignKeyConstraint(["key_id"], ["keys.id"]),
    Index("ix_key_digests_key_id", "key_id"),
    Index("ix_key_digests_changed_version", "changed_version"),
)
"""What stands for a key's secrets. `expires_us` is set when a secret is rotated away; one that was rotated with an
overlap goes on until `valid_until_us`, and gets its `expires_us` by a later rotation."""

admin_tokens: Final = Table(
    "admin_tokens",
    METADATA,
    _text("id"),
    _text("name"),
    _text("role"),
    _text("owns"),
    _text("hint"),
    Column("digest", LargeBinary, nullable=False),
    Column("previous_digest", LargeBinary, nullable=True),
    _int("previous_until_us", nullable=True),
    _int("created_us"),
    _int("expires_us", nullable=True),
    _int("revoked_us", nullable=True),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("digest"),
    UniqueConstraint("previous_digest"),
)
"""`owns` is a JSON list of ids. The digest before the last rotation counts until `previous_until_us`."""

audit_events: Final = Table(
    "audit_events",
    METADATA,
    Column("number", BigInteger, nullable=False, autoincrement=False),
    _int("at_us"),
    _text("actor_id"),
    _text("actor_name"),
    _text("source"),
    _text("address", nullable=True),
    _text("request_id", nullable=True),
    Column("idempotency", LargeBinary, nullable=True),
    _text("action"),
    _text("object_id"),
    _text("before_json", nullable=True),
    _text("after_json", nullable=True),
    PrimaryKeyConstraint("number"),
    Index("ix_audit_events_at_us", "at_us"),
    Index("ix_audit_events_object_id_number", "object_id", "number"),
    Index("ix_audit_events_actor_id_number", "actor_id", "number"),
    Index("ix_audit_events_idempotency", "idempotency"),
)
"""One row a change. `number` is the version of the change counter in its transaction, and a digit."""

idempotency_keys: Final = Table(
    "idempotency_keys",
    METADATA,
    Column("digest", LargeBinary, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    _int("lease_until_us"),
    _int("expires_us"),
    _int("status", nullable=True),
    Column("sealed", LargeBinary, nullable=True),
    PrimaryKeyConstraint("digest"),
    Index("ix_idempotency_keys_expires_us", "expires_us"),
)
"""Of writes by the admin API. Without a status one runs, until `lease_until_us` at most; `sealed` is its answer."""

producers: Final = Table(
    "producers",
    METADATA,
    _text("id"),
    _int("enrolled_us"),
    _int("seen_us"),
    _int("closed_us", nullable=True),
    _int("rested_us", nullable=True),
    _text("claimant", nullable=True),
    _int("claimed_us", nullable=True),
    _int("forgotten_us", nullable=True),
    PrimaryKeyConstraint("id"),
)
"""Gateway processes. `rested_us`: it stopped, and the database has all it did; until its next heartbeat. `claimant`:
who closes it, its disk being gone. `forgotten_us`: when the marks of a closed one were dropped."""

marks: Final = Table(
    "marks",
    METADATA,
    _text("root"),
    _text("producer"),
    _int("number"),
    PrimaryKeyConstraint("root", "producer"),
)
"""Per root and producer, the last entry that the totals in `spend` include."""

fences: Final = Table(
    "fences",
    METADATA,
    _text("root"),
    _int("number"),
    PrimaryKeyConstraint("root"),
)
"""Per root, the number of the latest memory of it: nothing of an earlier one is saved."""

spend: Final = Table(
    "spend",
    METADATA,
    _text("root"),
    _text("scope"),
    _text("period"),
    _int("cost_nano"),
    _int("requests"),
    _int("input_tokens"),
    _int("output_tokens"),
    _int("cached_tokens"),
    _int("updated_us"),
    PrimaryKeyConstraint("root", "scope", "period"),
)
"""Absolute totals of every counter; the scope of the root itself is empty."""

usage_keys: Final = Table(
    "usage_keys",
    METADATA,
    _text("root"),
    _text("digest"),
    _int("cost_nano"),
    _int("until_us"),
    _text("entry"),
    PrimaryKeyConstraint("root", "digest"),
    Index("ix_usage_keys_root_until_us", "root", "until_us"),
)
"""Idempotency keys of usage, by digest, until they may be forgotten; `entry` is the one that charged."""

charges: Final = Table(
    "charges",
    METADATA,
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
    PrimaryKeyConstraint("root", "attempt"),
    Index("ix_charges_attempt", "attempt"),
    Index("ix_charges_rank_updated_us", "rank", "updated_us"),
)
"""Attempts whose charge carries a rank: presumed, late, corrected; quarantined ones are named `?` and the attempt.
`known` is JSON: counters, note."""

budget_alerts: Final = Table(
    "budget_alerts",
    METADATA,
    _text("root"),
    _text("counter"),
    _int("threshold_nano"),
    _text("scope"),
    _int("spent_nano"),
    _int("budget_nano", nullable=True),
    _int("soft_nano", nullable=True),
    _int("ends_us", nullable=True),
    _int("crossed_us"),
    _int("expires_us"),
    _int("due_us", nullable=True),
    _int("attempts"),
    _int("delivered_us", nullable=True),
    _text("failure", nullable=True),
    PrimaryKeyConstraint("root", "counter", "threshold_nano"),
    Index("ix_budget_alerts_due_us", "due_us"),
    Index("ix_budget_alerts_crossed_us", "crossed_us"),
)
"""Thresholds of budgets that were reached, once each; `due_us` is set while one waits for its delivery. `failure` is
why the last attempt to deliver it failed."""

stored_objects: Final = Table(
    "stored_objects",
    METADATA,
    _text("root"),
    _text("id"),
    _text("kind"),
    _text("provider"),
    _text("key_id"),
    _int("created_us"),
    _text("model"),
    _text("upstream_model"),
    _text("seen"),
    _text("notes"),
    _int("due_us", nullable=True),
    PrimaryKeyConstraint("root", "id"),
    Index("ix_stored_objects_root_kind_created_us", "root", "kind", "created_us"),
    Index("ix_stored_objects_due_us", "due_us"),
    Index("ix_stored_objects_kind_created_us", "kind", "created_us"),
)
"""Answers, files and batches kept at providers, by the organisation that made them (domain/objects.py)."""

session_ends: Final = Table(
    "session_ends",
    METADATA,
    _text("subject"),
    _int("era"),
    _int("forget_us", nullable=True),
    PrimaryKeyConstraint("subject"),
)
"""Ended sessions of the dashboard until they would have ended anyway, and by actor how often all of it were ended."""

monthly_usage_summary: Final = Table(
    "monthly_usage_summary",
    METADATA,
    _text("key_id"),
    Column("year", Integer, nullable=False),
    Column("month", Integer, nullable=False),
    _int("cost_nano"),
    _int("requests"),
    _int("input_tokens"),
    _int("output_tokens"),
    _int("cached_tokens"),
    _int("updated_us"),
    PrimaryKeyConstraint("key_id", "year", "month"),
    Index("ix_monthly_usage_summary_year_month", "year", "month"),
)
