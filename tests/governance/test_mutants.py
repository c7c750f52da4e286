"""The tests of the scripts are tested: whatever is changed in a script, one of them fails."""

import random

from tests.governance import mutants
from tests.governance.equivalent_mutants import ARGUMENTS
from tests.governance.mutants import lua_files, mutants_of, suite, survives

SAMPLE = 40


def test_the_scripts_themselves_pass() -> None:
    """Every schedule of the campaign."""
    suite({})


def test_a_sample_of_mutants_is_noticed() -> None:
    """The same in every run; `python -m tests.governance.mutants` tries all."""
    # of the log queue's scripts some equivalent ones are not argued for yet: `mutants.py` names them
    files = [file for file in lua_files() if not file.startswith("log")]
    everything = [m for file in files for m in mutants_of(file) if not m.equivalent]
    for mutant in random.Random(1).sample(everything, SAMPLE):
        assert not survives(mutant), mutant


def test_what_is_argued_to_be_equivalent_exists() -> None:
    """An argument about code that has changed is no argument."""
    found = {m.equivalent for file in lua_files() for m in mutants_of(file)}
    for argument in ARGUMENTS:
        assert argument.why in found, argument
        assert any(t.strip().startswith(argument.line) for t in mutants._text(argument.file).splitlines()), argument
