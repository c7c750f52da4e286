"""The tests of the scripts are tested: whatever is changed in a script, one of them fails."""

import pytest

from tests.governance import mutants
from tests.governance.equivalent_mutants import ARGUMENTS
from tests.governance.mutants import lua_files, mutants_of, noticed_by, suite

ONE_IN = 50


@pytest.mark.parametrize("kind", ["window", "bucket", "admission", "queue"])
def test_the_scripts_themselves_pass(kind: str) -> None:
    """Every trial of the campaign."""
    suite([kind])


@pytest.mark.parametrize("file", lua_files())
def test_a_sample_of_mutants_is_noticed(file: str) -> None:
    """Some of each file, drawn by their own text: a change elsewhere draws no others. `make mutants` tries all."""
    mutants = sorted((m for m in mutants_of(file) if not m.equivalent), key=lambda m: m.draw)
    for mutant in mutants[: -(-len(mutants) // ONE_IN)]:
        assert noticed_by(mutant), mutant


def test_what_is_argued_to_be_equivalent_exists() -> None:
    """An argument about code that has changed is no argument."""
    found = {m.equivalent for file in lua_files() for m in mutants_of(file)}
    for argument in ARGUMENTS:
        assert argument.why in found, argument
        assert any(t.strip().startswith(argument.line) for t in mutants._text(argument.file).splitlines()), argument
