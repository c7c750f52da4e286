"""A release that does not exist yet: today's code with one more migration, and with a version of its own."""

import re
import shutil
from pathlib import Path
from typing import Final

from alembic.script import ScriptDirectory

PACKAGE: Final = Path(__file__).parents[2] / "src" / "tollkeeper"
_MIGRATION: Final = '''
"""What the release after this one might do: columns of tables in use, and a table more."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("keys", sa.Column("next_release", sa.Text, nullable=True))
    op.add_column("producers", sa.Column("next_release", sa.Text, nullable=True))
    op.create_table("next_release", sa.Column("id", sa.Text, primary_key=True))
'''


def with_next_migration(migrations: Path, target: Path) -> Path:
    """A copy of the migrations with one more."""
    shutil.copytree(migrations, target, dirs_exist_ok=True)
    before = ScriptDirectory(str(migrations)).get_current_head()
    assert before is not None
    revision = re.sub(r"^\d{4}", lambda number: f"{int(number[0]) + 1:04d}", before)
    (target / "versions" / f"{revision}_next.py").write_text(_MIGRATION.format(revision=revision, before=before))
    return target


def make_release(folder: Path, version: str, *, migrates: bool) -> Path:
    """The package under a folder for PYTHONPATH."""
    package = folder / "tollkeeper"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = package / "__init__.py"
    source.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', source.read_text()))
    if migrates:
        migrations = Path("storage", "migrations")
        with_next_migration(PACKAGE / migrations, package / migrations)
    return folder
