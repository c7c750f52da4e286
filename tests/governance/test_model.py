"""The settlement protocol in small, run through random schedules of losses and crashes; and broken variants, each of
which the same checks must catch. Extend the model before changing the protocol."""

import pytest

from tests.governance.settlement_model import BROKEN, ends_wrong


def test_protocol_ends_true() -> None:
    """Promises 3 and 4 hold on every schedule."""
    assert [seed for seed in range(1500) if ends_wrong(seed, None)] == []


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_variant_is_caught(broken: str) -> None:
    """Each shortcut that looks harmless loses or repeats money on some schedule."""
    assert any(ends_wrong(seed, broken) for seed in range(10_000))
